//! Containers of podman on the reference bridge, whose addresses are Weft's.

use crate::scene::{Scene, bridge, held, with_ipam};
use ipamd_api::Phase;
use serde_json::json;
use std::fs;
use weft_tests::{inventory::assert_clean, podman::Podman};

#[test]
fn podman_with_the_reference_bridge() {
    let mut scene = Scene::new("podman");
    let networks = scene.dir.path().join("net.d");
    fs::create_dir(&networks).unwrap();
    let mut plugin = with_ipam(&bridge("1.0.0", "plain", 180), &json!({"runDir": scene.node.run_dir()}));
    plugin["capabilities"] = json!({"ips": true});
    let conflist = json!({"cniVersion": "1.0.0", "name": "plain", "plugins": [plugin]});
    fs::write(networks.join("plain.conflist"), conflist.to_string()).unwrap();
    let podman = Podman::new_in(
        scene.node.netns(),
        &scene.dir.path().join("podman"),
        &scene.plugins,
        &networks,
        "plain",
    )
    .unwrap();
    podman.start("alice", "plain", &[]).unwrap();
    podman.start("bob", "plain", &["--ip", "10.180.0.99"]).unwrap();
    let bob = podman.addresses("bob", "plain").unwrap();
    assert_eq!((bob.ipv4.as_str(), bob.gateway.as_str()), ("10.180.0.99", "10.180.0.1"));
    let endpoints = scene.endpoints();
    let view = endpoints.iter().find(|e| held(e)[0] == bob.ipv4).unwrap();
    // Not the plugin that called, but who called that one.
    assert_eq!((view.runtime.as_str(), view.phase), ("podman", Phase::Live));
    assert_eq!(held(view)[1], bob.ipv6);
    assert_eq!(view.options.labels.get("K8S_POD_NAME").map(String::as_str), Some("bob"));
    assert_eq!(scene.differences("bob"), json!([]));
    for address in [&bob.ipv4, &bob.ipv6, "10.180.0.1"] {
        podman.exec("alice", &["ping", "-c", "1", "-W", "2", address]).unwrap();
    }
    let refused = podman.start("carol", "plain", &["--ip", "10.180.0.99"]).unwrap_err().to_string();
    assert!(refused.contains("is held by"), "{refused}");
    podman.remove("carol").unwrap();

    podman.run(["restart", "--time", "0", "alice"]).unwrap();
    podman.exec("alice", &["ping", "-c", "1", "-W", "2", &bob.ipv4]).unwrap();
    scene.node.kill().unwrap();
    podman.remove("alice").unwrap();
    podman.remove("bob").unwrap();
    scene.node.start().unwrap();
    assert_clean(&scene.node).unwrap();
}
