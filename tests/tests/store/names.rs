//! Names between nodes, but for kernel and datapath, over one etcd: they come with an ADD, go with the lease, and return with it.

use crate::{
    nodes::{add, block_on, start},
    scene::wait_for,
};
use ipamd::{
    cluster::{Cluster, NameEntry, NodeRemoval, RemovalOf, Told},
    daemon::simulated::SimulatedNode,
};
use ipamd_api::{AddNameRequest, AttachmentKey, DelRequest, Evidence, NameSource};
use std::{collections::BTreeSet, sync::Arc};
use weft_tests::etcd::Etcd;

const NETWORK: u32 = 1;

async fn del(node: &SimulatedNode, attachment: AttachmentKey) {
    let attachments = Arc::clone(node.attachments());
    let found = attachments.endpoints().into_iter().find(|e| e.attachment == attachment);
    let evidence = Evidence { endpoint: found.map(|e| e.endpoint), cookie: None };
    let request = DelRequest { attachment, network: "blue".into(), evidence };
    tokio::task::spawn_blocking(move || attachments.del(&request)).await.unwrap().unwrap();
}

/// The names that a node knows, but for short IDs, each with the node that has it.
fn known(node: &SimulatedNode) -> BTreeSet<String> {
    let views = node.attachments().name_views(Some("blue")).unwrap();
    let shown = views.into_iter().map(|view| match view.source {
        NameSource::Endpoint { node, .. } => format!("{}@{node}", view.name),
        NameSource::Record | NameSource::Alias { .. } => view.name,
    });
    shown.filter(|name| !name.starts_with("id-")).collect()
}

/// Waits until a node knows these names and no other.
async fn knows(node: &SimulatedNode, names: &[&str]) {
    let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_for(async || (known(node) == names).then_some(())).await;
}

/// The lease that a node's sign of life goes with.
fn lease_of(etcd: &Etcd, node: &str) -> Option<String> {
    let said = etcd.ctl(0, &["lease", "list"]).unwrap();
    let mut leases = said.lines().skip(1).map(str::trim).filter(|line| !line.is_empty());
    let alive = format!("/weft/v1/alive/{node}");
    let has = |lease: &&str| {
        etcd.ctl(0, &["lease", "timetolive", lease, "--keys"]).is_ok_and(|said| said.contains(&alive))
    };
    leases.find(has).map(str::to_owned)
}

/// Two nodes, `n1` with the container `near` and `n2` with `far`, that know each other's.
async fn near_and_far(etcd: &Etcd, dir: &tempfile::TempDir) -> (SimulatedNode, SimulatedNode) {
    let (near, far) = (start(etcd, dir, 1).await, start(etcd, dir, 2).await);
    add(&near, "id-near", &["near"]).await.unwrap();
    add(&far, "id-far", &["far"]).await.unwrap();
    knows(&near, &["near@n1", "far@n2"]).await;
    (near, far)
}

#[test]
fn names_go_with_the_lease_and_return_with_the_store() {
    let (mut etcd, dir) = (Etcd::start_new().unwrap(), tempfile::tempdir().unwrap());
    block_on(async {
        let (near, far) = (start(&etcd, &dir, 1).await, start(&etcd, &dir, 2).await);
        add(&near, "id-near", &["near", "all"]).await.unwrap();
        let gone = add(&far, "id-gone", &["gone"]).await.unwrap().0;
        add(&far, "id-far", &["far", "all"]).await.unwrap();
        let both = ["near@n1", "all@n1", "far@n2", "all@n2"];
        knows(&near, &[&both[..], &["gone@n2"]].concat()).await;
        del(&far, gone).await;
        knows(&near, &both).await;
        knows(&far, &both).await;

        // The lease ends while its node lives: the names are put again, under another one.
        let lease = lease_of(&etcd, "n2").unwrap();
        etcd.ctl(0, &["lease", "revoke", &lease]).unwrap();
        let next = wait_for(async || lease_of(&etcd, "n2").filter(|next| *next != lease)).await;
        let under = async || {
            let said = etcd.ctl(0, &["lease", "timetolive", &next, "--keys"]).unwrap();
            said.contains(&format!("/weft/v1/names/{NETWORK}/n2/")).then_some(())
        };
        wait_for(under).await;
        knows(&near, &both).await;

        // Without the store everybody goes on with what he knew, and what is new is told when it is back.
        etcd.kill_all().unwrap();
        add(&far, "id-late", &["late"]).await.unwrap();
        assert_eq!(known(&near), both.map(str::to_owned).into());
        assert!(known(&far).contains("late@n2"), "{:?}", known(&far));
        etcd.restart_all().unwrap();
        knows(&near, &[&both[..], &["late@n2"]].concat()).await;

        // What cannot be understood hides nothing, and is not overwritten.
        for (key, value) in [
            ("n3/00000000000a", r#"{"version":2,"names":["later"]}"#),
            ("n3/00000000000b", "{"),
            ("nonsense", "{}"),
            ("-/printer", r#"{"version":1,"addresses":["192.0.2.99"]}"#),
        ] {
            etcd.ctl(0, &["put", &format!("/weft/v1/names/{NETWORK}/{key}"), value]).unwrap();
        }
        knows(&near, &[&both[..], &["late@n2", "printer"]].concat()).await;

        // A node that ends takes its names along, when its lease does.
        far.stop().await;
        knows(&near, &["near@n1", "all@n1", "printer"]).await;
        near.stop().await;
    });
}

#[test]
fn a_node_that_is_removed_loses_its_names_and_says_them_anew() {
    let (etcd, dir) = (Etcd::start_new().unwrap(), tempfile::tempdir().unwrap());
    block_on(async {
        let (near, far) = near_and_far(&etcd, &dir).await;
        let cluster: Cluster = near.attachments().networks().cluster().clone();
        let removed = cluster.remove_node("n2", RemovalOf::Any).await.unwrap();
        assert!(matches!(removed, NodeRemoval::Removed { .. }), "{removed:?}");
        // Its container lives on; it is known again when the node is a member again, and under the next incarnation alone.
        let incarnations = async || {
            let attachments = Arc::clone(near.attachments());
            let stored = tokio::task::spawn_blocking(move || attachments.networks().names_in_store(NETWORK));
            let entries = stored.await.unwrap().ok()?;
            let of_far = entries.into_iter().filter_map(|entry| match entry {
                NameEntry::Endpoint { node, told: Told::Is(name), .. } if node == "n2" => {
                    Some(name.incarnation)
                }
                _ => None,
            });
            let found: Vec<u64> = of_far.collect();
            (found == [1]).then_some(())
        };
        wait_for(incarnations).await;
        knows(&near, &["near@n1", "far@n2"]).await;
        far.stop().await;
        near.stop().await;
    });
}

#[test]
fn what_an_operator_says_on_one_node_counts_on_all() {
    let (etcd, dir) = (Etcd::start_new().unwrap(), tempfile::tempdir().unwrap());
    block_on(async {
        let (near, far) = near_and_far(&etcd, &dir).await;
        let attachments = Arc::clone(far.attachments());
        let request = |name: &str, target: Option<&str>| AddNameRequest {
            network: "blue".into(),
            name: name.into(),
            addresses: if target.is_some() { vec![] } else { vec!["192.0.2.99".parse().unwrap()] },
            target: target.map(str::to_owned),
        };
        let requests = [request("printer", None), request("alias", Some("near.blue"))];
        let given = tokio::task::spawn_blocking(move || requests.map(|r| attachments.add_name(&r).unwrap()));
        given.await.unwrap();
        knows(&near, &["near@n1", "far@n2", "printer", "alias"]).await;
        let attachments = Arc::clone(near.attachments());
        let removed = tokio::task::spawn_blocking(move || {
            attachments
                .remove_name(&ipamd_api::RemoveNameRequest { network: "blue".into(), name: "alias".into() })
        });
        removed.await.unwrap().unwrap();
        knows(&far, &["near@n1", "far@n2", "printer"]).await;
        far.stop().await;
        near.stop().await;
    });
}
