//! Endpoints: wired as wanted, reachable, left without a trace.

use crate::edge::{Edge, endpoint, json, links, net, network};
use anyhow::{Context, Result};
use ipamd::kernel::{EndpointWiring, Kernel, KernelError, SandboxObserved, Witnesses};
use ipamd_api::{Driver, Route, netns::NetnsError};
use serde_json::{Value, json as value};
use std::{
    net::{Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket},
    path::Path,
};
use weft_tests::Sandbox;

/// A network with one endpoint.
fn one() -> Result<(Edge, Sandbox, EndpointWiring)> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    let wanted = endpoint(1, 2, "eth0")?;
    edge.attach(&wanted, &sandbox)?;
    Ok((edge, sandbox, wanted))
}

#[test]
fn two_endpoints_reach_each_other_the_gateway_and_the_node() -> Result<()> {
    let (edge, first, _) = one()?;
    let second = Sandbox::new()?;
    edge.attach(&endpoint(1, 3, "eth0")?, &second)?;
    for address in ["10.1.0.3", "10.1.0.1", "fd00:1::3", "fd00:1::1", "127.0.0.1", "::1"] {
        assert!(first.ping(address)?, "the first to {address}");
    }
    for address in ["10.1.0.2", "fd00:1::2"] {
        assert!(second.ping(address)?, "the second to {address}");
        assert!(edge.host.ping(address)?, "the node to {address}");
    }
    Ok(())
}

#[test]
fn the_stack_forwards_between_networks_unless_they_are_internal() -> Result<()> {
    let edge = Edge::new()?;
    let (first, second, third) = (Sandbox::new()?, Sandbox::new()?, Sandbox::new()?);
    for (id, sandbox) in [(1, &first), (2, &second), (3, &third)] {
        let mut wanted = network(id)?;
        wanted.internal = id == 3;
        edge.network(&wanted)?;
        edge.attach(&endpoint(id, 2, "eth0")?, sandbox)?;
    }
    for address in ["10.2.0.2", "fd00:2::2"] {
        assert!(first.ping(address)?, "{address}");
    }
    assert!(!third.ping("10.2.0.2")?, "IPv4 from an internal network");
    // Before Linux 6.17, IPv6 is forwarded from all devices or from none: there only the programs keep it inside, which
    // are not here (`traffic` has them).
    let by_device = edge.host.run(|| Path::new("/proc/sys/net/ipv6/conf/wf-3/force_forwarding").exists())?;
    assert_eq!(third.ping("fd00:2::2")?, !by_device, "IPv6 from an internal network");
    assert!(by_device || kernel_version()? < (6, 17), "a kernel that can forward by device is not asked to");
    Ok(())
}

/// Major and minor number of the running kernel.
fn kernel_version() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.trim().split(['.', '-']).map(str::parse::<u32>);
    Ok((numbers.next().context("a major number")??, numbers.next().context("a minor number")??))
}

#[test]
fn the_host_side_is_silent_and_fixed() -> Result<()> {
    let (edge, _sandbox, wanted) = one()?;
    let name = &wanted.host_ifname;
    let link = json(&edge.host, &format!("link show {name}"))?;
    assert_eq!((&link[0]["master"], &link[0]["mtu"]), (&value!("wf-1"), &value!(1400)));
    assert_eq!(link[0]["ifalias"], wanted.alias);
    assert!(link[0]["flags"].as_array().is_some_and(|f| f.contains(&"UP".into())));
    let port = &link[0]["linkinfo"]["info_slave_data"];
    for (flag, on) in [
        ("learning", false),
        ("flood", false),
        ("mcast_flood", true),
        ("bcast_flood", true),
        ("hairpin", true),
        ("neigh_suppress", false),
        ("isolated", false),
    ] {
        assert_eq!(port[flag], on, "{flag}");
    }
    let addresses = json(&edge.host, &format!("addr show {name}"))?;
    assert_eq!(addresses[0]["addr_info"], value!([]), "the host's stack has no address there");

    let fdb = edge.host.sh("bridge fdb show br wf-1")?;
    let entry = format!("{} dev {name} master wf-1 static", wanted.mac);
    assert!(fdb.contains(&entry), "{entry:?} in\n{fdb}");
    for ip in ["10.1.0.2", "fd00:1::2"] {
        let neighbour = edge.host.ip(&format!("neigh show {ip} dev wf-1"))?;
        assert!(
            neighbour.contains(&wanted.mac.to_string()) && neighbour.contains("PERMANENT"),
            "{neighbour}"
        );
    }
    assert_eq!(edge.call(Kernel::endpoint_links)?, [(wanted.id, index(&link[0])?)]);
    Ok(())
}

fn index(link: &Value) -> Result<u32> {
    Ok(u32::try_from(link["ifindex"].as_u64().context("an index")?)?)
}

#[test]
fn the_inside_is_what_was_asked_for() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    sandbox.ip("link set lo down")?;
    let mut wanted = endpoint(1, 2, "net0")?;
    wanted.routes.push(Route { dst: net("192.0.2.0/24")?, gw: None });
    let (created, routes) = edge.attach(&wanted, &sandbox)?;
    assert_eq!(routes, wanted.routes);
    assert_eq!(links(&sandbox)?, ["lo", "net0"]);
    let link = json(&sandbox, "addr show net0")?;
    assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&value!(wanted.mac.to_string()), &value!(1400)));
    assert_eq!(created.sandbox_ifindex, Some(index(&link[0])?));
    let addresses = link[0]["addr_info"].as_array().context("addresses")?;
    let found =
        |local: &str| addresses.iter().find(|a| a["local"] == local).cloned().context(local.to_owned());
    assert_eq!(found("10.1.0.2")?["broadcast"], "10.1.0.255");
    assert_eq!(found("10.1.0.2")?["prefixlen"], 24);
    for local in ["fd00:1::2", "fe80::57:aff:fe01:2"] {
        assert_eq!((&found(local)?["tentative"], &found(local)?["prefixlen"]), (&Value::Null, &value!(64)));
    }
    let lo = json(&sandbox, "link show lo")?;
    assert!(lo[0]["flags"].as_array().is_some_and(|f| f.contains(&"UP".into())));
    let table = sandbox.ip("route show")? + &sandbox.ip("-6 route show")?;
    for route in [
        "default via 10.1.0.1 dev net0 proto static",
        "192.0.2.0/24 dev net0 proto static scope link",
        "default via fd00:1::1 dev net0 proto static",
    ] {
        assert!(table.contains(route), "{route:?} in\n{table}");
    }
    Ok(())
}

#[test]
fn ipv6_addresses_can_be_bound_at_once() -> Result<()> {
    let (_edge, sandbox, _) = one()?;
    sandbox.run(|| -> Result<()> {
        UdpSocket::bind("[fd00:1::2]:0").context("binding to the address")?;
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let link_local: Ipv6Addr = "fe80::57:aff:fe01:2".parse()?;
        TcpListener::bind(SocketAddrV6::new(link_local, 0, 0, index))
            .context("binding to the link-local one")?;
        Ok(())
    })?
}

#[test]
fn ipv6_is_switched_on_where_a_runtime_switched_it_off() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    sandbox.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))??;
    let wanted = endpoint(1, 2, "eth0")?;
    let (_, routes) = edge.attach(&wanted, &sandbox)?;
    assert_eq!(routes, wanted.routes);
    assert!(sandbox.ping("fd00:1::1")?);
    Ok(())
}

#[test]
fn a_second_network_leaves_the_default_route_alone() -> Result<()> {
    let (edge, sandbox, _) = one()?;
    edge.network(&network(2)?)?;
    let mut second = endpoint(2, 2, "eth1")?;
    second.routes.push(Route { dst: net("198.51.100.0/24")?, gw: Some("10.2.0.1".parse()?) });
    let (_, routes) = edge.attach(&second, &sandbox)?;
    assert_eq!(routes, second.routes[2..], "only the route that was added");
    assert!(sandbox.ip("route show default")?.contains("dev eth0"));
    assert!(sandbox.ip("-6 route show default")?.contains("dev eth0"));
    assert!(sandbox.ping("10.2.0.1")? && sandbox.ping("10.1.0.1")?);
    Ok(())
}

#[test]
fn a_name_that_the_sandbox_has_is_told_from_one_that_the_node_has() -> Result<()> {
    let (edge, sandbox, wanted) = one()?;
    let before = edge.links()?;
    let create = |wanted: &EndpointWiring, sandbox: &Sandbox| {
        let path = sandbox.path();
        edge.call(|k| k.create(wanted, &k.open_sandbox(path)?)).err().context("an error")
    };
    match create(&endpoint(1, 3, "eth0")?, &sandbox)? {
        KernelError::InterfaceExists { ifname, sandbox: path } => {
            assert_eq!((ifname.as_str(), path), ("eth0", sandbox.path().display().to_string()));
        }
        other => anyhow::bail!("{other}"),
    }
    let same_generation = create(&wanted, &Sandbox::new()?)?;
    assert!(matches!(same_generation, KernelError::Refused { .. }), "{same_generation}");
    assert!(same_generation.to_string().contains(&wanted.host_ifname), "{same_generation}");
    assert_eq!(edge.links()?, before);
    assert!(sandbox.ping("10.1.0.1")?, "the endpoint that was there still works");
    Ok(())
}

#[test]
fn what_cannot_be_created_leaves_nothing() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    let good = || endpoint(1, 2, "eth0");
    let bad = [
        ("no bridge", EndpointWiring { bridge: "wf-9".into(), ..good()? }),
        ("MTU", EndpointWiring { mtu: 70_000, ..good()? }),
        // Refused by the second message, when the pair is there already.
        ("alias", EndpointWiring { alias: "a".repeat(300), ..good()? }),
        ("multicast MAC", EndpointWiring { mac: ipamd_api::MacAddr([1, 0, 0, 0, 0, 1]), ..good()? }),
    ];
    for (what, wanted) in bad {
        let path = sandbox.path();
        let error = edge.call(|k| k.create(&wanted, &k.open_sandbox(path)?)).err().context(what)?;
        let expected = matches!(error, KernelError::Refused { .. } | KernelError::BridgeMissing(_));
        assert!(expected, "{what}: {error}");
        assert_eq!(edge.links()?, ["lo", "wf-1"], "{what}");
        assert_eq!(links(&sandbox)?, ["lo"], "{what}");
    }
    edge.attach(&good()?, &sandbox)?;
    Ok(())
}

#[test]
fn an_address_that_the_kernel_refuses_is_an_error_that_names_it() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    let mut wanted = endpoint(1, 2, "eth0")?;
    wanted.routes[0].gw = Some("192.0.2.1".parse()?);
    let error = edge.attach(&wanted, &sandbox).err().context("an error")?.to_string();
    assert!(error.contains("default via 192.0.2.1") && error.contains("eth0"), "{error}");
    assert!(error.contains("Nexthop has invalid gateway"), "the kernel's own words: {error}");
    edge.remove(&wanted, sandbox.identity())?;
    assert_eq!((links(&sandbox)?, edge.links()?), (vec!["lo".into()], vec!["lo".into(), "wf-1".into()]));
    Ok(())
}

#[test]
fn removing_leaves_nothing_and_may_be_repeated() -> Result<()> {
    let (edge, sandbox, wanted) = one()?;
    for _ in 0..2 {
        edge.remove(&wanted, sandbox.identity())?;
        assert_eq!(edge.links()?, ["lo", "wf-1"]);
        assert_eq!(links(&sandbox)?, ["lo"]);
        assert!(!edge.host.sh("bridge fdb show")?.contains(&wanted.mac.to_string()));
        // Of a router solicitation the host, as a router, learns a link-local neighbour that ages by itself.
        assert!(!edge.host.ip("neigh show nud permanent")?.contains(&wanted.mac.to_string()));
    }
    edge.host.ip("link del wf-1")?;
    edge.remove(&wanted, sandbox.identity())?;
    Ok(())
}

#[test]
fn many_are_removed_at_once_and_no_others() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    let mut all = Vec::new();
    for number in 2..9 {
        let wanted = endpoint(1, number, &format!("eth{number}"))?;
        edge.attach(&wanted, &sandbox)?;
        all.push((wanted, sandbox.identity().clone()));
    }
    let (kept, _) = all.remove(3);
    // One is gone already.
    edge.remove(&all[0].0, &all[0].1)?;
    let outcomes = edge.call(|k| Ok(k.remove_many(&all)))?;
    assert_eq!(outcomes.len(), 6);
    for outcome in outcomes {
        outcome?;
    }
    assert_eq!(links(&sandbox)?, ["lo", kept.ifname.as_str()]);
    assert_eq!(edge.call(Kernel::endpoint_links)?.len(), 1);
    let neighbours = edge.host.ip("neigh show nud permanent")?;
    assert!(neighbours.contains("10.1.0.5 ") && !neighbours.contains("10.1.0.6 "), "{neighbours}");
    assert!(sandbox.ping("10.1.0.1")?);
    Ok(())
}

#[test]
fn endpoints_are_found_among_many_links() -> Result<()> {
    let (edge, _sandbox, wanted) = one()?;
    let mut batch = String::new();
    for i in 0..200 {
        batch.push_str(&format!("link add v{i}a type veth peer name v{i}b\n"));
    }
    // Names that look alike: too short, capitals, and one of no veth.
    batch
        .push_str("link add wf123 type veth peer name wf0A0B0C0D0E0F\nlink add wf00000000ffff type bridge\n");
    let file = edge.state.path().join("links");
    std::fs::write(&file, batch)?;
    edge.host.sh(&format!("ip -batch {}", file.display()))?;
    let found = edge.call(Kernel::endpoint_links)?;
    assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [wanted.id]);
    Ok(())
}

#[test]
fn paths_that_are_no_sandbox_are_refused() -> Result<()> {
    let edge = Edge::new()?;
    let open = |path: &std::path::Path| match edge.call(|k| k.open_sandbox(path)) {
        Err(KernelError::Netns(error)) => Ok(error),
        other => anyhow::bail!("{}: {other:?}", path.display()),
    };
    assert!(matches!(open("/nonexistent/netns".as_ref())?, NetnsError::NotFound(_)));
    assert!(matches!(open("/etc/passwd".as_ref())?, NetnsError::NotNetns(_)));
    assert!(matches!(open("/proc/self/ns/mnt".as_ref())?, NetnsError::NotNetns(_)));
    assert!(matches!(open(edge.host.path())?, NetnsError::IsHost(_)));
    Ok(())
}

#[test]
fn witnesses_tell_a_sandbox_from_another_of_its_name() -> Result<()> {
    let (edge, mut sandbox, wanted) = one()?;
    let identity = sandbox.identity().clone();
    let ask = |wanted: &EndpointWiring| edge.call(|k| k.witnesses(wanted, &identity));
    let same = Witnesses { path: SandboxObserved::Same, host_link: Some(true) };
    assert_eq!(ask(&wanted)?, same);
    sandbox.replace()?;
    assert_eq!(ask(&wanted)?.path, SandboxObserved::Replaced);
    // What the link does now is the kernel's business, and takes its time; that it goes is certain.
    weft_tests::poll_until(std::time::Duration::from_secs(60), "the link to go", || {
        ask(&wanted).is_ok_and(|w| w.host_link == Some(false))
    })?;
    sandbox.unmount()?;
    assert_eq!(ask(&wanted)?, Witnesses { path: SandboxObserved::Gone, host_link: Some(false) });
    let macvlan = EndpointWiring { driver: Driver::Macvlan, ..wanted };
    assert_eq!(ask(&macvlan)?.host_link, None, "a driver without a host end has no such witness");
    Ok(())
}

#[test]
fn a_process_in_a_sandbox_is_seen() -> Result<()> {
    let edge = Edge::new()?;
    let mut sandbox = Sandbox::new()?;
    let has = |sandbox: &Sandbox| edge.call(|k| k.has_processes(sandbox.identity()));
    assert!(!has(&sandbox)?);
    sandbox.start_process()?;
    // The child enters the namespace before it becomes the program that was spawned.
    assert!(has(&sandbox)?);
    sandbox.stop_process();
    assert!(!has(&sandbox)?);
    // There may be processes that nobody can look into. Without a path to compare them by, those who are where they are tell.
    sandbox.start_process()?;
    sandbox.unmount()?;
    assert!(has(&sandbox)?);
    sandbox.stop_process();
    assert!(!has(&sandbox)?);
    Ok(())
}

#[test]
fn shaping_by_others_is_seen_and_the_programs_own_qdisc_is_not() -> Result<()> {
    let (edge, _sandbox, wanted) = one()?;
    let name = &wanted.host_ifname;
    let port = edge.call(Kernel::endpoint_links)?[0].1;
    let shaping =
        || edge.call(Kernel::shaping).map(|s| s.get(&port).map_or((false, false), |s| (s.ingress, s.egress)));
    assert_eq!(shaping()?, (false, false));
    edge.host.sh(&format!("tc qdisc add dev {name} clsact"))?;
    assert_eq!(shaping()?, (false, false), "clsact");
    edge.host.sh(&format!("tc qdisc del dev {name} clsact"))?;
    edge.host.sh(&format!("tc qdisc add dev {name} root tbf rate 20mbit burst 32k latency 25ms"))?;
    assert_eq!(shaping()?, (true, false), "tbf");
    edge.host.sh(&format!("tc qdisc add dev {name} ingress"))?;
    assert_eq!(shaping()?, (true, true), "tbf and ingress");
    edge.host.sh(&format!("tc qdisc del dev {name} root"))?;
    assert_eq!(shaping()?, (false, true), "ingress");
    edge.remove(&wanted, _sandbox.identity())?;
    assert_eq!(shaping()?, (false, false), "no link");
    Ok(())
}

#[test]
fn drivers_without_links_make_none() -> Result<()> {
    let edge = Edge::new()?;
    for driver in [Driver::None, Driver::Host] {
        let sandbox = Sandbox::new()?;
        sandbox.ip("link set lo down")?;
        let wanted =
            EndpointWiring { driver, addresses: Vec::new(), routes: Vec::new(), ..endpoint(1, 2, "eth0")? };
        let (created, routes) = edge.attach(&wanted, &sandbox)?;
        assert_eq!((created.host_ifindex, created.sandbox_ifindex, routes.len()), (None, None, 0));
        assert_eq!((edge.links()?, links(&sandbox)?), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
        assert_eq!(sandbox.ping("127.0.0.1")?, driver == Driver::None, "{driver} brings up lo");
        edge.remove(&wanted, sandbox.identity())?;
    }
    Ok(())
}
