//! The socket itself: bodies too large, halves, garbage, paths that are none, and clients that only sit there.

use super::{
    base,
    scene::{HELD_PORT, Scene, State},
    with,
};
use anyhow::{Context, Result, ensure};
use ipamd_api::{ClientError, path};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};
use weft_tests::{Node, Pod, inventory};

pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A raw connection to ipamd.
pub(crate) fn connect(node: &Node) -> Result<UnixStream> {
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
pub(crate) fn kib(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|l| l.starts_with(name)).context("no such line")?;
    Ok(line.split_ascii_whitespace().nth(1).context("no number")?.parse()?)
}

#[test]
fn what_operators_ask_wrongly_is_named_and_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let before = State::of(&scene.node, &scene.victim)?;
    let mapping =
        |host: u32, container: u32| json!({"hostPort": host, "containerPort": container, "protocol": "tcp"});
    let publish = |mapping: Value| json!({"container": "holder", "mappings": [mapping]});
    let range = json!({"hostPort": 65535, "containerPort": 80, "count": 2, "protocol": "tcp"});
    let beyond = json!({"hostPort": 80, "containerPort": 65535, "count": 2, "protocol": "tcp"});
    let none = json!({"hostPort": 80, "containerPort": 80, "count": 0, "protocol": "tcp"});
    let table: [(&str, Value, u32, &[&str]); 14] = [
        (path::PUBLISH, json!({"container": "holder"}), 6, &["mappings"]),
        (path::PUBLISH, json!({"container": "holder", "mappings": []}), 117, &["no port mapping"]),
        (path::PUBLISH, json!({"container": "nobody", "mappings": [mapping(80, 80)]}), 115, &["nobody"]),
        (
            path::PUBLISH,
            json!({"container": "holder", "network": "red", "mappings": [mapping(80, 80)]}),
            115,
            &["holder", "red"],
        ),
        (path::PUBLISH, publish(mapping(65536, 80)), 6, &["65536"]),
        (path::PUBLISH, publish(mapping(80, 0)), 117, &["container port is 0"]),
        (path::PUBLISH, publish(range), 117, &["2 ports from host port 65535", "beyond 65535"]),
        (path::PUBLISH, publish(beyond), 117, &["2 ports from container port 65535"]),
        (path::PUBLISH, publish(none), 117, &["no port"]),
        (path::PUBLISH, publish(mapping(HELD_PORT.into(), 80)), 116, &["publisher/eth0"]),
        (path::PUBLISH, publish(mapping(scene.bound_port.into(), 80)), 116, &["pid"]),
        (
            path::UNPUBLISH,
            json!({"container": "publisher", "hostPort": 9, "protocol": "tcp"}),
            115,
            &["9/tcp", "18081/tcp"],
        ),
        (path::FLOWS, json!({"prot": "tcp"}), 6, &["prot"]),
        (path::UNINSTALL, json!({}), 108, &["endpoints", "/eth0"]),
    ];
    for (path, body, code, words) in table {
        let answer: std::result::Result<Value, _> = scene.node.client().post(path, &body);
        let Err(ClientError::Refused(error)) = answer else { anyhow::bail!("{path} {body}: {answer:?}") };
        ensure!(error.code == code, "{path} {body}: code {} instead of {code}: {error}", error.code);
        for word in words {
            ensure!(error.to_string().contains(word), "{path} {body}: no {word:?} in: {error}");
        }
    }
    ensure!(State::of(&scene.node, &scene.victim)? == before, "something was changed");
    Ok(())
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
