//! Networks: the bridge as it has to be, kept so, and harmless to the node it is on.

use crate::edge::{Edge, STRANGE_MAC, endpoint, json, net, network};
use anyhow::{Context, Result};
use ipamd::kernel::{Ipv6Forwarding, Kernel, NetworkWiring};
use ipamd::reconcile::network_differences;
use std::{fs, path::Path, time::Duration};
use weft_tests::{Sandbox, TestNetns, poll_until};

fn sysctl(netns: &TestNetns, path: &str) -> Result<String> {
    let path = Path::new("/proc/sys/net").join(path);
    let text = netns.run(|| fs::read_to_string(&path))?;
    Ok(text.with_context(|| path.display().to_string())?.trim().to_owned())
}

fn differences(edge: &Edge, wanted: &NetworkWiring) -> Result<Vec<String>> {
    let observed = edge.call(|k| k.observe_network(wanted))?;
    Ok(network_differences(wanted, &observed).into_iter().map(|d| d.subject).collect())
}

#[test]
fn a_bridge_is_made_as_wanted_and_then_left_alone() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = network(1)?;
    assert_eq!(differences(&edge, &wanted)?, ["bridge wf-1"]);
    edge.network(&wanted)?;
    let link = || -> Result<_> {
        let mut link = json(&edge.host, "link show wf-1")?;
        link[0]["linkinfo"]["info_data"]["gc_timer"] = 0.into();
        Ok(link)
    };
    let made = link()?;
    let data = &made[0]["linkinfo"]["info_data"];
    assert_eq!(made[0]["address"], wanted.mac.to_string());
    assert_eq!(made[0]["mtu"], 1400);
    assert_eq!(
        (&data["stp_state"], &data["mcast_snooping"], &data["vlan_filtering"]),
        (&0.into(), &0.into(), &0.into())
    );
    assert!(made[0]["flags"].as_array().is_some_and(|f| f.contains(&"UP".into())));
    let addresses = json(&edge.host, "addr show wf-1")?;
    let addresses = addresses[0]["addr_info"].as_array().context("addresses")?;
    for wanted in ["10.1.0.1", "fd00:1::1"] {
        let found = addresses.iter().find(|a| a["local"] == wanted).context(wanted)?;
        assert_eq!(found["tentative"], serde_json::Value::Null, "{wanted} can be used at once");
    }

    for (path, value) in [
        ("ipv4/conf/wf-1/forwarding", "1"),
        ("ipv4/conf/wf-1/send_redirects", "0"),
        ("ipv4/conf/wf-1/rp_filter", "2"),
        ("ipv6/conf/wf-1/accept_ra", "0"),
        ("ipv6/conf/wf-1/forwarding", "1"),
        ("ipv4/ip_forward", "0"),
    ] {
        assert_eq!(sysctl(&edge.host, path)?, value, "{path}");
    }
    assert_eq!(differences(&edge, &wanted)?, [""; 0]);
    edge.network(&wanted)?;
    assert_eq!(link()?, made);
    Ok(())
}

#[test]
fn ipv6_is_forwarded_by_the_bridge_alone_where_the_kernel_can() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let all = sysctl(&edge.host, "ipv6/conf/all/forwarding")?;
    match sysctl(&edge.host, "ipv6/conf/wf-1/force_forwarding") {
        Ok(forced) => assert_eq!((forced.as_str(), all.as_str()), ("1", "0")),
        // Linux before 6.17.
        Err(_) => assert_eq!(all, "1"),
    }
    assert_eq!(
        sysctl(&edge.host, "ipv6/conf/wf-1/forwarding")?,
        "1",
        "bpf_fib_lookup asks for it in any case"
    );
    Ok(())
}

#[test]
fn forwarding_that_someone_resets_is_mended() -> Result<()> {
    for way in [Ipv6Forwarding::Auto, Ipv6Forwarding::AllDevices] {
        let edge = Edge::with_forwarding(way)?;
        edge.network(&network(1)?)?;
        for all in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            for value in ["1", "0"] {
                edge.host.run(|| fs::write(Path::new("/proc/sys/net").join(all), value))??;
            }
        }
        let state = || -> Result<Vec<String>> {
            ["ipv4", "ipv6"]
                .iter()
                .map(|f| sysctl(&edge.host, &format!("{f}/conf/wf-1/forwarding")))
                .collect()
        };
        assert_eq!(state()?, ["0", "0"], "{way:?}: as `sysctl --system` may do");
        edge.network(&network(1)?)?;
        assert_eq!(state()?, ["1", "1"], "{way:?}");
    }
    Ok(())
}

#[test]
fn an_internal_network_forwards_nothing() -> Result<()> {
    let edge = Edge::new()?;
    let mut wanted = network(1)?;
    wanted.internal = true;
    edge.network(&wanted)?;
    assert_eq!(sysctl(&edge.host, "ipv4/conf/wf-1/forwarding")?, "0");
    assert_eq!(sysctl(&edge.host, "ipv6/conf/all/forwarding")?, "0");
    assert_eq!(sysctl(&edge.host, "ipv6/conf/wf-1/forwarding")?, "0");
    if let Ok(forced) = sysctl(&edge.host, "ipv6/conf/wf-1/force_forwarding") {
        assert_eq!(forced, "0");
    }
    Ok(())
}

#[test]
fn a_bridge_that_was_changed_by_hand_is_mended_in_place() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = network(1)?;
    edge.network(&wanted)?;
    let sandbox = Sandbox::new()?;
    let member = endpoint(1, 2, "eth0")?;
    edge.attach(&member, &sandbox)?;
    let before = json(&edge.host, "link show wf-1")?[0]["ifindex"].clone();
    let cases = [
        ("link set wf-1 address 02:00:00:aa:bb:cc".to_owned(), "MAC of wf-1"),
        ("link set wf-1 mtu 1300".to_owned(), "MTU of wf-1"),
        ("link set wf-1 down".to_owned(), "state of wf-1"),
        ("addr del 10.1.0.1/24 dev wf-1".to_owned(), "address 10.1.0.1/24 on wf-1"),
        ("addr del fd00:1::1/64 dev wf-1".to_owned(), "address fd00:1::1/64 on wf-1"),
        ("addr add 10.99.0.1/24 dev wf-1".to_owned(), "address 10.99.0.1/24 on wf-1"),
    ];
    for (damage, subject) in cases {
        edge.host.ip(&damage)?;
        let found = differences(&edge, &wanted)?;
        assert!(found.iter().any(|s| s == subject), "{damage}: {found:?}");
        edge.network(&wanted)?;
        assert_eq!(differences(&edge, &wanted)?, [""; 0], "{damage}");
    }
    edge.host.ip("link set wf-1 type bridge stp_state 1 mcast_snooping 1")?;
    edge.network(&wanted)?;
    let link = json(&edge.host, "link show wf-1")?;
    let data = &link[0]["linkinfo"]["info_data"];
    assert_eq!((&data["stp_state"], &data["mcast_snooping"]), (&0.into(), &0.into()));
    assert_eq!(link[0]["ifindex"], before, "the bridge is the same");
    let port = json(&edge.host, &format!("link show {}", member.host_ifname))?;
    assert_eq!(port[0]["master"], "wf-1", "its port stayed");
    Ok(())
}

#[test]
fn a_bridge_that_was_removed_by_hand_comes_back_whole() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = network(1)?;
    edge.network(&wanted)?;
    edge.host.ip("link del wf-1")?;
    edge.network(&wanted)?;
    assert_eq!(differences(&edge, &wanted)?, [""; 0]);
    assert_eq!(sysctl(&edge.host, "ipv4/conf/wf-1/forwarding")?, "1");
    Ok(())
}

#[test]
fn the_index_of_a_bridge_is_told() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = network(1)?;
    assert_eq!(edge.call(|k| Ok(k.bridge_ifindex("wf-1")))?, None);
    let told = edge.call(|k| k.ensure_network(&wanted))?.context("an index")?;
    let sandbox = Sandbox::new()?;
    let (created, _) = edge.attach(&endpoint(1, 2, "eth0")?, &sandbox)?;
    assert_eq!(json(&edge.host, "link show wf-1")?[0]["ifindex"], told);
    assert_eq!(created.bridge_ifindex, Some(told));
    assert_eq!(edge.call(|k| Ok(k.bridge_ifindex("wf-1")))?, Some(told));
    edge.host.ip("link del wf-1")?;
    let again = edge.call(|k| k.ensure_network(&wanted))?;
    assert!(again.is_some_and(|index| index != told), "another bridge: {again:?}");
    Ok(())
}

#[test]
fn a_link_of_the_name_that_is_no_bridge_is_left_alone() -> Result<()> {
    let edge = Edge::new()?;
    edge.host.ip("link add wf-1 type veth peer name other")?;
    let wanted = network(1)?;
    let error = edge.call(|k| k.ensure_network(&wanted)).err().context("an error")?.to_string();
    assert!(error.contains("wf-1") && error.contains("no bridge"), "{error}");
    edge.call(|k| k.remove_network(&wanted))?;
    assert_eq!(edge.links()?, ["lo", "other", "wf-1"]);
    Ok(())
}

#[test]
fn mac_and_mtu_of_a_bridge_outlive_its_ports() -> Result<()> {
    for mtu in [1500, 9000] {
        let edge = Edge::new()?;
        let mut wanted = network(1)?;
        wanted.mtu = mtu;
        edge.network(&wanted)?;
        let sandbox = Sandbox::new()?;
        let mut members = Vec::new();
        let check = |when: &str| -> Result<()> {
            let link = json(&edge.host, "link show wf-1")?;
            assert_eq!(link[0]["address"], wanted.mac.to_string(), "{when}");
            assert_eq!(link[0]["mtu"], mtu, "{when}");
            Ok(())
        };
        for number in 2..5 {
            let mut member = endpoint(1, number, &format!("eth{number}"))?;
            member.mtu = mtu;
            edge.attach(&member, &sandbox)?;
            check("a port came")?;
            members.push(member);
        }
        for member in members {
            edge.remove(&member, sandbox.identity())?;
            check("a port went")?;
        }
    }
    Ok(())
}

#[test]
fn removing_a_network_twice_succeeds() -> Result<()> {
    let edge = Edge::new()?;
    let wanted = network(1)?;
    edge.network(&wanted)?;
    for _ in 0..2 {
        edge.call(|k| k.remove_network(&wanted))?;
        assert_eq!(edge.links()?, ["lo"]);
    }
    edge.network(&wanted)?;
    assert_eq!(sysctl(&edge.host, "ipv4/conf/wf-1/forwarding")?, "1", "made again, with its settings");
    Ok(())
}

/// A router on the node's uplink `up0`.
struct Uplink {
    router: TestNetns,
}

impl Uplink {
    fn new(edge: &Edge) -> Result<Self> {
        let router = TestNetns::named("router")?;
        let path = router.path().display();
        edge.host.ip(&format!("link add up0 type veth peer name r0 netns {path}"))?;
        edge.host.ip("link set up0 up")?;
        router.ip("link set r0 addrgenmode none")?;
        router.ip("link set r0 up")?;
        router.ip("addr add fe80::1/64 dev r0 nodad")?;
        Ok(Self { router })
    }

    /// Sends a router advertisement (RFC 4861, section 4.2) with a lifetime of 1800 s to all nodes.
    fn advertise(&self) -> Result<()> {
        let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        self.router.run(|| send_icmpv6(&message, "r0"))?
    }

    /// Whether the node has the default route that the advertisement gives.
    fn has_route(edge: &Edge) -> Result<bool> {
        Ok(edge.host.ip("-6 route show default")?.contains("via fe80::1 dev up0 proto ra"))
    }

    /// Sends advertisements until the node has learned its route.
    fn teach(&self, edge: &Edge) -> Result<()> {
        poll_until(Duration::from_secs(60), "the route of a router advertisement", || {
            self.advertise().is_ok() && Self::has_route(edge).unwrap_or(false)
        })
    }
}

/// Sends to ff02::1 with hop limit 255; the kernel adds the checksum.
fn send_icmpv6(message: &[u8], ifname: &str) -> Result<()> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
    };
    use std::{
        net::{Ipv6Addr, SocketAddrV6},
        os::fd::AsRawFd,
    };
    let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
    let hops: libc::c_int = 255;
    // SAFETY: the pointer is to a live local, and the length is its size.
    let set = unsafe {
        libc::setsockopt(
            raw.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MULTICAST_HOPS,
            std::ptr::from_ref(&hops).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    anyhow::ensure!(set == 0, "setting the hop limit: {}", std::io::Error::last_os_error());
    let index = nix::net::if_::if_nametoindex(ifname)?;
    let to = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
    sendto(raw.as_raw_fd(), message, &SockaddrIn6::from(to), MsgFlags::empty())?;
    Ok(())
}

#[test]
fn router_advertisements_of_the_uplink_survive_a_network() -> Result<()> {
    for way in [Ipv6Forwarding::Auto, Ipv6Forwarding::AllDevices] {
        let edge = Edge::with_forwarding(way)?;
        let uplink = Uplink::new(&edge)?;
        uplink.teach(&edge)?;
        edge.network(&network(1)?)?;
        assert!(Uplink::has_route(&edge)?, "{way:?}: the route that was learned is still there");
        let listens = if sysctl(&edge.host, "ipv6/conf/all/forwarding")? == "1" { "2" } else { "1" };
        assert_eq!(sysctl(&edge.host, "ipv6/conf/up0/accept_ra")?, listens, "{way:?}");
        edge.host.ip("-6 route del default via fe80::1 dev up0")?;
        uplink.teach(&edge).with_context(|| format!("{way:?}: learning a route again"))?;
    }
    Ok(())
}

#[test]
fn without_accept_ra_the_advertisements_would_be_lost() -> Result<()> {
    // The reason for all the care, and the proof that the test above can fail.
    let edge = Edge::new()?;
    let uplink = Uplink::new(&edge)?;
    uplink.teach(&edge)?;
    edge.host.run(|| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))??;
    assert!(!Uplink::has_route(&edge)?);
    Ok(())
}

#[test]
fn settings_of_other_devices_are_put_back() -> Result<()> {
    let edge = Edge::with_forwarding(Ipv6Forwarding::AllDevices)?;
    edge.host.ip("link add up0 type veth peer name up1")?;
    edge.host.run(|| fs::write("/proc/sys/net/ipv6/conf/up1/accept_ra", "0"))??;
    edge.host.run(|| fs::write("/proc/sys/net/ipv6/conf/up1/forwarding", "1"))??;
    let state = || -> Result<Vec<String>> {
        let paths = ["all/forwarding", "up0/accept_ra", "up0/forwarding", "up1/accept_ra", "up1/forwarding"];
        paths.iter().map(|p| sysctl(&edge.host, &format!("ipv6/conf/{p}"))).collect()
    };
    let before = state()?;
    assert_eq!(before, ["0", "1", "0", "0", "1"]);
    edge.network(&network(1)?)?;
    edge.network(&network(2)?)?;
    assert_eq!(state()?, ["1", "2", "1", "0", "1"]);
    let undo = edge.state.path().join("sysctl-undo.json");
    assert!(undo.is_file());

    // Someone switches forwarding off, another daemon takes over: the first values still count.
    edge.host.run(|| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0"))??;
    let first = network(1)?;
    edge.call(|k| k.remove_network(&first))?;
    edge.network(&network(1)?)?;
    assert_eq!(sysctl(&edge.host, "ipv6/conf/all/forwarding")?, "1");

    edge.call(ipamd::kernel::NetlinkKernel::undo_settings)?;
    assert_eq!(state()?, before);
    assert!(!undo.exists());
    edge.call(ipamd::kernel::NetlinkKernel::undo_settings)?;
    assert_eq!(state()?, before, "nothing is left to undo");
    Ok(())
}

#[test]
fn a_network_without_ipv6_needs_none() -> Result<()> {
    let edge = Edge::new()?;
    let mut wanted = network(1)?;
    wanted.gateways = vec![net("10.1.0.1/24")?];
    wanted.mac = STRANGE_MAC;
    edge.network(&wanted)?;
    assert_eq!(differences(&edge, &wanted)?, [""; 0]);
    assert_eq!(sysctl(&edge.host, "ipv6/conf/all/forwarding")?, "0");
    Ok(())
}
