//! `weft` as the first of a chain before the reference plugins tuning, bandwidth and portmap, called one after another as libcni does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod chain;
mod portmap;

use std::fs;

use chain::Chain;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::{
    Node, Sandbox,
    inventory::{assert_clean, assert_holds},
    stream::{rate, serve},
};

/// The limit of the chain, bits per second.
const LIMIT: u64 = 20_000_000;

/// What counts as limited: the limit is before headers, and a token bucket starts full.
const LIMITED: std::ops::Range<f64> = 8e6..40e6;

/// The reference bandwidth plugin, both directions.
fn bandwidth() -> Value {
    // Large enough for the segments that a virtual link carries whole.
    let burst = LIMIT / 10;
    json!({
        "type": "bandwidth",
        "ingressRate": LIMIT, "ingressBurst": burst, "egressRate": LIMIT, "egressBurst": burst,
    })
}

fn tuning() -> Value {
    json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } })
}

fn address(result: &Value, index: usize) -> String {
    result["ips"][index]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

fn endpoint(result: &Value) -> ipamd_api::EndpointId {
    let names = result["interfaces"].as_array().unwrap().iter().filter_map(|i| i["name"].as_str());
    names.filter_map(ipamd_api::EndpointId::of_host_ifname).next().unwrap()
}

/// A limited sandbox beside one that is not, on one network; all four ways in and out of the limited one.
fn traffic_is_limited(node: &Node, weft: &Value) {
    let limited_chain = Chain::new("1.0.0", weft, &[tuning(), bandwidth()]);
    let plain_chain = Chain::new("1.0.0", weft, &[]);
    let [limited, peer, free] = [(); 3].map(|()| Sandbox::new().unwrap());
    let cni = |id: &str, sandbox: &Sandbox| node.cni().unwrap().container(id).netns(sandbox.path());
    let (limited_cni, peer_cni, free_cni) =
        (cni("limited", &limited), cni("peer", &peer), cni("free", &free));
    let limited_result = limited_chain.add(&limited_cni);
    let peer_result = plain_chain.add(&peer_cni);
    let free_result = plain_chain.add(&free_cni);
    let (of_limited, of_peer) = (address(&limited_result, 0), address(&peer_result, 0));

    let _servers = [&*limited, &*peer, node.netns()].map(|netns| serve(netns).unwrap());
    let (limited_netns, free_netns) = (limited.handle().unwrap(), free.handle().unwrap());
    // Without the chain it is another order of magnitude, so it is the chain that limits.
    let unlimited = rate(&free_netns, &of_peer, false).unwrap();
    assert!(unlimited > 10.0 * LIMITED.end, "an unlimited neighbour gets only {unlimited} bit/s");
    for (what, measured) in [
        ("from a neighbour", rate(&free_netns, &of_limited, false).unwrap()),
        ("to a neighbour", rate(&limited_netns, &of_peer, false).unwrap()),
        ("to the host", rate(&limited_netns, "10.81.0.1", false).unwrap()),
        ("from the host", rate(&limited_netns, "10.81.0.1", true).unwrap()),
    ] {
        assert!(LIMITED.contains(&measured), "{what}: {measured} bit/s with a limit of {LIMIT}");
    }
    assert!(free.ping(&of_limited).unwrap() && limited.ping(address(&free_result, 1)).unwrap());

    limited_chain.check(&limited_cni, &limited_result).unwrap();
    assert_eq!(limited.sh("cat /proc/sys/net/core/somaxconn").unwrap().trim(), "500");
    limited_chain.del(&limited_cni, &limited_result);
    assert_holds(node, &[endpoint(&peer_result), endpoint(&free_result)]).unwrap();
    // With the limited one gone, its neighbours are as before.
    assert!(free.ping(&of_peer).unwrap());
    plain_chain.del(&peer_cni, &peer_result);
    plain_chain.del(&free_cni, &free_result);
    assert_clean(node).unwrap();
    // The plugin's own device, an ifb, went with its DEL.
    let links = node.netns().ip("-o link show type ifb").unwrap();
    assert_eq!(links.trim(), "");
}

fn pools() -> Value {
    json!({ "pools": [{ "subnet": "10.81.0.0/24" }, { "subnet": "fd81::/64" }] })
}

#[test]
fn bandwidth_limits_both_directions_when_the_netconf_asks_for_tcx() {
    let node = Node::start_new("asked").unwrap();
    let mut weft = pools();
    weft["hooks"] = "tcx".into();
    traffic_is_limited(&node, &weft);
}

#[test]
fn bandwidth_limits_both_directions_when_ipamd_finds_the_chain_itself() {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let list = Chain::new("1.0.0", &pools(), &[tuning(), bandwidth()]).list;
    fs::write(dir.path().join("10-chained.conflist"), list.to_string()).unwrap();
    let settings = format!("cni_conf_dirs = [{:?}]", dir.path().display().to_string());
    let node = Node::builder("found").settings(&settings).start().unwrap();
    traffic_is_limited(&node, &pools());
}

#[test]
fn the_chain_outlives_a_restart_of_ipamd() {
    let mut node = Node::start_new("restarted").unwrap();
    let mut weft = pools();
    weft["hooks"] = "tcx".into();
    let chain = Chain::new("1.0.0", &weft, &[bandwidth()]);
    let sandbox = Sandbox::new().unwrap();
    let result = chain.add(&node.cni().unwrap().container("limited").netns(sandbox.path()));
    node.restart().unwrap();
    let _server = serve(node.netns()).unwrap();
    for reverse in [false, true] {
        let measured = rate(&sandbox.handle().unwrap(), "10.81.0.1", reverse).unwrap();
        assert!(LIMITED.contains(&measured), "reverse {reverse}: {measured} bit/s with a limit of {LIMIT}");
    }
    let cni = node.cni().unwrap().container("limited").netns(sandbox.path());
    chain.check(&cni, &result).unwrap();
    chain.del(&cni, &result);
    assert_clean(&node).unwrap();
}

#[test]
fn every_version_that_the_reference_plugins_know_goes_through_the_chain() {
    let node = Node::start_new("versions").unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let chain = Chain::new(version, &pools(), &[tuning()]);
        let sandbox = Sandbox::new().unwrap();
        let id = format!("version-{}", version.replace('.', "-"));
        let cni = node.cni().unwrap().container(&id).netns(sandbox.path());
        let result = chain.add(&cni);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(sandbox.sh("cat /proc/sys/net/core/somaxconn").unwrap().trim(), "500");
        assert!(sandbox.ping("10.81.0.1").unwrap(), "{version}");
        // CHECK exists since 0.4.0.
        if !version.starts_with("0.3") {
            chain.check(&cni, &result).unwrap();
            sandbox.ip("address flush dev eth0 scope global").unwrap();
            assert!(chain.check(&cni, &result).is_err(), "CHECK missed that the addresses are gone");
        }
        chain.del(&cni, &result);
        // A runtime may call it again, with less.
        chain.links(&cni).rev().for_each(|(call, netconf)| {
            if netconf["type"] == "weft" {
                call.variable("CNI_NETNS", None).del(&netconf).unwrap();
            }
        });
        assert_clean(&node).unwrap();
    }
}
