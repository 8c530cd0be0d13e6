//! Bad input: a clear error, nothing changed, nothing lost. After every refused call the node is as it was before.

use anyhow::{Context, Result, ensure};
use ipamd_api::{EndpointView, NetworkView, path};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};
use weft_tests::{Cni, Inventory, Node, Pod, Sandbox, TestNetns, inventory};

const PATIENCE: Duration = Duration::from_secs(15);

/// What a call must leave as it is.
#[derive(Debug, PartialEq)]
struct State {
    inventory: Inventory,
    networks: Vec<NetworkView>,
    endpoints: Vec<EndpointView>,
    host: String,
    sandbox: String,
}

impl State {
    fn of(node: &Node, sandbox: &Sandbox) -> Result<Self> {
        // Link-local addresses of the bridges are tentative for a second, by themselves.
        let addresses =
            |netns: &TestNetns| Ok::<_, anyhow::Error>(netns.ip("-o addr show")?.replace(" tentative", ""));
        Ok(Self {
            inventory: Inventory::of(node)?,
            networks: node.client().get(path::NETWORKS)?,
            endpoints: node.client().get(path::ENDPOINTS)?,
            host: addresses(node.netns())? + &node.netns().ip("-o neigh show nud permanent")?,
            sandbox: addresses(sandbox)?,
        })
    }
}

/// Standard input of a call.
enum Input {
    Netconf(Value),
    Raw(Vec<u8>),
}

/// The lines in which two states differ.
fn difference(before: &State, after: &State) -> String {
    let [before, after] = [before, after].map(|state| format!("{state:#?}").replace("\\n", "\n"));
    let only = |a: &str, b: &str| -> String {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).collect::<Vec<_>>().join("\n")
    };
    format!("before:\n{}\nafter:\n{}", only(&before, &after), only(&after, &before))
}

/// A call that must be refused: what it is, how, and what the error must be and say.
struct Case<'a> {
    what: String,
    cni: Cni<'a>,
    verb: &'static str,
    input: Input,
    code: u32,
    words: Vec<String>,
}

/// The node of the table, with what the calls run into.
struct Scene {
    // In the order in which they have to go.
    holder: Pod,
    tiny: Sandbox,
    victim: Sandbox,
    node: Node,
}

fn base() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "base", "type": "weft",
        "pools": [{"subnet": "10.90.0.0/24", "reserved": ["10.90.0.20"]}, {"subnet": "fd00:90::/64"}],
    })
}

fn tiny() -> Value {
    json!({"cniVersion": "1.0.0", "name": "tiny", "type": "weft", "subnet": "10.91.0.0/30"})
}

/// A netconf of a network that does not exist yet, with these fields.
fn fresh(fields: &Value) -> Value {
    with(&json!({"cniVersion": "1.0.0", "name": "fresh", "type": "weft"}), fields)
}

fn with(netconf: &Value, fields: &Value) -> Value {
    let mut netconf = netconf.clone();
    if let (Some(netconf), Some(fields)) = (netconf.as_object_mut(), fields.as_object()) {
        netconf.extend(fields.clone());
    }
    netconf
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::builder("bad").settings("request_timeout = 1").start()?;
        let holding = with(&base(), &json!({"runtimeConfig": {"ips": ["10.90.0.10"]}}));
        let holder = Pod::add(&node, "holder", &holding)?;
        let held = Sandbox::new()?;
        let cni = node.cni()?.container("tiny-holder").netns(held.path());
        cni.args("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=greedy").add(&tiny())?;
        Ok(Self { holder, tiny: held, victim: Sandbox::new()?, node })
    }

    /// A call in which everything is right but for what the case changes.
    fn cni(&self) -> Result<Cni<'_>> {
        Ok(self.node.cni()?.container("victim").netns(self.victim.path()))
    }

    fn case(&self, what: &str, input: Input, code: u32, words: &[&str]) -> Result<Case<'_>> {
        let words = words.iter().map(|w| (*w).to_owned()).collect();
        Ok(Case { what: what.to_owned(), cni: self.cni()?, verb: "ADD", input, code, words })
    }

    /// What stands on standard input.
    fn frames(&self) -> Result<Vec<Case<'_>>> {
        let raw = |text: &str| Input::Raw(text.as_bytes().to_vec());
        let mut cases = vec![
            self.case("no JSON", raw("{\"cniVersion\": "), 6, &["not JSON"])?,
            self.case("nothing", raw(""), 6, &["standard input is empty"])?,
            self.case("a list", raw("[]"), 6, &["no object"])?,
            self.case("binary", Input::Raw(vec![0xff; 64]), 6, &["not JSON"])?,
            self.case("deep nesting", raw(&"[".repeat(100_000)), 6, &["not JSON"])?,
            self.case("no version", raw("{\"name\": \"fresh\"}"), 1, &["0.1.0", "1.1.0"])?,
        ];
        for version in ["0.1.0", "0.2.0", "2.0.0", "1.0", "latest"] {
            let input = Input::Netconf(fresh(&json!({"cniVersion": version})));
            cases.push(self.case(&format!("version {version}"), input, 1, &[version, "0.3.1", "1.1.0"])?);
        }
        Ok(cases)
    }

    /// What a netconf asks for.
    fn netconfs(&self) -> Result<Vec<Case<'_>>> {
        let table: Vec<(Value, u32, &[&str])> = vec![
            // Wrong types.
            (json!({"name": 5}), 6, &["\"name\" is 5", "text"]),
            (json!({"subnet": ["10.92.0.0/24"]}), 6, &["\"subnet\" is a list"]),
            (json!({"pools": {"subnet": "10.92.0.0/24"}}), 6, &["\"pools\" is an object", "a list"]),
            (json!({"mtu": "1500"}), 6, &["\"mtu\"", "whole number"]),
            (json!({"internal": "yes"}), 6, &["\"internal\"", "true or false"]),
            (json!({"runtimeConfig": []}), 6, &["\"runtimeConfig\" is a list"]),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": "80", "containerPort": 80}]}}),
                6,
                &["hostPort"],
            ),
            (json!({"runtimeConfig": {"ips": "10.92.0.5"}}), 6, &["ips"]),
            (json!({"routes": ["0.0.0.0/0"]}), 6, &["routes"]),
            (json!({"prevResult": "none"}), 6, &["prevResult"]),
            (json!({"dns": {"nameservers": "10.0.0.1"}}), 6, &["nameservers"]),
            // Names.
            (json!({"name": ""}), 7, &["\"name\" is missing"]),
            (json!({"name": "../etc"}), 7, &["../etc", "letter or digit"]),
            (json!({"name": "a b"}), 7, &["a b"]),
            (json!({"name": "n".repeat(256)}), 7, &["255"]),
            // Pools.
            (json!({"subnet": "10.92.0.0/33"}), 7, &["subnet", "10.92.0.0/33"]),
            (json!({"subnet": "10.92.0.300/24"}), 7, &["10.92.0.300/24"]),
            (json!({"subnet": "ten"}), 7, &["\"ten\""]),
            (json!({"subnet": "10.92.0.5/24"}), 7, &["10.92.0.5/24", "10.92.0.0/24"]),
            (json!({"subnet": "10.92.0.0/32"}), 7, &["10.92.0.0/32", "too small"]),
            (json!({"subnet": "fd00:92::/128"}), 7, &["fd00:92::/128", "too small"]),
            (json!({"subnet": "127.0.0.0/8"}), 7, &["127.0.0.0/8", "loopback"]),
            (json!({"subnet": "224.1.0.0/16"}), 7, &["multicast"]),
            (json!({"subnet": "fe80::/64"}), 7, &["link-local"]),
            (json!({"subnet": "::ffff:10.0.0.0/120"}), 7, &["IPv4-mapped"]),
            (json!({"subnet": "10.90.0.0/16"}), 7, &["10.90.0.0/16", "base", "10.90.0.0/24"]),
            (json!({"subnet": "10.91.0.0/31"}), 7, &["10.91.0.0/31"]),
            (
                json!({"pools": [{"subnet": "10.92.0.0/24"}, {"subnet": "10.92.0.128/25"}]}),
                7,
                &["more than one IPv4 pool"],
            ),
            (
                json!({"pools": [{"subnet": "10.92.0.0/24"}], "subnet": "10.93.0.0/24"}),
                7,
                &["\"subnet\"", "\"pools\""],
            ),
            (json!({"pools": [{"subnets": "10.92.0.0/24"}]}), 2, &["pools[0].subnets"]),
            (json!({"gateway": "10.92.0.1"}), 7, &["gateway", "without \"subnet\""]),
            (
                json!({"subnet": "10.92.0.0/24", "gateway": "10.93.0.1"}),
                7,
                &["gateway 10.93.0.1", "10.92.0.0/24"],
            ),
            (json!({"subnet": "10.92.0.0/24", "gateway": "fd00::1"}), 7, &["gateway fd00::1"]),
            (json!({"subnet": "10.92.0.0/24", "gateway": "10.92.0.255"}), 7, &["10.92.0.255", "broadcast"]),
            (json!({"subnet": "10.92.0.0/24", "gateway": "gate"}), 7, &["\"gate\""]),
            (
                json!({"subnet": "10.92.0.0/24", "dynamicRange": "10.93.0.0/25"}),
                7,
                &["dynamicRange 10.93.0.0/25"],
            ),
            (
                json!({"subnet": "10.92.0.0/24", "dynamicRange": "10.92.0.1/32"}),
                7,
                &["10.92.0.1/32", "too small"],
            ),
            (json!({"subnet": "10.92.0.0/24", "reserved": ["10.93.0.5"]}), 7, &["reserved 10.93.0.5"]),
            // The rest of a network.
            (json!({"mtu": 67}), 7, &["MTU 67", "68"]),
            (json!({"mtu": 65536}), 7, &["MTU 65536", "65535"]),
            (json!({"mtu": -1}), 7, &["-1"]),
            (json!({"mtu": 1.5}), 7, &["1.5"]),
            (json!({"subnet": "fd00:92::/64", "mtu": 1279}), 7, &["MTU 1279", "1280"]),
            (json!({"driver": "overlay9"}), 2, &["overlay9", "bridge"]),
            (json!({"driver": "macvlan"}), 7, &["macvlan", "parent"]),
            (json!({"driver": "macvlan", "parent": "a/b"}), 7, &["a/b"]),
            (
                json!({"driver": "macvlan", "parent": "nothere0", "subnet": "10.92.0.0/24"}),
                118,
                &["nothere0"],
            ),
            (json!({"driver": "bridge", "parent": "lo"}), 7, &["parent lo", "macvlan"]),
            (json!({"driver": "none", "subnet": "10.92.0.0/24"}), 7, &["none", "subnet"]),
            (json!({"hooks": "xdp"}), 2, &["xdp", "clsact"]),
            (json!({"ipam": {"type": "host-local"}}), 2, &["ipam.type", "host-local"]),
            (json!({"runDir": "relative"}), 7, &["runDir", "absolute"]),
            // What the container is to have.
            (
                json!({"subnet": "10.92.0.0/24", "routes": [{"dst": "192.0.2.0/24", "gw": "10.99.0.1"}]}),
                7,
                &["192.0.2.0/24", "10.99.0.1"],
            ),
            (
                json!({"subnet": "10.92.0.0/24", "routes": [{"dst": "2001:db8::/32"}]}),
                7,
                &["2001:db8::/32", "IPv6"],
            ),
            (json!({"routes": [{"gw": "10.99.0.1"}]}), 7, &["dst"]),
            (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), 7, &["01:00:5e:00:00:01", "group"]),
            (json!({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}), 7, &["00:00:00:00:00:00"]),
            (json!({"runtimeConfig": {"mac": "02:00:00"}}), 7, &["02:00:00"]),
            (json!({"runtimeConfig": {"ips": ["10.92.0.0.1"]}}), 7, &["10.92.0.0.1"]),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}}),
                7,
                &["hostPort", "0"],
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 65536, "containerPort": 80}]}}),
                7,
                &["65536"],
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}}),
                2,
                &["icmp"],
            ),
        ];
        let cases = table.iter().map(|(fields, code, words)| {
            self.case(&fields.to_string(), Input::Netconf(fresh(fields)), *code, words)
        });
        cases.collect()
    }

    /// What contradicts what is there, or is held already.
    fn contradictions(&self) -> Result<Vec<Case<'_>>> {
        let ips = |ips: &[&str]| json!({"runtimeConfig": {"ips": ips}});
        let table: Vec<(Value, u32, &[&str])> = vec![
            (with(&base(), &ips(&["10.90.0.10"])), 102, &["10.90.0.10", "holder/eth0", "base"]),
            (with(&base(), &ips(&["10.90.0.20"])), 103, &["10.90.0.20", "reserved"]),
            (with(&base(), &ips(&["10.90.0.1"])), 103, &["10.90.0.1", "gateway"]),
            (with(&base(), &ips(&["10.90.0.0"])), 103, &["10.90.0.0", "network address"]),
            (with(&base(), &ips(&["10.90.0.255"])), 103, &["broadcast"]),
            (with(&base(), &ips(&["fd00:90::"])), 103, &["anycast"]),
            (with(&base(), &ips(&["192.0.2.1"])), 103, &["192.0.2.1", "base"]),
            (with(&base(), &ips(&["10.90.0.30", "10.90.0.31"])), 103, &["one address of a family"]),
            (with(&tiny(), &ips(&["fd00::5"])), 103, &["fd00::5", "family"]),
            (with(&base(), &ips(&["10.90.0.10", "fd00:90::77"])), 102, &["10.90.0.10"]),
            (tiny(), 101, &["10.91.0.0/30", "tiny", "1 of 1", "namespace shop", ": 1"]),
            (with(&base(), &json!({"mtu": 9000})), 100, &["mtu", "1500", "9000"]),
            (with(&base(), &json!({"driver": "macvlan"})), 100, &["driver", "bridge", "macvlan"]),
            (with(&base(), &json!({"internal": true})), 100, &["internal", "false", "true"]),
            (with(&base(), &json!({"hooks": "tcx"})), 100, &["clsact", "tcx"]),
            (
                with(&tiny(), &json!({"subnet": "10.91.4.0/30"})),
                100,
                &["10.91.0.0/30", "10.91.4.0/30", "netctl network rm tiny"],
            ),
            (with(&tiny(), &json!({"gateway": "10.91.0.2"})), 100, &["gateway", "10.91.0.1", "10.91.0.2"]),
        ];
        let cases = table.iter().map(|(netconf, code, words)| {
            self.case(&netconf.to_string(), Input::Netconf(netconf.clone()), *code, words)
        });
        cases.collect()
    }

    /// What the variables say.
    fn variables<'a>(&'a self) -> Result<Vec<Case<'a>>> {
        let long_id = "i".repeat(256);
        let mut cases = Vec::new();
        let mut add = |what: String, cni: Cni<'a>, code: u32, words: &[&str]| -> Result<()> {
            cases.push(Case { cni, ..self.case(&what, Input::Netconf(base()), code, words)? });
            Ok(())
        };
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            add(format!("no {name}"), self.cni()?.variable(name, None), 4, &[name])?;
            add(format!("empty {name}"), self.cni()?.variable(name, Some("".into())), 4, &[name])?;
        }
        for id in ["../x", "a/b", "a b", "-a", "ä", &long_id] {
            add(format!("container ID {id}"), self.cni()?.container(id), 4, &["CNI_CONTAINERID"])?;
        }
        for name in ["sixteen-letters-", "a/b", "../x", ".", "..", "a b", "a:b", "a\tb"] {
            add(format!("interface {name}"), self.cni()?.ifname(name), 4, &["CNI_IFNAME"])?;
        }
        for (args, word) in
            [("IP=10.90.0.300", "IP"), ("FOO=1", "FOO"), ("IP", "KEY=VALUE"), ("MAC=1", "MAC")]
        {
            add(format!("CNI_ARGS {args}"), self.cni()?.args(args), 4, &["CNI_ARGS", word])?;
        }
        let file = self.node.run_dir().join("../ipamd.toml");
        let host = self.node.netns().path();
        let holder = self.holder.path();
        for (path, code, word) in [
            (Path::new("netns"), 4, "absolute"),
            (Path::new("/no/such/netns"), 105, "/no/such/netns does not exist"),
            (&file, 105, "no network namespace"),
            (Path::new("/tmp"), 105, "no network namespace"),
            (Path::new("/dev/null"), 105, "no network namespace"),
            (Path::new("/proc/self/ns/mnt"), 105, "no network namespace"),
            (host, 105, "host's own network namespace"),
        ] {
            add(format!("netns {}", path.display()), self.cni()?.netns(path), code, &[word])?;
        }
        add(
            "an interface that exists".into(),
            self.cni()?.netns(holder),
            104,
            &["eth0", &holder.display().to_string()],
        )?;
        add("lo".into(), self.cni()?.ifname("lo"), 104, &["lo"])?;
        Ok(cases)
    }

    fn refuse(&self, case: &Case<'_>) -> Result<()> {
        let before = State::of(&self.node, &self.victim)?;
        let answer = match &case.input {
            Input::Netconf(netconf) => case.cni.call(case.verb, netconf)?,
            Input::Raw(bytes) => case.cni.call_raw(case.verb, bytes)?,
        };
        let error = match answer {
            Ok(answer) => anyhow::bail!("was not refused, but answered {answer}"),
            Err(error) => error,
        };
        ensure!(error.code == case.code, "code {} instead of {}: {error}", error.code, case.code);
        let said = error.to_string();
        for word in &case.words {
            ensure!(said.contains(word), "no {word:?} in: {said}");
        }
        ensure!(said.len() < 1000, "nobody reads {} characters: {said}", said.len());
        let after = State::of(&self.node, &self.victim)?;
        ensure!(after == before, "changed: {}", difference(&before, &after));
        Ok(())
    }
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let host_before = inventory::interfaces(scene.node.netns())?;
    let mut failed = Vec::new();
    let groups = [scene.frames()?, scene.netconfs()?, scene.contradictions()?, scene.variables()?];
    let mut tried = 0;
    for case in groups.iter().flatten() {
        tried += 1;
        if let Err(error) = scene.refuse(case) {
            failed.push(format!("{}: {error:#}", case.what));
        }
    }
    ensure!(failed.is_empty(), "{} of {tried}:\n{}", failed.len(), failed.join("\n"));
    ensure!(tried > 100, "only {tried} were tried");
    ensure!(inventory::interfaces(scene.node.netns())? == host_before, "links of the host");
    // Those who were there live on, and the victim of all this gets its network.
    ensure!(scene.holder.ping("10.90.0.1")? && scene.tiny.ping("10.91.0.1")?, "those who were there");
    scene.cni()?.add(&base())?;
    ensure!(scene.victim.ping("10.90.0.10")?, "the victim");
    Ok(())
}

#[test]
fn an_unknown_command_is_refused_and_a_broken_netconf_stops_no_del() -> Result<()> {
    let scene = Scene::new()?;
    for command in ["ADDD", "add", "DELETE"] {
        let error = scene.cni()?.call(command, &base())?.err().context("was not refused")?;
        ensure!(error.code == 4 && error.msg.contains(command) && error.msg.contains("CHECK"), "{error}");
    }
    let broken = with(&base(), &json!({"pools": "none", "mtu": "x", "runtimeConfig": 5, "prevResult": 7}));
    scene.node.cni()?.container("holder").netns(scene.holder.path()).del(&broken)?;
    inventory::assert_holds(&scene.node, &[endpoint_of(&scene, "tiny-holder")?])
}

fn endpoint_of(scene: &Scene, container: &str) -> Result<ipamd_api::EndpointId> {
    let all: Vec<EndpointView> = scene.node.client().get(path::ENDPOINTS)?;
    all.iter()
        .find(|e| e.attachment.container_id == container)
        .map(|e| e.endpoint)
        .context("no such endpoint")
}

/// A raw connection to ipamd.
fn connect(node: &Node) -> Result<UnixStream> {
    let stream = UnixStream::connect(node.run_dir().join("ipamd.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Everything that comes until ipamd closes. A connection that is reset has said what it had to.
fn read_all(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..length]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A figure of `/proc/<pid>/status`, in KiB.
fn kib(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|l| l.starts_with(name)).context("no such line")?;
    Ok(line.split_ascii_whitespace().nth(1).context("no number")?.parse()?)
}

#[test]
fn the_api_bears_whatever_comes() -> Result<()> {
    let scene = Scene::new()?;
    let node = &scene.node;
    let before = State::of(node, &scene.victim)?;
    let pid = node.ipamd_pid().context("ipamd runs")?;
    let memory = kib(pid, "VmHWM")?;

    // 100 MB: as announced, and in chunks without a word on how much comes.
    let megabyte = vec![b' '; 1 << 20];
    for head in ["Content-Length: 104857600\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut stream = connect(node)?;
        write!(stream, "POST {} HTTP/1.1\r\nHost: ipamd\r\n{head}\r\n", path::ADD)?;
        for _ in 0..100 {
            let sent = match head.starts_with('T') {
                true => write!(stream, "100000\r\n")
                    .and_then(|()| stream.write_all(&megabyte))
                    .and_then(|()| write!(stream, "\r\n")),
                false => stream.write_all(&megabyte),
            };
            if sent.is_err() {
                break;
            }
        }
        let answer = read_all(&mut stream);
        ensure!(answer.starts_with("HTTP/1.1 400") && answer.contains("1048576"), "{head}: {answer:?}");
    }
    ensure!(kib(pid, "VmHWM")? < memory + 16 * 1024, "{memory} KiB grew to {}", kib(pid, "VmHWM")?);

    // Half a body, half a header, nothing: answered or closed when the time (1 s here) is up.
    let start = Instant::now();
    let halves = [
        (
            format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{", path::ADD),
            "did not come whole",
        ),
        ("POST /v1/attach".to_owned(), ""),
        (String::new(), ""),
    ];
    for (half, word) in &halves {
        let mut stream = connect(node)?;
        stream.write_all(half.as_bytes())?;
        let answer = read_all(&mut stream);
        ensure!(answer.contains(word), "{half:?}: {answer:?}");
    }
    ensure!(start.elapsed() < PATIENCE, "a client that hangs was kept for {:?}", start.elapsed());

    // What is no request of this API.
    let ask = |request: &[u8]| -> Result<String> {
        let mut stream = connect(node)?;
        // It may be refused before it is written whole.
        let _ = stream.write_all(request);
        Ok(read_all(&mut stream))
    };
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        &[0xff; 100_000],
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let answer = ask(garbage)?;
        ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let plain = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    };
    let add = |fields: &str| {
        let victim = scene.victim.path().display();
        format!(
            "{{\"attachment\":{{\"containerId\":\"x\",\"ifname\":\"eth0\"}},\"netns\":\"{victim}\",\"runtime\":\"r\",\"network\":{{\"name\":\"base\"}}{fields}}}"
        )
    };
    let table = [
        (plain("GET", "/"), "404", "\"code\":115"),
        (plain("GET", "/v2/status"), "404", "\"code\":115"),
        (plain("GET", "/v1/attachments/add"), "404", "\"code\":115"),
        (plain("PUT", "/v1/status"), "404", "\"code\":115"),
        (plain("DELETE", "/v1/status"), "404", "\"code\":115"),
        (plain("DELETE", "/v1/networks"), "404", "\"code\":115"),
        (plain("DELETE", "/v1/networks/nothing"), "404", "\"code\":107"),
        (plain("DELETE", "/v1/networks/base"), "409", "\"code\":108"),
        (plain("GET", "/v1/networks/..%2f..%2fetc%2fpasswd"), "404", "\"code\":107"),
        (plain("GET", "/v1/inspect/%00%ff"), "404", "\"code\":115"),
        (post(path::ADD, ""), "400", "\"code\":6"),
        (post(path::ADD, "{}"), "400", "attachment"),
        (post(path::ADD, "[1"), "400", "\"code\":6"),
        (post(path::ADD, &"[".repeat(100_000)), "400", "\"code\":6"),
        (post(path::ADD, &add(",\"surprise\":1")), "400", "surprise"),
        (post(path::ADD, &add("").replace("\"x\"", "\"../x\"")), "400", "\"code\":4"),
        (post(path::ADD, &add("").replace("eth0", "a/b")), "400", "\"code\":4"),
        (post(path::ADD, &add(",\"options\":{\"mac\":\"ff:ff:ff:ff:ff:ff\"}")), "400", "group"),
        (post(path::NETWORKS, "{\"name\":\"../x\"}"), "400", "\"code\":7"),
        (post(path::NETWORKS, "{\"name\":\"x\",\"mtu\":1}"), "400", "MTU 1"),
        (post(path::GC, "{\"valid\":5}"), "400", "\"code\":6"),
    ];
    for (request, status, word) in &table {
        let answer = ask(request.as_bytes())?;
        let shown: String = request.chars().take(200).collect();
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(word),
            "{shown}: {answer}"
        );
        ensure!(answer.contains("\"msg\""), "no sentence for people: {shown}: {answer}");
    }
    ensure!(State::of(node, &scene.victim)? == before, "something changed");

    // A caller that hangs up gets its ADD all the same, and the DEL that follows finds it.
    let mut stream = connect(node)?;
    stream.write_all(post(path::ADD, &add("")).as_bytes())?;
    drop(stream);
    let there = || scene.victim.ip("link show dev eth0").is_ok();
    weft_tests::poll_until(PATIENCE, "the ADD of a caller that hung up", there)?;
    let victim = node.cni()?.container("x").netns(scene.victim.path());
    weft_tests::poll_until(PATIENCE, "its DEL", || victim.del(&base()).is_ok() && !there())?;
    Ok(())
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out() -> Result<()> {
    // ipamd starts with what most machines give it; this process needs more for itself.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(most > 2048, "1000 connections need more open files than the {most} that this process may have");
    setrlimit(Resource::RLIMIT_NOFILE, 1024, most)?;
    let node = Node::start_new("idle")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let idle: Vec<UnixStream> = (0..1000).map(|_| connect(&node)).collect::<Result<_>>()?;
    let start = Instant::now();
    let pod = Pod::add(&node, "among-many", &base())?;
    ensure!(pod.ping("10.90.0.1")?, "a container among many idle clients");
    node.cni()?.call("STATUS", &with(&base(), &json!({"cniVersion": "1.1.0"})))??;
    pod.del(&node, &base())?;
    let took = start.elapsed();
    // The limit for idle clients is 10 s here: it was not they who had to go first.
    ensure!(took < Duration::from_secs(8), "it took {took:?}");
    drop(idle);
    inventory::assert_clean(&node)
}
