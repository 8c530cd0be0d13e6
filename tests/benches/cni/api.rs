//! Weft without its executable: the same requests from this process. What is missing to [`Weft`](crate::plugin::Weft) is the
//! cost of the process.

use crate::candidate::{Candidate, Held, Places};
use anyhow::{Context, Result};
use ipamd_api::{
    AddRequest, AddResponse, AttachmentKey, Client, DelRequest, DelResponse, EndpointOptions, Evidence,
    NetworkSpec, PoolSpec, path,
};
use weft_tests::Sandbox;

const NETWORK: &str = "bench-api";

/// ipamd, called through its API.
pub(crate) struct Api {
    client: Client,
    network: NetworkSpec,
}

impl Api {
    pub(crate) fn new(places: &Places<'_>) -> Result<Self> {
        let subnet = "10.235.0.0/16".parse().context("the pool")?;
        let pool = PoolSpec { subnet, gateway: None, dynamic_range: None, reserved: Vec::new() };
        let network = NetworkSpec { name: NETWORK.into(), pools: vec![pool], ..NetworkSpec::default() };
        Ok(Self { client: Client::new(&places.node.run_dir()), network })
    }
}

fn key(call: usize) -> AttachmentKey {
    AttachmentKey { container_id: format!("api{call}"), ifname: "eth0".into() }
}

impl Candidate for Api {
    fn name(&self) -> &'static str {
        "weft's API, no process"
    }

    fn add(&self, sandbox: &Sandbox, call: usize) -> Result<Held> {
        let request = AddRequest {
            attachment: key(call),
            netns: sandbox.path().to_owned(),
            runtime: "bench".into(),
            network: self.network.clone(),
            options: EndpointOptions::default(),
        };
        let answer: AddResponse = self.client.post(path::ADD, &request)?;
        let address = answer.ips.first().context("an ADD gave no address")?.address.to_string();
        let result = serde_json::to_value(&answer)?;
        Ok(Held { result, link: answer.endpoint.host_ifname(), address })
    }

    fn del(&self, sandbox: &Sandbox, call: usize, before: &Held) -> Result<()> {
        let answer: AddResponse = serde_json::from_value(before.result.clone())?;
        let evidence = Evidence { endpoint: Some(answer.endpoint), cookie: Some(sandbox.identity().cookie) };
        let request = DelRequest { attachment: key(call), network: NETWORK.into(), evidence };
        let answer: DelResponse = self.client.post(path::DEL, &request)?;
        answer.freed.context("a DEL freed nothing").map(drop)
    }
}
