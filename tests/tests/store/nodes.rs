//! Nodes that are real but for kernel and datapath, over the etcd of a test.

use ipamd::{
    daemon::simulated::SimulatedNode,
    settings::{List, Milliseconds, Seconds, Settings, StoreKind},
};
use ipamd_api::{AddRequest, ApiError, AttachmentKey, Driver, EndpointOptions, NetworkSpec, PoolSpec};
use std::{net::IpAddr, path::Path, sync::Arc};
use weft_tests::etcd::Etcd;

/// Settings of a node with this name, whose folders are in one of `dir` that is called so too.
pub(crate) fn settings(etcd: &Etcd, dir: &Path, name: &str) -> Settings {
    Settings {
        run_dir: dir.join(name).join("run"),
        state_dir: dir.join(name).join("state"),
        node_name: name.into(),
        node_ttl: Seconds(2),
        store: StoreKind::Etcd,
        etcd_endpoints: List(etcd.endpoints()),
        etcd_timeout: Milliseconds(2000),
        ..Settings::default()
    }
}

/// The node `n<number>` at an address of its own, when it is a member.
pub(crate) async fn start(etcd: &Etcd, dir: &tempfile::TempDir, number: u8) -> SimulatedNode {
    let settings = settings(etcd, dir.path(), &format!("n{number}"));
    let underlay = format!("192.0.2.{number}/24").parse().unwrap();
    let node = SimulatedNode::start(settings, "boot-1", underlay, true).await.unwrap();
    node.await_member().await;
    node
}

/// ADD of a container to the overlay network `blue`, and the address that it got.
pub(crate) async fn add(
    node: &SimulatedNode,
    container: &str,
    aliases: &[&str],
) -> Result<(AttachmentKey, IpAddr), ApiError> {
    let attachment = AttachmentKey { container_id: container.into(), ifname: "eth0".into() };
    let request = AddRequest {
        attachment: attachment.clone(),
        netns: node.sandbox(container),
        runtime: "podman".into(),
        network: NetworkSpec {
            name: "blue".into(),
            driver: Some(Driver::Overlay),
            pools: vec![PoolSpec {
                subnet: "10.1.0.0/16".parse().unwrap(),
                gateway: None,
                dynamic_range: None,
                reserved: Vec::new(),
            }],
            ..NetworkSpec::default()
        },
        options: EndpointOptions {
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            ..EndpointOptions::default()
        },
    };
    let attachments = Arc::clone(node.attachments());
    let added = tokio::task::spawn_blocking(move || attachments.add(&request)).await.unwrap()?;
    Ok((attachment, added.ips[0].address.ip()))
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap().block_on(work)
}
