//! `publish`.

use super::Asker;
use crate::{
    cli::{AddPorts, RemovePort},
    exit::Failure,
    output::Answer,
    render,
};
use ipamd_api::{PublishedPorts, path};
use serde_json::Value;
use std::net::SocketAddr;

impl Asker<'_> {
    pub(super) fn list_ports(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::PUBLISH)?;
        self.ports(&raw)
    }

    pub(super) fn add_ports(&self, add: &AddPorts) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::PUBLISH, &add.request())?;
        self.ports(&raw)
    }

    pub(super) fn remove_port(&self, remove: &RemovePort) -> Result<Answer, Failure> {
        let request = remove.request();
        let raw: Value = self.client.post(path::UNPUBLISH, &request)?;
        let host = request.host_ip.map_or_else(
            || request.host_port.to_string(),
            |ip| SocketAddr::new(ip, request.host_port).to_string(),
        );
        let line = format!("{} no longer publishes {host}/{}", request.container, request.protocol);
        self.output.answer(&raw, |page| page.line(&line)).map(Answer::done)
    }

    fn ports(&self, raw: &Value) -> Result<Answer, Failure> {
        let ports: Vec<PublishedPorts> = self.typed(raw)?;
        let names = self.names(!ports.is_empty())?;
        self.output.answer(raw, |page| render::publish::list(page, &ports, &names)).map(Answer::done)
    }
}
