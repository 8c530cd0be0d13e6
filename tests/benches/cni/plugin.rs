//! CNI executables, called as libcni calls them: one process for each plugin of the chain, netconf on stdin, the result of
//! the one before as `prevResult`, DEL in reverse order.

use crate::candidate::{Candidate, Held, Places};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use weft_tests::{Sandbox, binaries};

/// Where Debian's package `containernetworking-plugins` puts them.
const REFERENCE: &str = "/usr/lib/cni";

const VERSION: &str = "1.0.0";

/// First port of the node that `portmap` publishes; each call has the next.
const FIRST_PORT: usize = 20_000;

/// Calls one executable.
fn call(program: &Path, verb: &str, sandbox: &Sandbox, call: usize, netconf: &Value) -> Result<Value> {
    let mut child = Command::new(program)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("bench{call}"))
        .env("CNI_NETNS", sandbox.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", program.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {}", program.display()))?;
    let mut stdin = child.stdin.take().context("stdin of a plugin is a pipe")?;
    // VERSION reads nothing; a plugin that fails early says why on its output.
    let _ = stdin.write_all(netconf.to_string().as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("waiting for a plugin")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{verb} by {} ended with {}: {said} {complaint}", program.display(), output.status);
    }
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&said).with_context(|| format!("{verb} by {} printed {said:?}", program.display()))
}

fn with_prev(netconf: &Value, prev: &Value) -> Value {
    let mut netconf = netconf.clone();
    if let (Some(fields), false) = (netconf.as_object_mut(), prev.is_null()) {
        fields.insert("prevResult".into(), prev.clone());
    }
    netconf
}

/// The host's link and the address in a result of version 1.0.0.
fn held(result: Value, prefix: &str) -> Result<Held> {
    let interfaces = result["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = interfaces.iter().filter_map(|i| i["name"].as_str());
    let link = names.filter(|n| n.starts_with(prefix)).find(|n| !n.starts_with("wf-"));
    let link = link.with_context(|| format!("no host link in {result}"))?.to_owned();
    let address = result["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
    Ok(Held { result, link, address })
}

/// Weft, as a runtime calls it.
pub(crate) struct Weft {
    program: PathBuf,
    netconf: Value,
}

impl Weft {
    pub(crate) fn new(places: &Places<'_>) -> Result<Self> {
        let netconf = json!({
            "cniVersion": VERSION, "name": "bench", "type": "weft", "subnet": "10.231.0.0/16",
            "runDir": places.node.run_dir(),
        });
        Ok(Self { program: binaries::find("weft")?, netconf })
    }
}

impl Candidate for Weft {
    fn name(&self) -> &'static str {
        "weft"
    }

    fn add(&self, sandbox: &Sandbox, number: usize) -> Result<Held> {
        held(call(&self.program, "ADD", sandbox, number, &self.netconf)?, "wf")
    }

    fn del(&self, sandbox: &Sandbox, number: usize, before: &Held) -> Result<()> {
        let netconf = with_prev(&self.netconf, &before.result);
        call(&self.program, "DEL", sandbox, number, &netconf).map(drop)
    }
}

/// A process that does next to nothing: the executable's answer to VERSION.
pub(crate) fn version(sandbox: &Sandbox) -> Result<()> {
    call(&binaries::find("weft")?, "VERSION", sandbox, 0, &json!({"cniVersion": VERSION})).map(drop)
}

/// The reference plugins: `bridge` with `host-local`, perhaps `portmap` behind it. No masquerading, which Weft does not do
/// here either: with it the reference ADD is slower.
pub(crate) struct Reference {
    name: &'static str,
    bridge: Value,
    portmap: bool,
}

impl Reference {
    pub(crate) fn bridge(places: &Places<'_>) -> Result<Self> {
        Self::new(places, "bridge+host-local", "bench-ref", "10.232.0.0/16", false)
    }

    pub(crate) fn bridge_and_portmap(places: &Places<'_>) -> Result<Self> {
        Self::new(places, "bridge+host-local+portmap", "bench-map", "10.233.0.0/16", true)
    }

    fn new(
        places: &Places<'_>,
        name: &'static str,
        network: &str,
        subnet: &str,
        portmap: bool,
    ) -> Result<Self> {
        let program = Path::new(REFERENCE).join("bridge");
        if !program.is_file() {
            bail!("{} is missing: run `cargo xtask setup`", program.display());
        }
        let bridge = json!({
            "cniVersion": VERSION, "name": network, "type": "bridge", "bridge": network, "isGateway": true,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": places.leases(),
            },
        });
        Ok(Self { name, bridge, portmap })
    }

    fn portmap(&self, number: usize) -> Value {
        let mapping = json!({"hostPort": FIRST_PORT + number, "containerPort": 80, "protocol": "tcp"});
        json!({
            "cniVersion": VERSION, "name": self.bridge["name"], "type": "portmap",
            "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [mapping]},
        })
    }
}

impl Candidate for Reference {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_peer(&self) -> bool {
        true
    }

    fn add(&self, sandbox: &Sandbox, number: usize) -> Result<Held> {
        let folder = Path::new(REFERENCE);
        let mut result = call(&folder.join("bridge"), "ADD", sandbox, number, &self.bridge)?;
        if self.portmap {
            let netconf = with_prev(&self.portmap(number), &result);
            result = call(&folder.join("portmap"), "ADD", sandbox, number, &netconf)?;
        }
        held(result, "veth")
    }

    fn del(&self, sandbox: &Sandbox, number: usize, before: &Held) -> Result<()> {
        let folder = Path::new(REFERENCE);
        if self.portmap {
            let netconf = with_prev(&self.portmap(number), &before.result);
            call(&folder.join("portmap"), "DEL", sandbox, number, &netconf)?;
        }
        let netconf = with_prev(&self.bridge, &before.result);
        call(&folder.join("bridge"), "DEL", sandbox, number, &netconf).map(drop)
    }
}
