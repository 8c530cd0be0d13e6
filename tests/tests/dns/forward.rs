//! Names elsewhere: asked of the node's name servers.

use crate::scene::{LOCAL, dig, expect, gateways, pod};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use weft_tests::{
    Node, Pod, Table, TestNetns, poll_until,
    unbound::{Unbound, UnboundBuilder},
};

/// A node, and a namespace outside of it on a link of its own, with the addresses of two name servers.
pub(crate) struct Elsewhere {
    pub(crate) node: Node,
    pub(crate) outside: TestNetns,
    dir: TempDir,
}

pub(crate) const SERVERS: [&str; 2] = ["198.51.100.53", "198.51.100.54"];

impl Elsewhere {
    /// The node asks these of them.
    pub(crate) fn new(servers: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-resolv-").tempdir().context("making a folder")?;
        write(&dir, servers)?;
        let settings = format!("resolv_conf = \"{}\"", dir.path().join("resolv.conf").display());
        let node = Node::builder("forward").settings(&settings).start()?;
        let outside = TestNetns::named("outside")?;
        node.netns()
            .ip(&format!("link add up0 type veth peer name ext0 netns {}", outside.path().display()))?;
        node.netns().ip("addr add 198.51.100.1/24 dev up0")?;
        node.netns().ip("link set up0 up")?;
        outside.ip("link set ext0 up")?;
        for address in SERVERS {
            outside.ip(&format!("addr add {address}/24 dev ext0"))?;
        }
        Ok(Self { node, outside, dir })
    }

    /// Starts one of the name servers.
    pub(crate) fn serve(&self, which: usize, server: UnboundBuilder) -> Result<Unbound> {
        server.start(&self.outside, SocketAddr::new(SERVERS[which].parse()?, 53))
    }
}

/// A node with two name servers on a link of its own.
struct Lab {
    pod: Pod,
    servers: Vec<Unbound>,
    elsewhere: Elsewhere,
}

fn write(dir: &TempDir, servers: &[&str]) -> Result<()> {
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    // As those do that own the file: a new one in the place of the old.
    let next = dir.path().join("next");
    fs::write(&next, text).context("writing resolv.conf")?;
    fs::rename(next, dir.path().join("resolv.conf")).context("replacing resolv.conf")
}

impl Lab {
    /// The servers have each a `who.test`, the first also the given records.
    fn new(number: u8, records: &[&str]) -> Result<Self> {
        let elsewhere = Elsewhere::new(&SERVERS)?;
        let mut servers = Vec::new();
        for n in 0..SERVERS.len() {
            let own = format!("who.test. 60 IN A 203.0.113.{}", n + 1);
            let builder = Unbound::builder().zone("test.").record(&own);
            let builder =
                if n == 0 { records.iter().fold(builder, |b, record| b.record(record)) } else { builder };
            servers.push(elsewhere.serve(n, builder)?);
        }
        let pod = pod(&elsewhere.node, number, &["asker"])?;
        Ok(Self { pod, servers, elsewhere })
    }
}

#[test]
fn other_names_are_asked_elsewhere() -> Result<()> {
    let many: Vec<String> = (0..60).map(|n| format!("many.test. 60 IN A 203.0.113.{n}")).collect();
    let mut records: Vec<&str> = many.iter().map(String::as_str).collect();
    records.extend([
        "alias.test. 60 IN CNAME who.test.",
        "text.test. 60 IN TXT hello",
        "_x._tcp.test. 60 IN SRV 0 0 80 who.test.",
    ]);
    let lab = Lab::new(94, &records)?;
    let all: Vec<String> = (0..60).map(|n| format!("203.0.113.{n}")).collect();
    let [v4, v6] = gateways(94);
    let mut table = Table::default();
    for server in [v4.as_str(), v6.as_str(), LOCAL] {
        let rows = [
            ("who.test A", "NOERROR", vec!["203.0.113.1".to_owned()]),
            ("who.test A +tcp", "NOERROR", vec!["203.0.113.1".to_owned()]),
            ("who.test AAAA", "NOERROR", vec![]),
            ("text.test TXT", "NOERROR", vec!["\"hello\"".to_owned()]),
            ("nothing.test A", "NXDOMAIN", vec![]),
            ("many.test A", "NOERROR", all.clone()),
            ("many.test A +noedns", "NOERROR", all.clone()),
        ];
        for (question, status, data) in rows {
            // The second time from the cache.
            for time in ["first", "second"] {
                table.row(format!("{server} {question}, {time} time"), || {
                    expect(&lab.pod, server, question, status, &data)
                });
            }
        }
    }
    table.judge(|| lab.elsewhere.node.evidence())
}

#[test]
fn a_name_server_that_is_silent_costs_one_time_out_and_none_at_all_a_refusal() -> Result<()> {
    let mut lab = Lab::new(95, &[])?;
    let [v4, _] = gateways(95);
    lab.servers[0].pause(true)?;
    expect(&lab.pod, &v4, "+time=5 who.test A", "NOERROR", &["203.0.113.2".to_owned()])
        .with_context(|| lab.elsewhere.node.evidence())?;
    lab.servers[1].pause(true)?;
    let start = Instant::now();
    let answer = dig(&lab.pod, &v4, "+time=5 other.test A")?;
    ensure!(answer.status == "SERVFAIL" && start.elapsed() < Duration::from_secs(5), "{}", answer.said);
    // Names of the network are answered all the same.
    expect(&lab.pod, &v4, "asker A", "NOERROR", &[lab.pod.ipv4()?.to_string()])?;
    for server in &mut lab.servers {
        server.pause(false)?;
    }
    poll_until(Duration::from_secs(10), "names elsewhere", || {
        dig(&lab.pod, &v4, "other.test A").is_ok_and(|answer| answer.status == "NXDOMAIN")
    })
}

#[test]
fn another_list_of_name_servers_is_taken_at_once() -> Result<()> {
    let lab = Lab::new(96, &["only-first.test. 1 IN A 203.0.113.9"])?;
    let [v4, _] = gateways(96);
    expect(&lab.pod, &v4, "only-first.test A", "NOERROR", &["203.0.113.9".to_owned()])?;
    write(&lab.elsewhere.dir, &SERVERS[1..])?;
    poll_until(Duration::from_secs(10), "the other server", || {
        dig(&lab.pod, &v4, "only-first.test A").is_ok_and(|answer| answer.status == "NXDOMAIN")
    })
    .with_context(|| lab.elsewhere.node.evidence())
}
