//! What the tests of names share: containers with aliases, and questions.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};
use weft_tests::{FAMILIES, Node, NodeHandle, Pod, Sandbox, TestNetns};

/// Where the sandbox's own resolver is.
pub(crate) const LOCAL: &str = "127.0.0.11";

/// How long nodes may take to hear of each other's names, on a busy machine.
pub(crate) const CONVERGENCE: Duration = Duration::from_secs(20);

/// A bridge network of both families, 10.`number`.0.0/24 and fd00:`number`::/64, and names for the endpoint.
pub(crate) fn bridge(name: &str, number: u8, aliases: &[&str]) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": name, "type": "weft",
        "pools": [{"subnet": format!("10.{number}.0.0/24")}, {"subnet": format!("fd00:{number}::/64")}],
        "capabilities": {"aliases": true}, "runtimeConfig": {"aliases": aliases},
    })
}

/// The gateways of such a network.
pub(crate) fn gateways(number: u8) -> [String; 2] {
    [format!("10.{number}.0.1"), format!("fd00:{number}::1")]
}

/// A container on such a network; its container ID is told apart from its aliases.
pub(crate) fn pod(node: &Node, number: u8, aliases: &[&str]) -> Result<Pod> {
    let id = format!("{}-container", aliases.first().context("a container without a name")?);
    Pod::add(node, &id, &bridge(&format!("net-{number}"), number, aliases))
}

/// One more interface for a sandbox that has `eth0`.
pub(crate) fn also_on(node: &Node, sandbox: &Sandbox, id: &str, netconf: &Value) -> Result<Value> {
    NodeHandle::of(node)?.cni()?.container(id).netns(sandbox.path()).ifname("eth1").add(netconf)
}

/// Both addresses of a container.
pub(crate) fn both(pod: &Pod) -> Result<BTreeSet<IpAddr>> {
    FAMILIES.into_iter().map(|v4| pod.ip_of(v4)).collect()
}

/// What `dig` makes of a question: status, and the answers' data in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) data: Vec<String>,
    /// All that was printed.
    pub(crate) said: String,
}

/// Asks a server, by options and a question in `dig`'s words.
pub(crate) fn dig(from: &TestNetns, server: &str, question: &str) -> Result<Answer> {
    let line = format!("dig @{server} +time=3 +tries=1 {question}");
    let said = from.sh(&line)?;
    let status = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    let status = status.with_context(|| format!("{line}: no answer:\n{said}"))?.to_owned();
    let answers = said.split(";; ANSWER SECTION:\n").nth(1).unwrap_or_default();
    let lines = answers.lines().take_while(|line| !line.is_empty());
    let data = lines.filter_map(|line| line.split_whitespace().last().map(str::to_owned)).collect();
    Ok(Answer { status, data, said })
}

/// Asks, and expects exactly these answers, in any order.
pub(crate) fn expect(
    from: &TestNetns,
    server: &str,
    question: &str,
    status: &str,
    data: &[String],
) -> Result<()> {
    let answer = dig(from, server, question)?;
    let (mut got, mut wanted) = (answer.data.clone(), data.to_vec());
    got.sort();
    wanted.sort();
    ensure!(answer.status == status && got == wanted, "instead of {status} {wanted:?}:\n{}", answer.said);
    Ok(())
}
