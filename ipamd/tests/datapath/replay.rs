//! Replays: what they say is what a packet would have met, and no map knows of them.

use crate::{
    frames::{TCP, ipv4 as frame4, ipv6 as frame6},
    host::{FROM_ROUTER, Family, Host, mapping},
    node::{Bpffs, GATEWAY_MAC, GATEWAY4, Node},
    overlay_lab::{A, A6, B, DIRECT, Lab, NOBODY, NODE, OTHER, OUTSIDE, OWN, REMOTE, REMOTE6, VTEP, VTEP6},
    run::{REDIRECT, SHOT, Skb, UNSPEC},
    wire::{ACK, Kind, Packet, SYN, at, frame},
};
use aya::{
    maps::{MapInfo, MapType},
    util::nr_cpus,
};
use ebpf_common::DropReason;
use ipamd::{
    datapath::{Datapath, Direction, Outcome, Packet as MadeUp, Tunnel},
    trace::{Outer, in_vxlan},
};
use ipamd_api::{MacAddr, Protocol};
use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

families!(what_a_replay_says_is_what_happens_and_no_map_changes, a_replay_knows_the_flows_that_there_are);

/// Every entry of every pinned map, byte by byte.
type Dump = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// bpf(2), for values that no type here describes.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the callers fill in what the command wants, with pointers to buffers of the sizes that the kernel says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn dump(bpffs: &Bpffs) -> Dump {
    let dir = bpffs.path().join("weft/v1");
    let files = fs::read_dir(&dir).unwrap().map(|e| e.unwrap());
    let pins = files.filter(|e| !e.file_type().unwrap().is_dir());
    pins.map(|e| (e.file_name().into_string().unwrap(), entries(&e.path()))).collect()
}

fn entries(pin: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let info = MapInfo::from_pin(pin).unwrap();
    let kind = info.map_type().unwrap();
    if kind == MapType::RingBuf {
        return BTreeMap::new();
    }
    let per_cpu = matches!(kind, MapType::PerCpuArray | MapType::PerCpuHash);
    let size = info.value_size() as usize;
    let size = if per_cpu { size.next_multiple_of(8) * nr_cpus().unwrap() } else { size };
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes()).unwrap();
    let fd = bpf(7, &mut Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 }).unwrap();
    // SAFETY: the kernel has just made it for nobody else.
    let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    let element = |key: u64, value: u64| Element {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key,
        value,
        flags: 0,
    };
    let mut found = BTreeMap::new();
    let mut key: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0_u8; info.key_size() as usize];
        let from = key.as_ref().map_or(0, |key| key.as_ptr() as u64);
        if bpf(4, &mut element(from, next.as_mut_ptr() as u64)).is_err() {
            return found;
        }
        let mut value = vec![0_u8; size];
        bpf(1, &mut element(next.as_ptr() as u64, value.as_mut_ptr() as u64)).unwrap();
        found.insert(next.clone(), value);
        key = Some(next);
    }
}

/// Replays a packet, and then lets it happen: the decision and what comes out are the same, and between both no map has changed.
#[track_caller]
fn check(node: &Node, what: &str, direction: Direction, skb: Skb, frame: &[u8], want: Outcome) {
    let before = dump(&node.bpffs);
    let replay = node.datapath.replay().unwrap();
    let packet = MadeUp { ifindex: skb.ifindex, came_by: skb.came_by, frame };
    let replayed = replay.run(direction, packet).unwrap();
    assert_eq!(replayed.outcome, want, "{what}");
    drop(replay);
    let after = dump(&node.bpffs);
    let changed: Vec<_> = before.iter().filter(|(name, entries)| after.get(*name) != Some(entries)).collect();
    assert!(before.len() == after.len() && changed.is_empty(), "{what}: {changed:?}");
    let mut events = 0;
    node.datapath.drop_events(Duration::ZERO, &mut |_| events += 1).unwrap();
    assert_eq!(events, 0, "{what}: events");

    let (action, out) = node.run(direction, skb, frame);
    let wanted = match want {
        Outcome::Pass => UNSPEC,
        Outcome::Dropped(_) | Outcome::Quiet => SHOT,
        Outcome::Into(_) | Outcome::Out { .. } | Outcome::ToDevice => REDIRECT,
        Outcome::Unknown(other) => other,
    };
    assert_eq!(action, wanted, "{what}: when it happens");
    // What an outer header has of chance is not to be foretold.
    let chance = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        if let (true, Some(fields)) = (out.len() > packet.frame.len(), frame.get_mut(18..26)) {
            fields.fill(0);
        }
        frame
    };
    assert!(
        chance(&out) == chance(&replayed.frame),
        "{what}:\n{out:02x?}\nwas foretold as\n{:02x?}",
        replayed.frame
    );
    // What it dropped is told now.
    node.datapath.drop_events(Duration::ZERO, &mut |_| {}).unwrap();
}

fn what_a_replay_says_is_what_happens_and_no_map_changes(host: &Host, f: &Family) {
    host.publish(f.b, mapping(8080, 80, Protocol::Tcp));
    let closed = ipamd_api::PortMapping {
        allow_from: vec!["198.18.0.0/15".parse().unwrap()],
        ..mapping(8081, 80, Protocol::Tcp)
    };
    host.publish(f.b, closed);
    let veth = |address: &str| host.endpoint(address.parse().unwrap()).host_ifindex;
    let hop: IpAddr = f.router.parse().unwrap();
    let out = Outcome::Out { ifindex: host.up0, hop };
    // A port of its own for each: one that is taken is replaced by chance.
    let source = std::cell::Cell::new(5000);
    let pod = |what: &str, from: &str, to: &str, port: u16, kind: Kind, want: Outcome| {
        source.set(source.get() + 1);
        let sender = host.endpoint(from.parse().unwrap());
        let packet = Packet::new(at(from, source.get()), at(to, port), kind);
        let frame = frame((GATEWAY_MAC, sender.mac), &packet.bytes());
        check(&host.node, what, Direction::FromPod, Skb::at(sender.host_ifindex), &frame, want);
    };
    let syn = Kind::Tcp(SYN);
    pod("a neighbour", f.a, f.b, 443, syn, Outcome::Into(veth(f.b)));
    pod("outside", f.a, f.server, 443, syn, out);
    pod("outside, UDP", f.a, f.server, 53, Kind::Udp, out);
    pod("outside, an echo", f.plain, f.server, 5004, Kind::Ask, out);
    pod("another network", f.a, f.c, 443, syn, Outcome::Dropped(DropReason::Isolated));
    pod("internal", f.internal, f.server, 443, syn, Outcome::Dropped(DropReason::Internal));
    pod("the node itself", f.a, f.uplink, 22, syn, Outcome::Pass);
    pod("a published port", f.c, f.uplink, 8080, syn, Outcome::Into(veth(f.b)));
    pod("not allowed", f.c, f.uplink, 8081, syn, Outcome::Dropped(DropReason::NotAllowed));

    // Its source port is one of the gateway's, by chance.
    let own = host.endpoint(f.b.parse().unwrap());
    let dialled = frame((GATEWAY_MAC, own.mac), &Packet::new(at(f.b, 4999), at(f.uplink, 8080), syn).bytes());
    let replay = host.node.datapath.replay().unwrap();
    let packet = MadeUp { ifindex: own.host_ifindex, came_by: 0, frame: &dialled };
    assert_eq!(replay.run(Direction::FromPod, packet).unwrap().outcome, Outcome::Into(own.host_ifindex));
    drop(replay);

    let outside = |what: &str, direction: Direction, from: &str, to: &str, port: u16, want: Outcome| {
        source.set(source.get() + 1);
        let packet = Packet::new(at(from, source.get()), at(to, port), syn);
        check(&host.node, what, direction, Skb::at(host.up0), &frame(FROM_ROUTER, &packet.bytes()), want);
    };
    let (from, to) = (Direction::FromNetdev, Direction::ToNetdev);
    outside("a client of a published port", from, f.server, f.uplink, 8080, Outcome::Into(veth(f.b)));
    outside(
        "a client that is not allowed",
        from,
        f.server,
        f.uplink,
        8081,
        Outcome::Dropped(DropReason::NotAllowed),
    );
    outside("a client of the node", from, f.server, f.uplink, 22, Outcome::Pass);
    outside("a sandbox's own address", from, f.server, f.a, 80, Outcome::Dropped(DropReason::NotPublished));
    outside("one of a routed network", from, f.server, f.routed, 80, Outcome::Into(veth(f.routed)));
    outside("what the stack forwards", to, f.a, f.server, 80, Outcome::Pass);

    let sent = frame(
        (host.endpoint(f.a.parse().unwrap()).mac, GATEWAY_MAC),
        &Packet::new(at(f.b, 1), at(f.a, 2), syn).bytes(),
    );
    check(&host.node, "from the stack", Direction::ToPod, Skb::at(veth(f.a)), &sent, Outcome::Pass);
    let crossing = frame(
        (host.endpoint(f.a.parse().unwrap()).mac, GATEWAY_MAC),
        &Packet::new(at(f.c, 1), at(f.a, 2), syn).bytes(),
    );
    let dropped = Outcome::Dropped(DropReason::Isolated);
    check(
        &host.node,
        "from another network by the stack",
        Direction::ToPod,
        Skb::at(veth(f.a)),
        &crossing,
        dropped,
    );
}

fn a_replay_knows_the_flows_that_there_are(host: &Host, f: &Family) {
    let sender = host.endpoint(f.a.parse().unwrap());
    let packet = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(SYN));
    let answer = packet.becomes(at(f.uplink, 5000), packet.to).answer();
    let bytes = frame(FROM_ROUTER, &answer.bytes());
    check(&host.node, "no flow", Direction::FromNetdev, Skb::at(host.up0), &bytes, Outcome::Pass);
    host.flow_out("a flow", &packet, at(f.uplink, 5000));
    check(
        &host.node,
        "its answer",
        Direction::FromNetdev,
        Skb::at(host.up0),
        &bytes,
        Outcome::Into(sender.host_ifindex),
    );
    let out = Outcome::Out { ifindex: host.up0, hop: f.router.parse().unwrap() };
    let goes_on = frame((GATEWAY_MAC, sender.mac), &packet.kind(Kind::Tcp(ACK)).bytes());
    check(&host.node, "it goes on", Direction::FromPod, Skb::at(sender.host_ifindex), &goes_on, out);
    // Hops of one replay see what the earlier ones did: the answer to a flow that only the replay began.
    let replay = host.node.datapath.replay().unwrap();
    let asked = Packet::new(at(f.b, 5002), at(f.server, 443), Kind::Tcp(SYN));
    let other = host.endpoint(f.b.parse().unwrap());
    let ask = frame((GATEWAY_MAC, other.mac), &asked.bytes());
    let there =
        replay.run(Direction::FromPod, MadeUp { ifindex: other.host_ifindex, came_by: 0, frame: &ask });
    assert_eq!(there.unwrap().outcome, out);
    let back = frame(FROM_ROUTER, &asked.becomes(at(f.uplink, 5002), asked.to).answer().bytes());
    let back = replay.run(Direction::FromNetdev, MadeUp { ifindex: host.up0, came_by: 0, frame: &back });
    assert_eq!(back.unwrap().outcome, Outcome::Into(other.host_ifindex));
}

#[test]
fn a_replay_shows_which_node_an_overlay_packet_goes_to() {
    let lab = Lab::new();
    let bytes = frame4((ipamd_api::mac_of_address(REMOTE.into()), lab.a.mac), A, REMOTE, TCP, &syn());
    let skb = Skb::at(lab.a.host_ifindex);
    check(&lab.node, "by the device", Direction::FromPod, skb, &bytes, Outcome::ToDevice);
    let mut view = lab.view();
    view.underlays = vec![(lab.up, NODE)];
    lab.node.datapath.set_overlay(&view).unwrap();
    let past = Outcome::Out { ifindex: lab.up, hop: VTEP.into() };
    check(&lab.node, "past the device", Direction::FromPod, skb, &bytes, past);

    let inner = frame4((lab.a.mac, MacAddr([2; 6])), REMOTE, A, TCP, &syn());
    let outer = |source: IpAddr| Outer { source, destination: NODE.into(), port: 4789, vni: 4103 };
    let mac = MacAddr([2; 6]);
    let comes = in_vxlan(&outer(VTEP.into()), &inner, mac, mac);
    let skb = Skb::at(lab.up);
    check(&lab.node, "from a node", Direction::FromNetdev, skb, &comes, Outcome::Into(lab.a.host_ifindex));
    let comes = in_vxlan(&outer(IpAddr::from([192, 0, 2, 77])), &inner, mac, mac);
    check(&lab.node, "from nobody's node", Direction::FromNetdev, skb, &comes, Outcome::Pass);
}

#[test]
fn what_comes_in_an_outer_header_is_replayed_with_it() {
    use DropReason::{Isolated, NoSuchAddress, NotPublished, SpoofedIp, UnknownPeer};
    let lab = Lab::new();
    let (into, stranger) = (Outcome::Into(lab.a.host_ifindex), IpAddr::from([192, 0, 2, 77]));
    let macs = (lab.a.mac, MacAddr([2; 6]));
    let comes = |from, to| frame4(macs, from, to, TCP, &syn());
    let of6 = frame6(macs, (REMOTE6, A6), &[], TCP, &syn());
    let before = dump(&lab.node.bpffs);
    for (what, vni, sender, frame, want) in [
        ("from a node", 4103, VTEP.into(), comes(REMOTE, A), into),
        ("over IPv6", 4103, VTEP6.into(), comes(REMOTE, A), into),
        ("IPv6", 4103, VTEP.into(), of6.clone(), into),
        ("IPv6 over IPv6", 4103, VTEP6.into(), of6, into),
        ("another network's number", 99, VTEP.into(), comes(REMOTE, A), Outcome::Dropped(UnknownPeer)),
        ("from nobody's node", 4103, stranger, comes(REMOTE, A), Outcome::Dropped(UnknownPeer)),
        ("from another network", 4103, VTEP.into(), comes(OTHER, A), Outcome::Dropped(Isolated)),
        ("as somebody who is here", 4103, VTEP.into(), comes(B, A), Outcome::Dropped(SpoofedIp)),
        ("from outside", 4103, VTEP.into(), comes(OUTSIDE, A), Outcome::Dropped(NotPublished)),
        ("for another node", 4103, VTEP.into(), comes(REMOTE, DIRECT), Outcome::Dropped(NoSuchAddress)),
        ("for nobody", 4103, VTEP.into(), comes(REMOTE, NOBODY), Outcome::Pass),
        ("for the node", 4103, VTEP.into(), comes(REMOTE, OWN), Outcome::Pass),
    ] {
        let replay = lab.node.datapath.replay().unwrap();
        let packet = MadeUp { ifindex: lab.device, came_by: lab.device, frame: &frame };
        for _ in 0..2 {
            let replayed = replay.run_tunnelled(Tunnel { vni, sender }, packet).unwrap();
            assert_eq!(replayed.outcome, want, "{what}");
        }
        // Without the header it is what any made-up packet is there.
        let bare = replay.run(Direction::FromOverlay, packet).unwrap();
        assert_eq!(bare.outcome, Outcome::Dropped(UnknownPeer), "{what}");
    }
    assert_eq!(dump(&lab.node.bpffs), before);
}

/// A header of TCP that says SYN.
fn syn() -> Vec<u8> {
    [&[0x13, 0x88, 0, 80][..], &[0; 8], &[0x50, 2, 1, 0, 0, 0, 0, 0]].concat()
}

#[test]
fn a_replay_leaves_no_pin_and_takes_away_what_a_killed_one_left() {
    let node = Node::new();
    let pins = node.bpffs.path().join("weft/v1");
    let left = pins.join("replay");
    fs::create_dir(&left).unwrap();
    aya::maps::MapData::from_pin(pins.join("DROPS")).unwrap().pin(left.join("DROPS")).unwrap();
    let replay = node.datapath.replay().unwrap();
    assert!(!left.exists());
    drop(replay);
    assert!(!left.exists());
}

#[test]
fn what_would_be_copied_to_many_is_not_replayed() {
    let node = Node::new();
    let a = node.attached(2);
    let replay = node.datapath.replay().unwrap();
    let to_all = frame4((MacAddr([0xff; 6]), a.mac), A, GATEWAY4, TCP, &syn());
    for frame in [&to_all[..], &[]] {
        let refused = replay.run(Direction::FromPod, MadeUp { ifindex: a.host_ifindex, came_by: 0, frame });
        assert!(refused.unwrap_err().to_string().contains("group"));
    }
}
