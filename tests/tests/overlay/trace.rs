//! `netctl trace` between nodes: one call says the whole way, on each node that the packet comes to.

use super::scene::{Scene, two};
use anyhow::{Context, Result, ensure};
use ipamd_api::{Trace, TraceProtocol, TraceRequest, TraceVerdict, path};
use nix::sys::signal::Signal;
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use weft_tests::{Cluster, ClusterNode, dial::Dial, echo::Protocol, poll_until};

/// Longer than a node waits for another's answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is said, after the exit code was held against it.
fn told(node: &ClusterNode, words: &[&str]) -> Result<Trace> {
    let output = node.netctl(&[words, &["-o", "json"]].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let trace: Trace = serde_json::from_str(&said).with_context(|| format!("{words:?}: {said}{errors}"))?;
    ensure!(output.status.success() == trace.verdict.is_well(), "{}: {trace:#?}", output.status);
    Ok(trace)
}

/// What the first node says of a packet of its container.
fn way(cluster: &Cluster, to: &str) -> Result<Trace> {
    told(&cluster[0], &["trace", "pod-0", to])
}

/// The hops of each node, which follow each other.
fn hops_of<'t>(trace: &'t Trace, cluster: &Cluster) -> Result<[Vec<&'t str>; 2]> {
    let of = |node: usize| -> Vec<&str> {
        let own = trace.hops.iter().filter(|hop| hop.node == cluster[node].name());
        own.map(|hop| hop.hop.as_str()).collect()
    };
    let halves = [of(0), of(1)];
    ensure!(halves[0].len() + halves[1].len() == trace.hops.len(), "{trace:#?}");
    ensure!(trace.hops.is_sorted_by_key(|hop| hop.node != cluster[0].name()), "{trace:#?}");
    Ok(halves)
}

/// The keys of questions that are in the store.
fn questions(cluster: &mut Cluster) -> Result<usize> {
    let keys = cluster.etcd()?.ctl(0, &["get", "--prefix", "--keys-only", "/weft/v1/traces/"])?;
    Ok(keys.lines().filter(|line| !line.is_empty()).count())
}

/// A delivery is what happens too.
fn is_delivered(scene: &Scene, v4: bool, hops: [&[&str]; 2]) -> Result<()> {
    let to: SocketAddr = scene.server(1, v4)?;
    let trace = way(&scene.cluster, &format!("{to}/udp"))?;
    ensure!(trace.verdict == TraceVerdict::Delivered && trace.summary.contains("pod-1"), "{trace:#?}");
    ensure!(trace.node == scene.cluster[1].name() && trace.elsewhere.is_none(), "{trace:#?}");
    ensure!(hops_of(&trace, &scene.cluster)? == hops.map(<[_]>::to_vec), "{trace:#?}");
    let map = |map: &str| trace.hops.iter().flat_map(|hop| &hop.entries).find(|entry| entry.map == map);
    ensure!(map("PEERS").is_some_and(|e| e.value.contains(scene.cluster[1].name())), "{trace:#?}");
    ensure!(map("ADDRESSES").is_some_and(|e| e.key.contains(&to.ip().to_string())), "{trace:#?}");
    ensure!(Dial::new(Protocol::Udp, to).is_answered(&scene.pods[0]), "{to} is not answered");
    Ok(())
}

#[test]
fn the_way_past_the_device_is_told_to_its_end() -> Result<()> {
    let mut scene = Scene::of(two("trace", true), "")?;
    for v4 in scene.families() {
        is_delivered(&scene, v4, [&["sandbox", "from_pod"], &["from_netdev"]])?;
    }
    let nobody = way(&scene.cluster, "10.70.255.9:7000")?;
    ensure!(nobody.verdict == TraceVerdict::Dropped && nobody.node == scene.cluster[0].name(), "{nobody:#?}");
    for_people(&scene)?;
    ends_on_the_other_node(&scene)?;
    ensure!(questions(&mut scene.cluster)? == 0, "questions are left in the store");
    Ok(())
}

/// The table has the nodes' names.
fn for_people(scene: &Scene) -> Result<()> {
    let to = scene.server(1, true)?;
    let said = scene.cluster[0].ask(&format!("trace pod-0 {to}"))?;
    let other = scene.cluster[1].name();
    ensure!(said.contains("NODE") && said.contains(&format!("delivered on node {other}: ")), "{said}");
    Ok(())
}

/// What the other node does not deliver: nobody has the address there, nobody listens, it is another network's.
fn ends_on_the_other_node(scene: &Scene) -> Result<()> {
    let (cluster, there) = (&scene.cluster, scene.cluster[1].name());
    let server = scene.pods[1].ip_of(true)?;
    let IpAddr::V4(server) = server else { unreachable!("an address of IPv4") };
    // In the same block, which is that node's, and given to nobody.
    let empty = std::net::Ipv4Addr::from(u32::from(server) ^ 0x1f);
    let before = cluster[1].ask("drops -o json")?;
    for (to, verdict, words) in [
        (format!("{empty}:80"), TraceVerdict::Dropped, "no way to"),
        // By a port that is published there, or is not.
        (format!("{}:8080", cluster[1].ip_of(true)), TraceVerdict::Refused, "nobody listens"),
    ] {
        let trace = way(cluster, &to)?;
        ensure!(trace.verdict == verdict && trace.summary.contains(words), "{to}: {trace:#?}");
        ensure!(trace.node == there && trace.advice.is_some(), "{to}: {trace:#?}");
    }
    cluster[1].ask("publish add pod-1 8080:7000/udp")?;
    let published: SocketAddr = (cluster[1].ip_of(true), 8080).into();
    let trace = way(cluster, &format!("{published}/udp"))?;
    ensure!(trace.verdict == TraceVerdict::Delivered && trace.summary.contains("pod-1"), "{trace:#?}");
    let entry = trace.hops.iter().flat_map(|hop| &hop.entries).find(|entry| entry.map == "PUBLISHED");
    ensure!(entry.is_some() && trace.node == there, "{trace:#?}");
    ensure!(Dial::new(Protocol::Udp, published).is_answered(&scene.pods[0]), "{published}");
    let after = cluster[1].ask("drops -o json")?;
    ensure!(before == after, "{before} before, {after} now");
    Ok(())
}

#[test]
fn the_way_through_the_device_is_told_to_its_end() -> Result<()> {
    let through = [&["sandbox", "from_pod"][..], &["from_netdev", "from_overlay"]];
    let scene = Scene::of(two("trace-device", true).settings("overlay_shortcut = \"off\"\n"), "")?;
    for v4 in scene.families() {
        is_delivered(&scene, v4, through)?;
    }
    drop(scene);
    let scene = Scene::of(two("trace-v6", false), "")?;
    for v4 in scene.families() {
        is_delivered(&scene, v4, through)?;
    }
    Ok(())
}

#[test]
fn a_plain_route_is_told_to_its_end() -> Result<()> {
    let scene = Scene::of(two("trace-direct", true), "--encapsulation cross-subnet")?;
    for v4 in scene.families() {
        is_delivered(&scene, v4, [&["sandbox", "from_pod"], &["from_netdev"]])?;
    }
    Ok(())
}

#[test]
fn a_node_that_does_not_answer_is_named_and_nothing_is_left() -> Result<()> {
    let mut scene = Scene::of(two("trace-silent", true).settings("node_ttl = 8\n"), "")?;
    let to = scene.server(1, true)?.to_string();
    let other = scene.cluster[1].name().to_owned();
    scene.cluster[1].signal(Signal::SIGSTOP)?;
    let begun = Instant::now();
    let trace = way(&scene.cluster, &to)?;
    let took = begun.elapsed();
    ensure!(took > DEADLINE && took < DEADLINE * 4, "{took:?}: {trace:#?}");
    ensure!(trace.verdict == TraceVerdict::Unknown, "{trace:#?}");
    ensure!(trace.summary.contains(&format!("{other} did not answer")), "{trace:#?}");
    ensure!(trace.advice.as_deref().is_some_and(|advice| advice.contains("netctl trace")), "{trace:#?}");
    let elsewhere = trace.elsewhere.as_ref().context("nothing leads to the rest")?;
    ensure!(elsewhere.node == other && elsewhere.command.contains(&to), "{trace:#?}");
    ensure!(hops_of(&trace, &scene.cluster)? == [vec!["sandbox", "from_pod"], vec![]], "{trace:#?}");
    ensure!(questions(&mut scene.cluster)? == 0, "a question is left in the store");

    // Its lease has ended: nobody is asked who is not there.
    poll_until(Duration::from_secs(30), "a suspect node", || {
        scene.cluster[0].ask("node ls").is_ok_and(|said| said.contains("suspect"))
    })?;
    let trace = way(&scene.cluster, &to)?;
    ensure!(trace.verdict == TraceVerdict::Unknown && trace.summary.contains("suspect"), "{trace:#?}");

    scene.cluster[1].signal(Signal::SIGCONT)?;
    poll_until(Duration::from_secs(30), "an answer", || {
        way(&scene.cluster, &to).is_ok_and(|trace| trace.verdict == TraceVerdict::Delivered)
    })?;
    ensure!(questions(&mut scene.cluster)? == 0, "a question is left in the store");
    Ok(())
}

#[test]
fn a_hundred_at_once_are_bounded() -> Result<()> {
    /// Questions of a node that are open at a time.
    const OPEN: usize = 4;
    let mut scene = Scene::of(two("trace-many", true), "")?;
    let to = scene.server(1, true)?;
    let request = TraceRequest {
        from: "pod-0".to_owned(),
        to: to.ip().to_string(),
        port: Some(to.port()),
        protocol: TraceProtocol::Udp,
    };
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let client = scene.cluster[0].client().with_timeout(Duration::from_secs(120));
            let request = request.clone();
            std::thread::spawn(move || client.post::<_, Trace>(path::TRACE, &request))
        })
        .collect();
    let mut most = 0;
    while asking.iter().any(|one| !one.is_finished()) {
        most = most.max(questions(&mut scene.cluster)?);
    }
    ensure!(most <= OPEN, "{most} questions at a time");
    let (mut delivered, mut refused, mut unknown) = (0, 0, 0);
    for one in asking {
        match one.join().map_err(|_| anyhow::anyhow!("a thread failed"))? {
            Ok(trace) if trace.verdict == TraceVerdict::Delivered => delivered += 1,
            Ok(trace) if trace.verdict == TraceVerdict::Unknown => unknown += 1,
            Ok(trace) => anyhow::bail!("{trace:#?}"),
            Err(error) => {
                ensure!(error.to_string().contains("try again"), "{error}");
                refused += 1;
            }
        }
    }
    println!("{delivered} delivered, {refused} refused, {unknown} without an answer, {most} open at a time");
    ensure!(delivered > 0 && delivered + unknown >= 16, "{delivered} delivered, {unknown} unknown");
    ensure!(questions(&mut scene.cluster)? == 0, "questions are left in the store");
    // Both nodes do as before.
    ensure!(way(&scene.cluster, &to.to_string())?.verdict == TraceVerdict::Delivered, "no longer");
    Ok(())
}
