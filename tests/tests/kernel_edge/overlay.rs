//! Overlay networks: the VXLAN device with its addresses and routes, and endpoints that are in no bridge. No programs are here, so
//! the sandboxes get their neighbours by hand.

use crate::edge::{Edge, STRANGE_MAC, json, links, net, overlay, overlay_endpoint, own_addresses};
use anyhow::{Context, Result};
use ipamd::{
    kernel::{
        EndpointWiring, Kernel, OVERLAY_DEVICE, OverlayRoute, OverlayWiring, RouteWay, SandboxObserved,
        Witnesses,
    },
    reconcile::{comparisons, endpoint_differences, host_side_differs, overlay_differences},
};
use std::{fs, path::Path, time::Duration};
use weft_tests::{Sandbox, poll_until};

/// Runs a line of shell on the node.
fn shell(edge: &Edge, line: &str) -> Result<String> {
    let output = edge.host.command("sh").args(["-ec", line]).output()?;
    anyhow::ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn sysctl(edge: &Edge, path: &str) -> Result<String> {
    let path = Path::new("/proc/sys/net").join(path);
    let text = edge.host.run(|| fs::read_to_string(&path))?;
    Ok(text.with_context(|| path.display().to_string())?.trim().to_owned())
}

fn differences(edge: &Edge, wanted: &OverlayWiring) -> Result<Vec<String>> {
    let observed = edge.call(Kernel::observe_overlay)?;
    Ok(overlay_differences(Some(wanted), &observed).into_iter().map(|d| d.subject).collect())
}

/// Weft's routes as `ip` prints them.
fn routes(edge: &Edge) -> Result<Vec<String>> {
    let printed = edge.host.ip("route show proto 87")? + &edge.host.ip("-6 route show proto 87")?;
    Ok(printed.lines().map(|line| line.trim().to_owned()).collect())
}

/// A node on an underlay, with the overlay and one endpoint of it.
fn one() -> Result<(Edge, Sandbox, EndpointWiring)> {
    let edge = Edge::new()?;
    ensure(&edge, &overlay(1)?)?;
    let sandbox = Sandbox::new()?;
    let wanted = overlay_endpoint(1, 2, "eth0")?;
    edge.attach(&wanted, &sandbox)?;
    know_gateway(&sandbox, 1, "eth0")?;
    Ok((edge, sandbox, wanted))
}

fn ensure(edge: &Edge, wanted: &OverlayWiring) -> Result<u32> {
    Ok(edge.call(|k| k.ensure_overlay(wanted))?)
}

/// What the programs answer: everybody has the gateway's MAC, as far as the stack is concerned.
fn know_gateway(sandbox: &Sandbox, id: u8, ifname: &str) -> Result<()> {
    let [v4, v6, own4, own6] =
        [format!("10.{id}.0.1"), format!("fd00:{id}::1"), format!("10.{id}.0.62"), format!("fd00:{id}::3e")];
    know_gateway_of(sandbox, &[&v4, &v6, &own4, &own6], ifname)
}

fn know_gateway_of(sandbox: &Sandbox, gateways: &[&str], ifname: &str) -> Result<()> {
    let mac = ipamd_api::mac_of_address(gateways.first().context("a gateway")?.parse()?);
    for ip in gateways {
        sandbox.ip(&format!("neigh replace {ip} dev {ifname} lladdr {mac} nud permanent"))?;
    }
    Ok(())
}

#[test]
fn the_device_is_made_as_wanted_and_then_left_alone() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = overlay(1)?;
    assert_eq!(differences(&edge, &wanted)?, ["device wf-vxlan"]);
    let ifindex = ensure(&edge, &wanted)?;
    let link = || json(&edge.host, "link show wf-vxlan");
    let made = link()?;
    let data = &made[0]["linkinfo"]["info_data"];
    assert_eq!(made[0]["ifindex"], ifindex);
    assert_eq!(made[0]["address"], wanted.mac.to_string());
    assert_eq!(made[0]["mtu"], 1400);
    assert_eq!(
        (&data["external"], &data["learning"], &data["port"]),
        (&true.into(), &false.into(), &4789.into())
    );
    let flags = made[0]["flags"].as_array().context("flags")?;
    assert!(flags.contains(&"UP".into()) && flags.contains(&"NOARP".into()), "{flags:?}");
    let addresses = json(&edge.host, "addr show wf-vxlan")?;
    let addresses = addresses[0]["addr_info"].as_array().context("addresses")?;
    let mut found: Vec<String> =
        addresses.iter().map(|a| format!("{}/{}", a["local"], a["prefixlen"])).collect();
    found.sort();
    assert_eq!(
        found,
        ["\"10.1.0.1\"/32", "\"10.1.0.62\"/24", "\"fd00:1::1\"/128", "\"fd00:1::3e\"/64"],
        "no link-local one"
    );
    assert!(addresses.iter().all(|a| a["tentative"].is_null()), "{addresses:?}");
    // The node speaks with its own address where nobody says with which: not with the gateway's, which other nodes have, too.
    let mut silent = addresses.iter().filter(|a| a["preferred_life_time"] == 0).map(|a| &a["local"]);
    assert_eq!((silent.next(), silent.next()), (Some(&"fd00:1::1".into()), None));
    for (path, value) in [
        ("ipv4/conf/wf-vxlan/forwarding", "1"),
        ("ipv4/conf/wf-vxlan/send_redirects", "0"),
        ("ipv4/conf/wf-vxlan/rp_filter", "2"),
        ("ipv6/conf/wf-vxlan/accept_ra", "0"),
        ("ipv6/conf/wf-vxlan/forwarding", "1"),
        ("ipv4/ip_forward", "0"),
    ] {
        assert_eq!(sysctl(&edge, path)?, value, "{path}");
    }
    let table = routes(&edge)?;
    for route in [
        "10.1.0.0/24 dev wf-vxlan scope link src 10.1.0.62 mtu 1400",
        "unreachable 10.1.0.0/26",
        "fd00:1::/64 dev wf-vxlan src fd00:1::3e metric 1024 mtu 1400 pref medium",
        "unreachable fd00:1::/122 dev lo metric 1024 pref medium",
    ] {
        assert!(table.iter().any(|line| line == route), "{route:?} in {table:#?}");
    }
    assert_eq!(table.len(), 4, "{table:?}");

    assert_eq!(differences(&edge, &wanted)?, [""; 0]);
    assert_eq!(ensure(&edge, &wanted)?, ifindex);
    assert_eq!((link()?, routes(&edge)?), (made, table));
    Ok(())
}

#[test]
fn what_changes_is_changed_in_place_and_other_routes_are_left() -> Result<()> {
    let edge = Edge::new()?;
    shell(
        &edge,
        "ip link add up0 type veth peer name up1; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up; ip link set up1 up",
    )?;
    edge.host.ip("addr add 2001:db8::1/64 dev up0 nodad")?;
    let up0 = u32::try_from(json(&edge.host, "link show up0")?[0]["ifindex"].as_u64().context("an index")?)?;
    let mut wanted = overlay(1)?;
    let ifindex = ensure(&edge, &wanted)?;
    edge.host.ip("route add 198.51.100.0/24 via 192.0.2.9 proto static")?;
    let before = edge.host.ip("route show proto static")?;

    let peer = |destination: &str, gateway: &str, source: usize| -> Result<OverlayRoute> {
        Ok(OverlayRoute {
            destination: net(destination)?,
            way: RouteWay::Peer { gateway: gateway.parse()?, ifindex: up0 },
            source: Some(own_addresses(1)?[source]),
            mtu: None,
        })
    };
    wanted.routes.extend([
        peer("10.1.0.64/26", "192.0.2.12", 0)?,
        peer("fd00:1::40/122", "2001:db8::12", 1)?,
        OverlayRoute { destination: net("10.1.0.7/32")?, ..wanted.routes[0] },
    ]);
    for route in &mut wanted.routes {
        route.mtu = route.mtu.map(|_| 1350);
    }
    (wanted.mtu, wanted.mac) = (1350, STRANGE_MAC);
    assert_eq!(ensure(&edge, &wanted)?, ifindex);
    assert_eq!(differences(&edge, &wanted)?, [""; 0]);
    let table = routes(&edge)?;
    for route in [
        "10.1.0.64/26 via 192.0.2.12 dev up0 src 10.1.0.62",
        "10.1.0.7 dev wf-vxlan scope link src 10.1.0.62 mtu 1350",
    ] {
        assert!(table.iter().any(|line| line == route), "{route:?} in {table:#?}");
    }
    assert!(
        table.iter().any(|line| line.starts_with("fd00:1::40/122 via 2001:db8::12 dev up0 src fd00:1::3e")),
        "{table:#?}"
    );

    // The node gets other addresses of its own, and a peer leaves its segment.
    wanted.routes.retain(|route| !matches!(route.way, RouteWay::Peer { .. }));
    wanted.addresses[1] = net("10.1.0.61/32")?;
    for route in
        wanted.routes.iter_mut().filter(|r| r.source == Some(own_addresses(1).unwrap_or_default()[0]))
    {
        route.source = Some("10.1.0.61".parse()?);
    }
    ensure(&edge, &wanted)?;
    assert_eq!(differences(&edge, &wanted)?, [""; 0]);
    assert_eq!(routes(&edge)?.len(), wanted.routes.len());

    wanted.port = 4790;
    let anew = ensure(&edge, &wanted)?;
    assert_ne!(anew, ifindex, "the kernel changes no port");
    assert_eq!(differences(&edge, &wanted)?, [""; 0]);

    assert!(edge.call(Kernel::remove_overlay)?);
    assert!(!edge.call(Kernel::remove_overlay)?);
    assert_eq!(routes(&edge)?, [""; 0]);
    assert_eq!(edge.host.ip("route show proto static")?, before);
    assert!(!edge.links()?.contains(&OVERLAY_DEVICE.to_owned()));
    Ok(())
}

#[test]
fn what_was_changed_by_hand_is_found_and_mended() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = overlay(1)?;
    ensure(&edge, &wanted)?;
    let cases = [
        ("ip link set wf-vxlan address 02:00:00:aa:bb:cc", "MAC of wf-vxlan"),
        ("ip link set wf-vxlan mtu 1300", "MTU of wf-vxlan"),
        ("ip link set wf-vxlan down", "state of wf-vxlan"),
        ("ip addr del 10.1.0.62/24 dev wf-vxlan", "address 10.1.0.62/24 on wf-vxlan"),
        ("ip addr add 192.0.2.9/32 dev wf-vxlan", "address 192.0.2.9/32 on wf-vxlan"),
        ("ip route del 10.1.0.0/24", "route to 10.1.0.0/24"),
        ("ip -6 route del fd00:1::/64", "route to fd00:1::/64"),
        ("ip route add unreachable 10.9.0.0/24 proto 87", "route to 10.9.0.0/24"),
        ("ip link del wf-vxlan", "device wf-vxlan"),
        (
            "ip link del wf-vxlan; ip link add wf-vxlan type vxlan id 7 dstport 4789",
            "UDP port of wf-vxlan in external mode",
        ),
    ];
    for (damage, subject) in cases {
        shell(&edge, damage)?;
        let found = differences(&edge, &wanted)?;
        assert!(found.iter().any(|s| s == subject), "{damage}: {found:?}");
        ensure(&edge, &wanted)?;
        assert_eq!(differences(&edge, &wanted)?, [""; 0], "after {damage}");
    }
    Ok(())
}

#[test]
fn what_is_in_the_way_is_named_and_the_rest_is_done() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = overlay(1)?;
    shell(&edge, "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")?;
    edge.host.ip("route add 10.1.0.0/24 dev up0")?;
    let error = ensure(&edge, &wanted).err().context("an error")?.to_string();
    assert!(error.contains("10.1.0.0/24") && error.contains("exists"), "{error}");
    assert_eq!(differences(&edge, &wanted)?, ["route to 10.1.0.0/24"]);
    assert!(edge.host.ip("route show 10.1.0.0/24")?.contains("dev up0"), "the other one's route stays");
    edge.host.ip("route del 10.1.0.0/24 dev up0")?;
    ensure(&edge, &wanted)?;
    edge.call(Kernel::remove_overlay)?;

    shell(&edge, "ip link add other type vxlan id 7 dstport 4789; ip link set other up")?;
    let error = ensure(&edge, &wanted).err().context("an error")?.to_string();
    assert!(error.contains("4789") && error.contains("overlay_port"), "{error}");
    edge.call(|k| k.ensure_overlay(&OverlayWiring { port: 4790, ..wanted.clone() }))?;
    edge.call(Kernel::remove_overlay)?;
    shell(&edge, "ip link del other; ip link add wf-vxlan type bridge")?;
    let error = ensure(&edge, &wanted).err().context("an error")?.to_string();
    assert!(error.contains("no VXLAN device"), "{error}");
    assert!(!edge.call(Kernel::remove_overlay)?, "what is not Weft's is not removed");
    Ok(())
}

#[test]
fn an_endpoint_is_reached_by_routes_and_nothing_else() -> Result<()> {
    let (edge, sandbox, wanted) = one()?;
    let name = &wanted.host_ifname;
    let link = json(&edge.host, &format!("link show {name}"))?;
    assert_eq!((&link[0]["master"], &link[0]["mtu"]), (&serde_json::Value::Null, &1400.into()));
    assert_eq!(link[0]["address"], "02:57:0a:01:00:01", "the gateway's");
    assert_eq!(link[0]["ifalias"], wanted.alias);
    let addresses = json(&edge.host, &format!("addr show {name}"))?;
    assert_eq!(addresses[0]["addr_info"], serde_json::json!([]));
    for (path, value) in [
        ("ipv4/conf/NAME/forwarding", "1"),
        ("ipv4/conf/NAME/rp_filter", "2"),
        ("ipv4/conf/NAME/proxy_arp", "0"),
        ("ipv4/conf/NAME/send_redirects", "0"),
        ("ipv4/conf/NAME/accept_redirects", "0"),
        ("ipv6/conf/NAME/accept_ra", "0"),
        ("ipv4/ip_forward", "0"),
    ] {
        assert_eq!(sysctl(&edge, &path.replace("NAME", name))?, value, "{path}");
    }
    let table = routes(&edge)?;
    assert!(table.contains(&format!("10.1.0.2 dev {name} scope link src 10.1.0.1")), "{table:?}");
    assert!(table.iter().any(|l| l.starts_with(&format!("fd00:1::2 dev {name} src fd00:1::1"))), "{table:?}");
    for ip in ["10.1.0.2", "fd00:1::2"] {
        let neighbour = edge.host.ip(&format!("neigh show {ip} dev {name}"))?;
        assert!(
            neighbour.contains(&wanted.mac.to_string()) && neighbour.contains("PERMANENT"),
            "{neighbour}"
        );
        assert!(edge.host.ping(ip)?, "the node to {ip}");
    }
    for address in ["10.1.0.1", "fd00:1::1", "10.1.0.62", "fd00:1::3e"] {
        assert!(sandbox.ping(address)?, "the sandbox to {address}");
    }
    for dead in ["10.1.0.9", "fd00:1::9"] {
        let refused = shell(&edge, &format!("ip route get {dead}")).err().context(dead)?.to_string();
        assert!(refused.contains("No route to host"), "nobody has {dead}, and senders are told: {refused}");
    }
    assert!(shell(&edge, "ip route get 10.1.0.70")?.contains("dev wf-vxlan"), "a peer may have it");
    ensure(&edge, &overlay(1)?)?;
    assert!(edge.host.ping("10.1.0.2")?, "routes to endpoints are no stray routes of the overlay");
    Ok(())
}

#[test]
fn the_stack_forwards_between_endpoints_unless_they_are_internal() -> Result<()> {
    let (edge, first, _) = one()?;
    let mut both = overlay(1)?;
    let second = overlay(2)?;
    both.addresses.extend(second.addresses);
    both.routes.extend(second.routes);
    ensure(&edge, &both)?;
    let (open, closed) = (Sandbox::new()?, Sandbox::new()?);
    edge.attach(&overlay_endpoint(2, 2, "eth0")?, &open)?;
    let mut internal = overlay_endpoint(2, 3, "eth0")?;
    internal.routed.as_mut().context("a routed end")?.forward = false;
    edge.attach(&internal, &closed)?;
    for sandbox in [&open, &closed] {
        know_gateway(sandbox, 2, "eth0")?;
    }
    for address in ["10.2.0.2", "fd00:2::2"] {
        assert!(first.ping(address)?, "{address}");
    }
    assert!(!closed.ping("10.1.0.2")?, "IPv4 from an internal network");
    let by_device =
        edge.host.run(|| Path::new("/proc/sys/net/ipv6/conf/wf-vxlan/force_forwarding").exists())?;
    assert_eq!(closed.ping("fd00:1::2")?, !by_device, "IPv6 from an internal network");
    Ok(())
}

#[test]
fn every_damage_to_an_endpoint_is_found_and_mended() -> Result<()> {
    let (edge, sandbox, wanted) = one()?;
    let (host, path) = (&wanted.host_ifname, sandbox.path().to_owned());
    let look = || edge.call(|k| k.observe(&wanted, sandbox.identity()));
    let healthy = look()?;
    assert_eq!(endpoint_differences(&wanted, &path, &healthy), []);
    assert!(comparisons(&wanted, &path, &healthy).iter().all(|r| r.desired == r.observed));
    let settings = format!("settings of {host} (forwarding, router advertisements)");
    shell(&edge, "ip link add br0 type bridge")?;
    let cases = [
        (format!("ip link set {host} down"), format!("state of {host}")),
        (format!("ip link set {host} master br0"), format!("bridge of {host}")),
        (format!("ip link set {host} mtu 1300"), format!("MTU of {host}")),
        (format!("ip link set {host} address 02:00:00:00:00:09"), format!("MAC of {host}")),
        (format!("ip neigh del 10.1.0.2 dev {host}"), format!("neighbour 10.1.0.2 on {host}")),
        ("ip route del 10.1.0.2".into(), "host route to 10.1.0.2".into()),
        ("ip -6 route del fd00:1::2".into(), "host route to fd00:1::2".into()),
        (format!("ip route replace 10.1.0.2 dev {host}"), "host route to 10.1.0.2".into()),
        (format!("echo 0 > /proc/sys/net/ipv4/conf/{host}/forwarding"), settings.clone()),
        (format!("echo 1 > /proc/sys/net/ipv6/conf/{host}/accept_ra"), settings),
    ];
    for (damage, subject) in cases {
        shell(&edge, &damage)?;
        let seen = look()?;
        let found = endpoint_differences(&wanted, &path, &seen);
        assert!(found.iter().any(|d| d.subject == subject), "{damage}: {found:?}");
        if !subject.starts_with("MTU") {
            let link = seen.host.context("a link")?;
            assert!(host_side_differs(&wanted, &link, &seen.beside), "{damage}");
        }
        edge.call(|k| k.repair_host_side(&wanted))?;
        assert_eq!(endpoint_differences(&wanted, &path, &look()?), [], "after {damage}");
        for ip in ["10.1.0.2", "fd00:1::2"] {
            poll_until(Duration::from_secs(20), &format!("{ip} after {damage}"), || {
                edge.host.ping(ip).unwrap_or(false)
            })?;
        }
    }
    // Without its source address the kernel takes the host routes away.
    edge.host.ip("addr del 10.1.0.1/32 dev wf-vxlan")?;
    ensure(&edge, &overlay(1)?)?;
    assert_eq!(endpoint_differences(&wanted, &path, &look()?).len(), 1);
    edge.call(|k| k.repair_host_side(&wanted))?;
    assert_eq!(endpoint_differences(&wanted, &path, &look()?), []);
    Ok(())
}

#[test]
fn an_endpoint_is_traced_witnessed_and_removed() -> Result<()> {
    let (edge, sandbox, wanted) = one()?;
    let traced = edge.call(|k| k.trace(&[wanted.id]))?;
    let [traced] = &traced[..] else { anyhow::bail!("{traced:?}") };
    let mut addresses = traced.addresses.clone();
    addresses.sort();
    assert_eq!((traced.bridge.as_deref(), traced.mac, traced.mtu), (None, Some(wanted.mac), 1400));
    assert_eq!(addresses, [wanted.addresses[0].ip(), wanted.addresses[1].ip()]);
    assert_eq!(traced.sandbox.as_ref(), Some(sandbox.identity()));
    let witnesses = edge.call(|k| k.witnesses(&wanted, sandbox.identity()))?;
    assert_eq!(witnesses, Witnesses { path: SandboxObserved::Same, host_link: Some(true) });

    let more: Vec<EndpointWiring> =
        (3..7).map(|n| overlay_endpoint(1, n, &format!("eth{n}"))).collect::<Result<_>>()?;
    for endpoint in &more {
        edge.attach(endpoint, &sandbox)?;
    }
    let all: Vec<_> = more.iter().map(|e| (e.clone(), sandbox.identity().clone())).collect();
    for outcome in edge.call(|k| Ok(k.remove_many(&all)))? {
        outcome?;
    }
    assert_eq!(links(&sandbox)?, ["lo", "eth0"]);
    for _ in 0..2 {
        edge.remove(&wanted, sandbox.identity())?;
        assert_eq!(
            (links(&sandbox)?, edge.links()?),
            (vec!["lo".into()], vec!["lo".to_owned(), "wf-vxlan".into()])
        );
        assert!(!edge.host.ip("neigh show nud permanent")?.contains("10.1.0.2"));
    }
    assert_eq!(routes(&edge)?.len(), 4, "only the overlay's own");
    Ok(())
}

#[test]
fn an_underlay_too_narrow_for_ipv6_still_carries_ipv4() -> Result<()> {
    let edge = Edge::new()?;
    let mut narrow = overlay(1)?;
    narrow.mtu = 1230;
    narrow.addresses.retain(ipnetwork::IpNetwork::is_ipv4);
    narrow.routes.retain(|r| r.destination.is_ipv4());
    ensure(&edge, &narrow)?;
    let sandbox = Sandbox::new()?;
    let mut wanted = overlay_endpoint(1, 2, "eth0")?;
    wanted.mtu = 1230;
    wanted.addresses.truncate(1);
    wanted.routes.truncate(1);
    edge.attach(&wanted, &sandbox)?;
    know_gateway_of(&sandbox, &["10.1.0.1"], "eth0")?;
    assert!(sandbox.ping("10.1.0.1")?);
    assert_eq!(
        endpoint_differences(
            &wanted,
            sandbox.path(),
            &edge.call(|k| k.observe(&wanted, sandbox.identity()))?
        ),
        []
    );
    assert_eq!(differences(&edge, &narrow)?, [""; 0]);
    Ok(())
}

#[test]
fn without_the_device_an_endpoint_is_refused_by_its_name() -> Result<()> {
    let edge = Edge::new()?;
    let sandbox = Sandbox::new()?;
    let error = edge.attach(&overlay_endpoint(1, 2, "eth0")?, &sandbox).err().context("an error")?;
    assert!(error.to_string().contains("wf-vxlan"), "{error}");
    assert_eq!(links(&sandbox)?, ["lo"]);
    Ok(())
}
