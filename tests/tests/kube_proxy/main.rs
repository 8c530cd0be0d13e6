//! Services as kube-proxy makes them, in iptables, nftables and ipvs mode: its rules translate in the host's stack, and what came
//! out of the stack must be answered through it. The tests write the rules; Weft writes none.

mod cluster;
mod ipvs;
mod rules;
mod ways;

use anyhow::{Context, Result, bail, ensure};
use cluster::{Cluster, Mode, set_bridge_netfilter};
use ipamd_api::FlowList;
use serde_json::json;
use std::{fs, time::Duration};
use weft_tests::{Node, Sandbox, TestNetns, dial::Dial, echo::Protocol, poll_until};

/// For what is expected not to be answered.
const SHORT: Duration = Duration::from_millis(300);

fn services_work(mode: Mode, bridge_netfilter: bool, masquerade_all: bool) -> Result<()> {
    if mode == Mode::Ipvs && ipvs::is_without_ipvs(&TestNetns::new()?)? {
        return Ok(());
    }
    let cluster = Cluster::new(&json!({}))?;
    set_bridge_netfilter(cluster.node.netns(), bridge_netfilter)?;
    cluster.write_rules(mode, masquerade_all)?;
    for v4 in [true, false] {
        cluster
            .try_all(mode, v4, masquerade_all)
            .with_context(|| format!("{mode:?}, bridge netfilter {bridge_netfilter}"))?;
    }
    cluster.direct_traffic_is_fast()?;
    cluster.remove_pods()
}

/// Pods behind qdiscs, as the bandwidth plugin leaves them: everything goes through these, and services work all the same. So does the
/// way out, which the stack goes then: `to_netdev` masquerades.
fn services_work_for_shaped_pods(bridge_netfilter: bool) -> Result<()> {
    if is_too_old_for_tcx()? {
        return Ok(());
    }
    let cluster = Cluster::new(&json!({"hooks": "tcx"}))?;
    let host = cluster.node.netns();
    set_bridge_netfilter(host, bridge_netfilter)?;
    for pod in [&cluster.a, &cluster.b] {
        let link = pod.endpoint()?.host_ifname();
        host.sh(&format!("tc qdisc add dev {link} root tbf rate 1gbit burst 1mb latency 100ms"))?;
        host.sh(&format!("tc qdisc add dev {link} ingress"))?;
        let followed = || {
            let shown = cluster
                .node
                .netctl(&["inspect", &pod.id, "-o", "json"])
                .map(|o| o.stdout)
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&shown).into_owned();
            text.contains("egress shaped")
                && text.contains("ingress shaped")
                && text.contains("\"differences\": []")
        };
        poll_until(Duration::from_secs(60), "ipamd to follow the qdiscs", followed)?;
    }
    cluster.write_rules(Mode::Iptables, false)?;
    for v4 in [true, false] {
        cluster
            .try_all(Mode::Iptables, v4, false)
            .with_context(|| format!("shaped, bridge netfilter {bridge_netfilter}"))?;
    }
    let sent = host.sh(&format!("tc -s qdisc show dev {} root", cluster.b.endpoint()?.host_ifname()))?;
    let packets =
        sent.split(" bytes ").nth(1).and_then(|s| s.split(' ').next()).and_then(|n| n.parse::<u64>().ok());
    ensure!(packets > Some(100), "the shaper saw too little: {sent}");
    Ok(())
}

/// Whether the kernel has no tcx because it is older than Linux 6.6: then it has to refuse the ADD, say the way out, and leave
/// nothing. A newer kernel is never let off.
fn is_too_old_for_tcx() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.trim().split(['.', '-']).map(str::parse::<u32>);
    if (numbers.next().context("a major number")??, numbers.next().context("a minor number")??) >= (6, 6) {
        return Ok(false);
    }
    let node = Node::start_new("old")?;
    let sandbox = Sandbox::new()?;
    let cni = node.cni()?.container("pod").netns(sandbox.path());
    let netconf = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "weft", "subnet": rules::CLUSTER4, "hooks": "tcx",
    });
    let Err(error) = cni.call("ADD", &netconf)? else { bail!("{release} has no tcx, and the ADD succeeded") };
    let said = error.to_string();
    ensure!(said.contains("tcx needs Linux 6.6 or later"), "{said}");
    ensure!(sandbox.ip("link show eth0").is_err(), "the refused ADD left its interface");
    Ok(true)
}

#[test]
fn iptables_rules() -> Result<()> {
    services_work(Mode::Iptables, false, false)
}

#[test]
fn iptables_rules_with_bridge_netfilter() -> Result<()> {
    services_work(Mode::Iptables, true, false)
}

#[test]
fn iptables_rules_that_masquerade_all() -> Result<()> {
    services_work(Mode::Iptables, false, true)
}

#[test]
fn nftables_rules() -> Result<()> {
    services_work(Mode::Nftables, false, false)
}

#[test]
fn nftables_rules_with_bridge_netfilter() -> Result<()> {
    services_work(Mode::Nftables, true, false)
}

#[test]
fn nftables_rules_that_masquerade_all_with_bridge_netfilter() -> Result<()> {
    services_work(Mode::Nftables, true, true)
}

#[test]
fn ipvs_and_its_rules() -> Result<()> {
    services_work(Mode::Ipvs, false, false)
}

#[test]
fn ipvs_and_its_rules_with_bridge_netfilter() -> Result<()> {
    services_work(Mode::Ipvs, true, false)
}

#[test]
fn rules_for_shaped_pods() -> Result<()> {
    services_work_for_shaped_pods(false)
}

#[test]
fn rules_for_shaped_pods_with_bridge_netfilter() -> Result<()> {
    services_work_for_shaped_pods(true)
}

/// What docs/operations.md tells to look for.
#[test]
fn without_stack_cidrs_a_cluster_ip_leaves_by_the_uplink() -> Result<()> {
    let cluster = Cluster::with("", &json!({}))?;
    cluster.write_rules(Mode::Iptables, false)?;
    for v4 in [true, false] {
        let front = cluster.family(v4)?.services.to_b().frontend();
        let dial = Dial::new(Protocol::Tcp, front).patience(SHORT);
        ensure!(!dial.is_answered(&cluster.a), "{front} is answered: is `stack_cidrs` needed at all?");
        let address = front.ip().to_string();
        let asked = ["conntrack", "ls", "--address", &address, "-o", "json"];
        let listed: FlowList = serde_json::from_slice(&cluster.node.netctl(&asked)?.stdout)?;
        let lost = listed.flows.iter().any(|f| f.kind == "masquerade" && f.state == "unreplied");
        ensure!(lost, "no unreplied flow to {front}: {:?}", listed.flows);
    }
    Ok(())
}
