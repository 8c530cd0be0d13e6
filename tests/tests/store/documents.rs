//! Documents that one node applies and others honour: a static address, over one etcd, with real nodes but for kernel and datapath.

use crate::{
    nodes::{block_on, start},
    scene::wait_for,
};
use ipamd::daemon::simulated::SimulatedNode;
use ipamd_api::{AddRequest, ApiError, ApplyRequest, AttachmentKey, EndpointOptions, ErrorCode, NetworkSpec};
use serde_json::{Value, json};
use std::{net::IpAddr, sync::Arc};
use weft_tests::etcd::Etcd;

async fn apply(node: &SimulatedNode, documents: Vec<Value>, remove: bool) {
    let attachments = Arc::clone(node.attachments());
    let request = ApplyRequest { documents, remove, dry_run: false };
    let report = tokio::task::spawn_blocking(move || attachments.apply_documents(&request)).await.unwrap();
    let report = report.unwrap();
    assert!(report.outcomes.iter().all(|outcome| outcome.error.is_none()), "{report:?}");
}

async fn add(node: &SimulatedNode, container: &str, alias: &str, ask: &[&str]) -> Result<IpAddr, ApiError> {
    let request = AddRequest {
        attachment: AttachmentKey { container_id: container.into(), ifname: "eth0".into() },
        netns: node.sandbox(container),
        runtime: "podman".into(),
        network: NetworkSpec { name: "blue".into(), ..NetworkSpec::default() },
        options: EndpointOptions {
            aliases: vec![alias.to_owned()],
            ips: ask.iter().map(|address| address.parse().unwrap()).collect(),
            ..EndpointOptions::default()
        },
    };
    let attachments = Arc::clone(node.attachments());
    let added = tokio::task::spawn_blocking(move || attachments.add(&request)).await.unwrap()?;
    Ok(added.ips[0].address.ip())
}

#[test]
fn a_static_address_is_kept_on_every_node_and_given_on_any() {
    let (etcd, dir) = (Etcd::start_new().unwrap(), tempfile::tempdir().unwrap());
    block_on(async {
        let (one, two) = (start(&etcd, &dir, 1).await, start(&etcd, &dir, 2).await);
        let kept = |address: &str| {
            json!({"apiVersion": "weft/v1", "kind": "StaticAddress", "metadata": {"name": "db"},
                "spec": {"network": "blue", "addresses": [address]}})
        };
        let pool = json!({"subnet": "10.1.0.0/24", "dynamicRange": "10.1.0.0/25"});
        let network = json!({"apiVersion": "weft/v1", "kind": "Network", "metadata": {"name": "blue"},
            "spec": {"driver": "overlay", "pools": [pool]}});
        // Kept before and after the other node has heard of the network.
        apply(&one, vec![kept("10.1.0.200"), network], false).await;
        let knows = |node: &SimulatedNode, address: &str| {
            let network = node.attachments().networks().get("blue");
            network.is_ok_and(|n| n.pools[0].kept_for(address.parse().unwrap()) == Some("db"))
        };
        wait_for(async || knows(&two, "10.1.0.200").then_some(())).await;
        apply(&one, vec![kept("10.1.0.201")], false).await;
        wait_for(async || knows(&two, "10.1.0.201").then_some(())).await;

        let error = add(&two, "thief", "web", &["10.1.0.201/24"]).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::AddressTaken), "{error}");
        assert_eq!(add(&two, "database", "db", &[]).await.unwrap(), IpAddr::from([10, 1, 0, 201]));
        // It runs over there: here nobody gets it, by that name either.
        let error = add(&one, "second", "db", &[]).await.unwrap_err();
        assert!(error.to_string().contains("n2"), "{error}");

        apply(&two, vec![kept("10.1.0.201")], true).await;
        wait_for(async || (!knows(&one, "10.1.0.201")).then_some(())).await;
        let other = add(&one, "second", "db", &[]).await.unwrap();
        assert_ne!(other, IpAddr::from([10, 1, 0, 201]));
    });
}
