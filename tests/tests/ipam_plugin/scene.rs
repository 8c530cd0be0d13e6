//! A node with the reference plugins and `weft-ipam` in one folder, and netconfs of them.

use std::path::PathBuf;

use ipamd_api::{EndpointView, path};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::{Cni, Node, Sandbox, plugins};

/// The node.
pub(crate) struct Scene {
    pub(crate) node: Node,
    pub(crate) plugins: PathBuf,
    pub(crate) dir: TempDir,
}

impl Scene {
    pub(crate) fn new(name: &str) -> Self {
        let node = Node::start_new(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plugins = plugins::folder(&dir.path().join("plugins")).unwrap();
        Self { node, plugins, dir }
    }

    /// A caller of a plugin for a container's attachment; by the variables it finds `weft-ipam` and that finds the node.
    pub(crate) fn plugin(&self, kind: &str, container: &str, sandbox: &Sandbox) -> Cni<'_> {
        let cni = self.node.cni().unwrap().program(self.plugins.join(kind)).container(container);
        let cni = cni.variable("CNI_PATH", Some(self.plugins.clone().into()));
        cni.variable("WEFT_RUN_DIR", Some(self.node.run_dir().into())).netns(sandbox.path())
    }

    pub(crate) fn endpoints(&self) -> Vec<EndpointView> {
        self.node.client().get(path::ENDPOINTS).unwrap()
    }

    /// What `netctl inspect` finds wrong with an endpoint of a container.
    pub(crate) fn differences(&self, container: &str) -> Value {
        let said = self.node.netctl(&["inspect", container, "-o", "json"]).unwrap();
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        said["endpoints"][0]["differences"].clone()
    }
}

/// A netconf of the reference bridge for the network `name` with the pools 10.`number`.0.0/24 and fd00:`number`::/64.
pub(crate) fn bridge(version: &str, name: &str, number: u8) -> Value {
    let ipam = json!({
        "type": "weft-ipam",
        "pools": [{"subnet": format!("10.{number}.0.0/24")}, {"subnet": format!("fd00:{number}::/64")}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    json!({
        "cniVersion": version, "name": name, "type": "bridge", "bridge": format!("br{number}"), "isGateway": true,
        "ipam": ipam,
    })
}

/// The netconf with these keys laid over `ipam`.
pub(crate) fn with_ipam(netconf: &Value, more: &Value) -> Value {
    let mut netconf = netconf.clone();
    for (key, value) in more.as_object().unwrap() {
        netconf["ipam"][key] = value.clone();
    }
    netconf
}

/// The addresses of a result, without prefix lengths.
pub(crate) fn ips(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter().filter_map(|ip| ip["address"].as_str());
    ips.map(|ip| ip.split('/').next().unwrap().to_owned()).collect()
}

/// The addresses of an endpoint, without prefix lengths.
pub(crate) fn held(endpoint: &EndpointView) -> Vec<String> {
    endpoint.addresses.iter().map(|held| held.address.ip().to_string()).collect()
}
