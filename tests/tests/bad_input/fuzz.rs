//! Requests by chance: of every route, shaped as it wants them and otherwise, whole and cut, in HTTP that is right and HTTP that is not.
//! ipamd answers or hangs up, and after what it refused everything is as it was: journal, links, maps, networks, names, sockets' modes.

use super::{
    api::{PATIENCE, connect, kib},
    scene::{Scene, State},
};
use anyhow::{Context, Result, ensure};
use ipamd_api::path;
use proptest::{prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    thread,
    time::Instant,
};
use weft_tests::Node;

/// Requests in all, and after how many it is looked at what they left.
const ROUNDS: usize = 40;
const ROUND: usize = 25;

/// How much of an answer is read: streams have no end.
const HEAD: usize = 64 * 1024;

/// Every path of the API, those with a name behind them too.
const PATHS: [&str; 33] = [
    path::ADD,
    path::DEL,
    path::CHECK,
    path::GC,
    path::ALLOCATE,
    path::HISTORY,
    path::HISTORY_FOLLOW,
    path::STATUS,
    path::NETWORKS,
    path::POOLS,
    path::ENDPOINTS,
    path::INSPECT,
    path::NODES,
    path::DRAIN_NODE,
    path::REMOVE_NODE,
    path::DOCTOR,
    path::PUBLISH,
    path::UNPUBLISH,
    path::FLOWS,
    path::FLUSH,
    path::DROPS,
    path::DROPS_FOLLOW,
    path::NAMES,
    path::REMOVE_NAME,
    path::APPLY,
    path::DNS_STATS,
    path::DNS_FOLLOW,
    path::DNS_QUERY,
    path::DNS_FLUSH,
    path::METRICS,
    path::TRAFFIC,
    path::TRACE,
    path::UNINSTALL,
];

/// Fields that requests have, and two that none has.
const FIELDS: [&str; 40] = [
    "attachment",
    "containerId",
    "ifname",
    "netns",
    "runtime",
    "network",
    "options",
    "name",
    "driver",
    "pools",
    "subnet",
    "gateway",
    "dynamicRange",
    "reserved",
    "mtu",
    "overlay",
    "vni",
    "dnsMode",
    "dnsUpstreams",
    "addresses",
    "target",
    "container",
    "mappings",
    "hostPort",
    "containerPort",
    "count",
    "protocol",
    "hostIp",
    "allowFrom",
    "evidence",
    "valid",
    "documents",
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    "dryRun",
    "remove",
    "surprise",
    "",
];

/// Texts that mean nothing good anywhere. None names a container, and the node itself is not among them.
const TEXTS: [&str; 26] = [
    "",
    "nobody",
    "base",
    "../x",
    "..",
    "/",
    "a/b",
    "-",
    "%",
    "\u{0}",
    "\u{202e}",
    "ä",
    "10.90.0.10",
    "10.90.0.0/24",
    "0.0.0.0/0",
    "::/0",
    "fd00:90::1",
    "999.1.1.1",
    "/proc/self/ns/net",
    "/dev/null",
    "bridge",
    "tcp",
    "weft/v1",
    "Network",
    "{\"",
    "\r\n\r\n",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(&TEXTS[..]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => (1usize..5000).prop_map(|length| "x".repeat(length)),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => text().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        2 => select(vec![0u64, 1, 65535, 65536, u64::MAX]).prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

/// JSON of the API's own words.
fn words() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((select(&FIELDS[..]), inner), 0..8).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
            }),
        ]
    })
}

/// A request of a route as it has to be, about what is not there or cannot be had.
fn shaped(path: &str) -> Value {
    let attachment = json!({"containerId": "nobody", "ifname": "eth0"});
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let document = json!({"apiVersion": "weft/v1", "kind": "Network", "metadata": {"name": "base"}, "spec": {"mtu": 1300}});
    match path {
        path::ADD | path::ALLOCATE => {
            json!({"attachment": attachment, "netns": "/dev/null", "runtime": "fuzz", "network": {"name": "base"}})
        }
        path::DEL => json!({"attachment": attachment, "network": "base", "evidence": {"cookie": 1}}),
        path::CHECK => json!({"attachment": attachment, "network": "base", "netns": "/dev/null"}),
        path::GC => json!({"network": "nowhere", "runtime": "fuzz", "valid": [attachment]}),
        path::NETWORKS => json!({"name": "base", "mtu": 1300, "pools": [{"subnet": "10.99.0.0/24"}]}),
        path::DRAIN_NODE | path::REMOVE_NODE => json!({"name": "nobody"}),
        path::PUBLISH => json!({"container": "nobody", "mappings": [mapping]}),
        path::UNPUBLISH => json!({"container": "nobody", "hostPort": 8080, "protocol": "tcp"}),
        path::NAMES => json!({"network": "nowhere", "name": "x", "addresses": ["192.0.2.1"]}),
        path::REMOVE_NAME => json!({"network": "base", "name": "nobody"}),
        path::APPLY => json!({"documents": [document], "dryRun": false}),
        path::DNS_QUERY => json!({"container": "nobody", "name": "x", "kind": "A"}),
        path::TRACE => json!({"from": "nobody", "to": "10.90.0.10", "port": 80, "protocol": "tcp"}),
        path::UNINSTALL => json!({"force": false}),
        _ => json!({}),
    }
}

/// What is done to a body that was right.
#[derive(Debug, Clone)]
enum Damage {
    None,
    /// Another value for one field, wherever it is.
    Field(usize, Value),
    /// A field more.
    More(&'static str, Value),
    /// Nested so deep.
    Deep(usize),
    /// A byte at a place of so many.
    Byte(usize, u8),
    /// Cut there.
    Cut(usize),
    /// Blanks behind it, as JSON has it: so many bytes more.
    Wide(usize),
}

/// Sizes on both sides of what ipamd takes, which is 1 MiB.
fn large() -> impl Strategy<Value = usize> {
    prop_oneof![5_000usize..200_000, 900_000usize..1_300_000]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => Just(Damage::None),
        4 => (0usize..12, words()).prop_map(|(at, value)| Damage::Field(at, value)),
        2 => (select(&FIELDS[..]), words()).prop_map(|(field, value)| Damage::More(field, value)),
        1 => (1usize..20_000).prop_map(Damage::Deep),
        2 => (0usize..1000, any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => (0usize..1000).prop_map(Damage::Cut),
        1 => large().prop_map(Damage::Wide),
        1 => (0usize..12, large()).prop_map(|(at, length)| Damage::Field(at, "x".repeat(length).into())),
    ]
}

/// Every value inside a value that is neither an object nor a list, to be changed.
fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|inner| leaves(inner, found)),
        Value::Array(items) => items.iter_mut().for_each(|inner| leaves(inner, found)),
        leaf => found.push(leaf),
    }
}

fn body_of(path: &str, damage: &Damage) -> Vec<u8> {
    let mut value = shaped(path);
    match damage {
        Damage::Field(at, new) => {
            let mut found = Vec::new();
            leaves(&mut value, &mut found);
            let count = found.len().max(1);
            if let Some(leaf) = found.into_iter().nth(at % count) {
                *leaf = new.clone();
            }
        }
        Damage::More(field, new) => {
            if let Some(fields) = value.as_object_mut() {
                fields.insert((*field).to_owned(), new.clone());
            }
        }
        Damage::Deep(depth) => {
            return [b"{\"spec\":".repeat(*depth), b"1".to_vec(), b"}".repeat(*depth)].concat();
        }
        Damage::None | Damage::Byte(..) | Damage::Cut(_) | Damage::Wide(_) => {}
    }
    if path == path::UNINSTALL {
        // Refused while there are containers. By force it would be done, and rightly.
        value["force"] = json!(false);
    }
    let mut bytes = value.to_string().into_bytes();
    let length = bytes.len();
    match damage {
        Damage::Byte(at, byte) => bytes[at % length] = *byte,
        Damage::Cut(at) => bytes.truncate(at % length),
        Damage::Wide(more) => bytes.resize(length + more, b' '),
        _ => {}
    }
    bytes
}

/// How a body is sent.
#[derive(Debug, Clone, Copy)]
enum Frame {
    Length,
    Chunked,
    /// Longer than it is said to be.
    Short,
    /// With two lengths.
    Twice,
    /// Said in a way that is none.
    Wrong,
}

/// A request, and whether it is one by the rules of HTTP.
#[derive(Debug, Clone)]
struct Sent {
    bytes: Vec<u8>,
    by_rules: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let wrong = select(vec!["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "get", "PO ST", ""]);
    let method = prop_oneof![4 => Just(None), 1 => wrong.prop_map(Some)];
    let foreign = select(vec!["text/xml", "multipart/form-data; boundary=x", "\u{1}", ""]);
    let kind = prop_oneof![4 => Just("application/json"), 1 => foreign];
    let frame = prop_oneof![
        12 => Just(Frame::Length),
        3 => Just(Frame::Chunked),
        1 => select(vec![Frame::Short, Frame::Twice, Frame::Wrong]),
    ];
    let version =
        prop_oneof![12 => Just("HTTP/1.1"), 1 => select(vec!["HTTP/1.0", "HTTP/2.0", "HTTP/9", ""])];
    let known = vec!["/nobody", "/base", "/", "//", "/%00", "/%", "/..%2f..", "?x=1", "#", "/node/nobody"];
    let behind = prop_oneof![
        8 => Just(String::new()),
        3 => select(known).prop_map(str::to_owned),
        1 => "[ -~]{0,40}".prop_map(|text| format!("/{text}")),
    ];
    let instead = prop::option::weighted(0.15, words());
    let whole = (select(&PATHS[..]), behind, method, damage(), instead, kind, frame, version);
    let request = whole.prop_map(|(path, behind, method, damage, instead, kind, frame, version)| {
        let asks = shaped(path) == json!({}) && path != path::DNS_FLUSH;
        let method = method.unwrap_or(if asks { "GET" } else { "POST" });
        // A GC of everything without a process would free what the scene is made of.
        let body = match instead.filter(|_| !matches!(path, path::UNINSTALL | path::GC)) {
            Some(words) => words.to_string().into_bytes(),
            None => body_of(path, &damage),
        };
        let length = body.len();
        let (said, body) = match frame {
            Frame::Length => (format!("Content-Length: {length}"), body),
            Frame::Chunked => {
                let chunk = [format!("{length:x}\r\n").into_bytes(), body, b"\r\n0\r\n\r\n".to_vec()].concat();
                ("Transfer-Encoding: chunked".to_owned(), if length == 0 { b"0\r\n\r\n".to_vec() } else { chunk })
            }
            Frame::Short => (format!("Content-Length: {}", length / 2), body),
            Frame::Twice => (format!("Content-Length: {length}\r\nContent-Length: {}", length + 1), body),
            Frame::Wrong => ("Content-Length: -1".to_owned(), body),
        };
        let head =
            format!("{method} {path}{behind} {version}\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n{said}\r\n\r\n");
        let by_rules = matches!(frame, Frame::Length | Frame::Chunked)
            && version == "HTTP/1.1"
            && !matches!(method, "PO ST" | "" | "HEAD")
            && kind != "\u{1}"
            && !behind.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}', '%']);
        Sent { bytes: [head.into_bytes(), body].concat(), by_rules }
    });
    let raw = prop::collection::vec(any::<u8>(), 0..3000).prop_map(|bytes| Sent { bytes, by_rules: false });
    prop_oneof![12 => request, 1 => raw]
}

/// Sends it and reads what comes, to the end or to the beginning of a stream.
fn ask(node: &Node, sent: &Sent) -> Result<String> {
    let stream = connect(node)?;
    thread::scope(|scope| {
        // At the same time: who answers at once may never read the rest of what he is sent.
        scope.spawn(|| {
            // It may be refused before it is written whole.
            let _ = (&stream).write_all(&sent.bytes);
            if !sent.by_rules {
                // Else ipamd would rightly wait for the rest of it.
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        let answer = read(&stream);
        // The writer may still be at it. The other end may be gone.
        let _ = stream.shutdown(Shutdown::Both);
        answer
    })
}

fn read(mut stream: &UnixStream) -> Result<String> {
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while answer.len() < HEAD {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&part[..length]),
            // Hung up on with something of it unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error).context("ipamd neither answers nor hangs up"),
        }
        // A stream goes on until somebody hangs up.
        if String::from_utf8_lossy(&answer).contains("application/jsonl") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

#[test]
fn whatever_is_asked_by_chance_is_answered_and_what_is_refused_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let node = &scene.node;
    let socket = node.run_dir().join("ipamd.sock");
    let modes = || Ok::<_, anyhow::Error>((mode(&socket)?, mode(&node.run_dir())?));
    let pid = node.ipamd_pid().context("ipamd runs")?;
    let (memory, modes_before) = (kib(pid, "VmHWM")?, modes()?);
    ensure!(modes_before.0 == 0o600, "the socket's mode is {:o}", modes_before.0);
    let look = || -> Result<(State, Value)> {
        Ok((State::of(node, &scene.victim)?, node.client().get(path::NAMES)?))
    };
    let mut before = look()?;
    let (mut answered, mut accepted, mut codes) = (0, 0, BTreeSet::new());
    let mut runner = TestRunner::default();
    let requests = sent();
    for _ in 0..ROUNDS {
        let (mut round, mut is_changed) = (Vec::new(), false);
        for _ in 0..ROUND {
            let tree = requests.new_tree(&mut runner).map_err(|e| anyhow::anyhow!("{e}"))?;
            let sent = tree.current();
            let shown = String::from_utf8_lossy(&sent.bytes[..sent.bytes.len().min(600)]).into_owned();
            let begun = Instant::now();
            let answer = ask(node, &sent).with_context(|| shown.clone())?;
            ensure!(begun.elapsed() < PATIENCE, "{:?} for {shown}", begun.elapsed());
            ensure!(answer.is_empty() || answer.starts_with("HTTP/1."), "{answer} to {shown}");
            ensure!(!sent.by_rules || !answer.is_empty(), "no answer to {shown}");
            // A defect of Weft, by its own words.
            ensure!(!answer.contains("\"code\":199"), "{answer} to {shown}");
            let status = answer.get(9..10).unwrap_or_default();
            answered += usize::from(!answer.is_empty());
            let code = answer.split("\"code\":").nth(1).and_then(|rest| rest.split(',').next());
            codes.extend(code.map(str::to_owned));
            accepted += usize::from(status == "2");
            // What was asked for rightly may have been done.
            is_changed |= status == "2" && !shown.starts_with("GET ") && !shown.starts_with("HEAD ");
            round.push(format!("{shown}\n-> {}", answer.chars().take(200).collect::<String>()));
        }
        let after = look()?;
        ensure!(is_changed || after == before, "changed by one of these:\n{}", round.join("\n\n"));
        before = after;
    }
    ensure!(node.ipamd_pid() == Some(pid) && Path::new(&format!("/proc/{pid}")).exists(), "ipamd ended");
    ensure!(modes()? == modes_before, "modes changed: {:?}", modes()?);
    let grown = kib(pid, "VmHWM")?.saturating_sub(memory);
    ensure!(grown < 64 * 1024, "ipamd grew by {grown} KiB");
    let log = fs::read_to_string(node.log_path())?;
    ensure!(!log.contains("panicked"), "a thread of ipamd panicked:\n{log}");
    // By chance, but not by so much that everything was refused for its form.
    let all = ROUNDS * ROUND;
    ensure!(
        answered > all / 2 && accepted > all / 20 && codes.len() >= 7,
        "{answered} answered, {accepted} accepted of {all}; codes {codes:?}"
    );
    // Those who were there live on.
    ensure!(scene.holder.ping("10.90.0.1")? && scene.tiny.ping("10.91.0.1")?, "those who were there");
    Ok(())
}
