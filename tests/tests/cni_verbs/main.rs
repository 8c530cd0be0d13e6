//! The verbs of CNI as runtimes call them: every version, every driver, every capability, through the real executable, daemon and
//! kernel; and what `netctl` says of it.

mod documents;
mod netctl;

use anyhow::{Context, Result, ensure};
use ipamd_api::Phase;
use serde_json::{Value, json};
use std::{net::IpAddr, path::Path, process::Output, time::Duration};
use weft_tests::{
    Cni, CniError, Node, Pod, Sandbox, TestNetns, Uplink,
    echo::{Echo, Protocol, ask},
    poll_until,
};

const PATIENCE: Duration = Duration::from_secs(5);
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn dual(name: &str, number: u8) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": name, "type": "weft",
        "pools": [{"subnet": format!("10.{number}.0.0/24")}, {"subnet": format!("fd00:{number}::/64")}],
    })
}

/// `netconf` with these fields laid over it.
fn with(netconf: &Value, fields: &Value) -> Value {
    let mut netconf = netconf.clone();
    if let (Some(netconf), Some(fields)) = (netconf.as_object_mut(), fields.as_object()) {
        netconf.extend(fields.clone());
    }
    netconf
}

/// The error of a call that must not succeed.
fn refused(call: Result<Result<Value, CniError>>) -> Result<CniError> {
    match call? {
        Ok(answer) => anyhow::bail!("was not refused, but answered {answer}"),
        Err(error) => Ok(error),
    }
}

fn stdout(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// What `netctl inspect` shows of a container's only endpoint.
fn inspected(node: &Node, what: &str) -> Result<Value> {
    let shown: Value = serde_json::from_str(&stdout(&node.netctl(&["inspect", what, "-o", "json"])?)?)?;
    ensure!(
        shown["kind"] == "container" && shown["endpoints"].as_array().is_some_and(|e| e.len() == 1),
        "{shown}"
    );
    Ok(shown["endpoints"][0].clone())
}

fn has_link(netns: &TestNetns, name: &str) -> bool {
    netns.ip(&format!("link show dev {name}")).is_ok()
}

#[test]
fn every_version_has_its_own_form() -> Result<()> {
    let node = Node::start_new("versions")?;
    for version in VERSIONS {
        let sandbox = Sandbox::new()?;
        let netconf =
            with(&dual("forms", 60), &json!({"cniVersion": version, "dns": {"nameservers": ["10.60.0.1"]}}));
        let cni = node.cni()?.container(&format!("form-{version}")).netns(sandbox.path());
        let result = cni.add(&netconf)?;
        ensure!(result["cniVersion"] == version, "{result}");
        let list = |key: &str| result[key].as_array().cloned().unwrap_or_default();
        let (interfaces, ips, routes) = (list("interfaces"), list("ips"), list("routes"));
        ensure!(interfaces.len() == 3 && ips.len() == 2 && routes.len() == 2, "{result}");
        let old = matches!(version, "0.3.0" | "0.3.1" | "0.4.0");
        for (ip, family) in ips.iter().zip(["4", "6"]) {
            ensure!(ip.get("version") == old.then_some(&json!(family)), "{version}: {ip}");
            ensure!(ip["interface"] == 2 && ip["gateway"].is_string(), "{version}: {ip}");
        }
        for interface in &interfaces {
            ensure!(
                interface.get("mtu") == (version == "1.1.0").then_some(&json!(1500)),
                "{version}: {interface}"
            );
            ensure!(interface["mac"].is_string(), "{version}: {interface}");
        }
        ensure!(interfaces[2]["sandbox"] == sandbox.path().display().to_string(), "{result}");
        ensure!(result["dns"]["nameservers"] == json!(["10.60.0.1"]), "{result}");
        let shown = sandbox.ip("addr show dev eth0")?;
        for ip in &ips {
            ensure!(shown.contains(ip["address"].as_str().unwrap_or("?")), "{ip} is not in {shown}");
        }

        let prev = with(&netconf, &json!({"prevResult": result}));
        let check = cni.call("CHECK", &prev)?;
        match check {
            Ok(_) => ensure!(version != "0.3.0" && version != "0.3.1", "{version} has no CHECK"),
            Err(error) => ensure!(version.starts_with("0.3.") && error.code == 1, "{version}: {error}"),
        }
        for verb in ["STATUS", "GC"] {
            let attachments = json!({"cni.dev/valid-attachments": [{"containerID": format!("form-{version}"), "ifname": "eth0"}]});
            match cni.call(verb, &with(&netconf, &attachments))? {
                Ok(_) => ensure!(version == "1.1.0", "{version} has no {verb}"),
                Err(error) => ensure!(version != "1.1.0" && error.code == 1, "{version} {verb}: {error}"),
            }
        }
        cni.del(&prev)?;
        poll_until(PATIENCE, "the interface to go", || !has_link(&sandbox, "eth0"))?;
        cni.del(&prev)?;
    }
    let cni = node.cni()?;
    let version = cni.call("VERSION", &json!({"cniVersion": "1.0.0"}))?.map_err(anyhow::Error::from)?;
    ensure!(version["supportedVersions"] == json!(VERSIONS), "{version}");
    Ok(())
}

#[test]
fn a_container_may_have_interfaces_on_several_networks() -> Result<()> {
    let node = Node::start_new("several")?;
    let [pod, sandbox_b, sandbox_c] = [Sandbox::new()?, Sandbox::new()?, Sandbox::new()?];
    let (front, back) = (dual("front", 61), dual("back", 62));
    let cni = |sandbox: &Sandbox, id: &str, ifname: &str| -> Result<Cni<'_>> {
        Ok(node.cni()?.container(id).netns(sandbox.path()).ifname(ifname))
    };
    // podman may ask for eth1 before eth0.
    let second = cni(&pod, "multi", "eth1")?.add(&back)?;
    let first = cni(&pod, "multi", "eth0")?.add(&front)?;
    let in_front = cni(&sandbox_b, "b", "eth0")?.add(&front)?;
    let in_back = cni(&sandbox_c, "c", "eth0")?.add(&back)?;
    let address = |result: &Value, i: usize| -> Result<String> {
        let text = result["ips"][i]["address"].as_str().with_context(|| format!("{result}"))?;
        Ok(text.split('/').next().unwrap_or_default().to_owned())
    };
    for i in [0, 1] {
        for neighbour in [&in_front, &in_back] {
            ensure!(pod.ping(address(neighbour, i)?)?, "the container does not reach {neighbour}");
        }
        ensure!(sandbox_b.ping(address(&first, i)?)? && sandbox_c.ping(address(&second, i)?)?, "nor they it");
        ensure!(!sandbox_b.ping(address(&in_back, i)?)?, "and networks stay apart");
    }
    // The first network keeps the default routes; the second's result does not claim any.
    let defaults = pod.ip("route show default")?;
    ensure!(defaults.lines().count() == 1 && defaults.contains("dev eth1"), "{defaults}");
    ensure!(first["routes"].as_array().is_none_or(Vec::is_empty), "{first}");
    cni(&pod, "multi", "eth0")?.check(&front, &first)?;
    cni(&pod, "multi", "eth1")?.check(&back, &second)?;
    let shown: Value = serde_json::from_str(&stdout(&node.netctl(&["inspect", "multi", "-o", "json"])?)?)?;
    ensure!(shown["endpoints"].as_array().is_some_and(|e| e.len() == 2), "{shown}");
    // One goes, the other stays.
    cni(&pod, "multi", "eth1")?.del(&with(&back, &json!({"prevResult": second})))?;
    poll_until(PATIENCE, "eth1 to go", || !has_link(&pod, "eth1"))?;
    ensure!(pod.ping(address(&in_front, 0)?)?, "eth0 works on");
    cni(&pod, "multi", "eth0")?.check(&front, &first)?;
    Ok(())
}

#[test]
fn addresses_are_given_or_asked_for() -> Result<()> {
    let node = Node::start_new("static")?;
    let netconf = dual("mixed", 63);
    /// Name, fields of the netconf, `CNI_ARGS`, and the addresses that have to come; none: any.
    type Row<'a> = (&'a str, Value, Option<&'a str>, [Option<&'a str>; 2]);
    let table: [Row<'_>; 7] = [
        ("dynamic", json!({}), None, [None, None]),
        (
            "ips",
            json!({"runtimeConfig": {"ips": ["10.63.0.50/24", "fd00:63::50/64"]}}),
            None,
            [Some("10.63.0.50"), Some("fd00:63::50")],
        ),
        ("one-family", json!({"runtimeConfig": {"ips": ["fd00:63::51"]}}), None, [None, Some("fd00:63::51")]),
        ("bare", json!({"runtimeConfig": {"ips": ["10.63.0.52"]}}), None, [Some("10.63.0.52"), None]),
        ("args", json!({"args": {"cni": {"ips": ["10.63.0.53"]}}}), None, [Some("10.63.0.53"), None]),
        ("cni-args", json!({}), Some("IP=10.63.0.54,fd00:63::54"), [Some("10.63.0.54"), Some("fd00:63::54")]),
        (
            "strongest",
            json!({"runtimeConfig": {"ips": ["10.63.0.55"]}, "args": {"cni": {"ips": ["10.63.0.56"]}}}),
            Some("IP=10.63.0.57"),
            [Some("10.63.0.55"), None],
        ),
    ];
    for (what, fields, args, wanted) in &table {
        let sandbox = Sandbox::new()?;
        let mut cni = node.cni()?.container(what).netns(sandbox.path());
        if let Some(args) = args {
            cni = cni.args(args);
        }
        let result = cni.add(&with(&netconf, fields)).context(*what)?;
        let shown = inspected(&node, what)?;
        for (i, (wanted, length)) in wanted.iter().zip(["/24", "/64"]).enumerate() {
            let got = result["ips"][i]["address"].as_str().unwrap_or_default();
            ensure!(got.ends_with(length), "{what}: {got}");
            let origin = if wanted.is_some() { "static" } else { "dynamic" };
            ensure!(wanted.is_none_or(|w| got == format!("{w}{length}")), "{what}: {got}, not {wanted:?}");
            ensure!(
                shown["addresses"][i]["address"] == got && shown["addresses"][i]["origin"] == origin,
                "{what}: {shown}"
            );
        }
        ensure!(
            sandbox.ping("10.63.0.1")? && sandbox.ping("fd00:63::1")?,
            "{what} does not reach the gateway"
        );
    }
    for (name, subnet) in [("only4", "10.64.0.0/24"), ("only6", "fd00:64::/64")] {
        let netconf = json!({"cniVersion": "1.1.0", "name": name, "type": "weft", "subnet": subnet});
        let pod = Pod::add(&node, name, &netconf)?;
        ensure!(pod.addresses().len() == 1, "{}", pod.result);
        let gateway: IpAddr = pod.result["ips"][0]["gateway"].as_str().context("a gateway")?.parse()?;
        ensure!(pod.ping(gateway)?, "{name}");
        pod.del(&node, &netconf)?;
    }
    Ok(())
}

#[test]
fn other_drivers_wire_otherwise() -> Result<()> {
    let node = Node::start_new("drivers")?;
    let outside = Uplink::bare(&node)?;
    outside.ip("addr add 10.65.0.1/24 dev ext0")?;
    let netconf = json!({
        "cniVersion": "1.1.0", "name": "lan", "type": "weft", "driver": "macvlan", "parent": "up0",
        "subnet": "10.65.0.0/24", "dynamicRange": "10.65.0.128/25",
    });
    let [a, b] = [Pod::add(&node, "mac-a", &netconf)?, Pod::add(&node, "mac-b", &netconf)?];
    ensure!(a.ip("-d link show dev eth0")?.contains("macvlan"), "no macvlan");
    let _server = Echo::start(&outside, "lan", "10.65.0.1:7000".parse()?)?;
    for pod in [&a, &b] {
        ensure!(pod.ping("10.65.0.1")?, "a container on the LAN reaches its router");
        let answer = ask(pod, Protocol::Tcp, "10.65.0.1:7000".parse()?, 6000)?;
        ensure!(answer.client == IpAddr::V4(pod.ipv4()?), "{answer:?}");
        node.cni()?.container(&pod.id).netns(pod.path()).check(&netconf, &pod.result)?;
    }
    ensure!(a.ping(b.ipv4()?)?, "neighbours on the LAN");
    ensure!(inspected(&node, "mac-a")?["network"] == "lan", "inspect");
    a.del(&node, &netconf)?;
    poll_until(PATIENCE, "the macvlan to go", || !has_link(&a, "eth0"))?;

    for driver in ["host", "none"] {
        let netconf = json!({"cniVersion": "1.0.0", "name": driver, "type": "weft", "driver": driver});
        let pod = Pod::add(&node, driver, &netconf)?;
        ensure!(pod.result.get("interfaces").is_none() && pod.result.get("ips").is_none(), "{}", pod.result);
        ensure!(!has_link(&pod, "eth0"), "{driver} wires nothing");
        node.cni()?.container(driver).netns(pod.path()).check(&netconf, &pod.result)?;
        ensure!(inspected(&node, driver)?["phase"] == "live", "inspect {driver}");
        pod.del(&node, &netconf)?;
        let gone = || {
            node.netctl(&["inspect", driver])
                .is_ok_and(|o| !String::from_utf8_lossy(&o.stdout).contains("eth0"))
        };
        poll_until(PATIENCE, "the endpoint to go", gone)?;
    }
    Ok(())
}

#[test]
fn capabilities_and_arguments_are_kept() -> Result<()> {
    let node = Node::start_new("capabilities")?;
    let netconf = dual("capable", 66);
    // As CONVENTIONS.md writes the keys, and as containerd sends them.
    let camel = json!({
        "ips": ["10.66.0.9"], "mac": "02:00:00:00:66:09", "aliases": {"capable": ["web", "www"], "other": ["no"]},
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 20_000, "egressRate": 2_000_000, "egressBurst": 40_000},
        "dns": {"servers": ["10.66.0.1"], "searches": ["x.example"], "options": ["ndots:2"]},
    });
    let pascal = json!({
        "ips": ["10.66.0.9"], "mac": "02:00:00:00:66:09", "aliases": ["web", "www"],
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "127.0.0.1"}],
        "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 20_000, "EgressRate": 2_000_000, "EgressBurst": 40_000},
        "dns": {"Servers": ["10.66.0.1"], "Searches": ["x.example"], "Options": ["ndots:2"]},
    });
    let args =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;FOO=bar";
    for (id, config) in [("camel", camel), ("pascal", pascal)] {
        let sandbox = Sandbox::new()?;
        let cni = node.cni()?.container(id).netns(sandbox.path()).args(args);
        let netconf = with(&netconf, &json!({"runtimeConfig": config}));
        let result = cni.add(&netconf).context(id)?;
        let shown = inspected(&node, id)?;
        let options = &shown["options"];
        ensure!(options["aliases"] == json!(["web", "www"]), "{id}: {options}");
        let port = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIp": "127.0.0.1"});
        ensure!(options["portMappings"] == json!([port]), "{id}: {options}");
        let limits = json!({"ingressRate": 1_000_000, "ingressBurst": 20_000, "egressRate": 2_000_000, "egressBurst": 40_000});
        ensure!(options["bandwidth"] == limits, "{id}: {options}");
        let dns = json!({"nameservers": ["10.66.0.1"], "search": ["x.example"], "options": ["ndots:2"]});
        ensure!(options["dns"] == dns && result["dns"] == dns, "{id}: {options} {result}");
        ensure!(shown["mac"] == "02:00:00:00:66:09" && options["mac"] == shown["mac"], "{id}: {shown}");
        ensure!(sandbox.ip("link show dev eth0")?.contains("02:00:00:00:66:09"), "{id}: the MAC");
        ensure!(sandbox.ping("10.66.0.1")?, "{id}: a MAC of one's own is no spoofed one");
        let labels = &options["labels"];
        ensure!(labels["K8S_POD_NAME"] == "web-0" && labels["K8S_POD_NAMESPACE"] == "shop", "{id}: {labels}");
        ensure!(labels.get("FOO").is_none(), "{id}: {labels}");
        // By its pod's name too.
        ensure!(inspected(&node, "web-0")?["attachment"]["containerId"] == id, "{id}: by name");
        cni.del(&with(&netconf, &json!({"prevResult": result})))?;
        let gone = || node.netctl(&["inspect", id]).is_ok_and(|o| !o.status.success());
        poll_until(PATIENCE, "the endpoint to go", gone)?;
    }
    Ok(())
}

#[test]
fn add_again_is_the_same_or_refused() -> Result<()> {
    let node = Node::start_new("again")?;
    let netconf = dual("again", 67);
    let mut pod = Pod::add(&node, "again", &netconf)?;
    pod.sandbox().start_process()?;
    let cni = node.cni()?.container("again").netns(pod.path());
    ensure!(cni.add(&netconf)? == pod.result, "the same call has the same result");
    let other = with(&netconf, &json!({"runtimeConfig": {"ips": ["10.67.0.99"]}}));
    let error = refused(cni.call("ADD", &other))?;
    ensure!(error.code == 106 && error.msg.contains("again/eth0") && error.msg.contains("DEL"), "{error}");
    let error = refused(cni.call("ADD", &dual("elsewhere", 68)))?;
    ensure!(error.code == 106 && error.msg.contains("network again"), "{error}");
    // The network of the refused call did not come to be.
    let networks = stdout(&node.netctl(&["network", "ls", "-o", "json"])?)?;
    ensure!(!networks.contains("elsewhere"), "{networks}");
    // The same container ID in another sandbox while the first one lives, and when nobody is in it any more.
    let sandbox = Sandbox::new()?;
    let elsewhere = node.cni()?.container("again").netns(sandbox.path());
    let error = refused(elsewhere.call("ADD", &netconf))?;
    ensure!(error.code == 106 && error.msg.contains("again/eth0") && error.msg.contains("DEL"), "{error}");
    ensure!(
        pod.ping("10.67.0.1")? && !has_link(&sandbox, "eth0"),
        "the first one works, the other has nothing"
    );
    pod.sandbox().stop_process();
    elsewhere.add(&netconf)?;
    ensure!(sandbox.ping("10.67.0.1")?, "the second one works");
    poll_until(PATIENCE, "the first one to go", || !has_link(&pod, "eth0"))?;
    Ok(())
}

#[test]
fn del_is_patient() -> Result<()> {
    let node = Node::start_new("del")?;
    let netconf = dual("del", 69);
    let nowhere = node.cni()?.container("never").variable("CNI_NETNS", None);
    nowhere.del(&netconf)?;
    node.cni()?.container("never").netns("/no/such/path").del(&dual("never-made", 70))?;

    // containerd: Stop with everything, then twice with an empty CNI_NETNS and no prevResult.
    let mut pod = Pod::add(&node, "pod", &netconf)?;
    pod.sandbox().start_process()?;
    let empty = node.cni()?.container("pod").variable("CNI_NETNS", Some("".into()));
    // Nothing proves that this means the living sandbox: it must not be touched.
    empty.del(&netconf)?;
    ensure!(pod.ping("10.69.0.1")?, "a DEL that proves nothing took a living sandbox down");
    pod.del(&node, &netconf)?;
    let phases = || -> Vec<Phase> {
        let all: Vec<ipamd_api::EndpointView> =
            node.client().get(ipamd_api::path::ENDPOINTS).unwrap_or_default();
        all.iter().map(|e| e.phase).collect()
    };
    poll_until(PATIENCE, "the endpoint to go", || phases().is_empty())?;
    empty.del(&netconf)?;
    empty.del(&netconf)?;

    // The runtime crashed before its DEL: the sandbox is gone, and the DEL knows nothing. Twice.
    let mut pod = Pod::add(&node, "lost", &netconf)?;
    pod.sandbox().unmount()?;
    drop(pod);
    let empty = node.cni()?.container("lost").variable("CNI_NETNS", Some("".into()));
    // Whether the namespace is really gone takes the kernel a moment, in which its number may be another's already.
    let freed = || empty.del(&netconf).is_ok() && phases().is_empty();
    poll_until(PATIENCE, "the lost endpoint to go", freed)?;
    empty.del(&netconf)?;

    // A DEL that comes late frees nothing of the next generation.
    let first = Pod::add(&node, "reborn", &netconf)?;
    first.del(&node, &netconf)?;
    let second = Pod::add(&node, "reborn", &netconf)?;
    first.del(&node, &netconf)?;
    node.cni()?.container("reborn").netns(second.path()).check(&netconf, &second.result)?;
    ensure!(second.ping("10.69.0.1")?, "a delayed DEL freed the next generation");
    Ok(())
}

#[test]
fn check_names_what_is_gone() -> Result<()> {
    let node = Node::start_new("check")?;
    let netconf = dual("checked", 71);
    // What someone does by hand, in the sandbox or on the host, and what CHECK must name.
    let table: [(&str, bool, &[&str]); 8] = [
        ("link delete eth0", true, &["eth0"]),
        ("addr del {ip4} dev eth0", true, &["address {ip4} on eth0"]),
        ("-6 addr del {ip6} dev eth0", true, &["address {ip6} on eth0"]),
        ("route del default", true, &["default via 10.71.0.1"]),
        ("-6 route del default", true, &["default via fd00:71::1"]),
        ("link set eth0 mtu 1300", true, &["MTU of eth0", "1300", "1500"]),
        ("link set {host} nomaster", false, &["bridge of {host}"]),
        ("link delete {host}", false, &["{host}"]),
    ];
    for (i, (damage, inside, words)) in table.iter().enumerate() {
        let pod = Pod::add(&node, &format!("check{i}"), &netconf)?;
        let cni = node.cni()?.container(&pod.id).netns(pod.path());
        cni.check(&netconf, &pod.result).with_context(|| format!("before {damage}"))?;
        let host_link = pod.endpoint()?.host_ifname();
        let [ip4, ip6] = [&pod.result["ips"][0]["address"], &pod.result["ips"][1]["address"]];
        let fill = |text: &str| {
            let text = text
                .replace("{ip4}", ip4.as_str().unwrap_or("?"))
                .replace("{ip6}", ip6.as_str().unwrap_or("?"));
            text.replace("{host}", &host_link)
        };
        let netns: &TestNetns = if *inside { &pod } else { node.netns() };
        netns.ip(&fill(damage))?;
        let error = refused(cni.call("CHECK", &with(&netconf, &json!({"prevResult": pod.result}))))?;
        ensure!(error.code == 111, "after {damage}: {error}");
        for word in *words {
            ensure!(error.msg.contains(&fill(word)), "after {damage}, no {word:?} in {error}");
        }
        ensure!(error.details.contains("mend it by"), "{error}");
        // An ADD again says the same instead of a result that is not true.
        let error = refused(cni.call("ADD", &netconf))?;
        ensure!(error.code == 111, "ADD after {damage}: {error}");
        pod.del(&node, &netconf)?;
    }
    let gone = node.cni()?.container("unknown").netns(node.netns().path());
    let error =
        refused(gone.call("CHECK", &with(&netconf, &json!({"prevResult": {"cniVersion": "1.0.0"}}))))?;
    ensure!(error.code == 3 && error.msg.contains("unknown/eth0"), "{error}");
    Ok(())
}

#[test]
fn gc_frees_what_the_runtime_lost_and_nothing_else() -> Result<()> {
    let node = Node::start_new("gc")?;
    let netconf = with(&dual("collected", 74), &json!({"cniVersion": "1.1.0", "runtime": "one"}));
    let others = with(&netconf, &json!({"runtime": "two"}));
    let mut kept = Pod::add(&node, "kept", &netconf)?;
    let mut alive = Pod::add(&node, "alive", &netconf)?;
    let empty = Pod::add(&node, "empty", &netconf)?;
    let foreign = Pod::add(&node, "foreign", &others)?;
    kept.sandbox().start_process()?;
    alive.sandbox().start_process()?;
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    node.cni()?.call("GC", &with(&netconf, &valid))??;
    poll_until(PATIENCE, "what the runtime lost to go", || !has_link(&empty, "eth0"))?;
    for pod in [&kept, &alive, &foreign] {
        ensure!(pod.ping("10.74.0.1")?, "{} was collected", pod.id);
    }
    node.cni()?.call("STATUS", &netconf)??;
    ensure!(Path::new(&node.run_dir()).join("ipamd.sock").exists(), "and ipamd is there");
    Ok(())
}
