//! A host between sandboxes and two uplinks, for the tables of translation: what goes in by which program, what comes out.
//!
//! Networks: 7 is masqueraded (endpoints `a`, `b`), 8 another one like it (`c`), 9 internal, 10 plain, 11 routed.

use crate::{
    node::{GATEWAY_MAC, NETWORK, Node, entry, ifindex, ip},
    run::{REDIRECT, SHOT, Skb, UNSPEC},
    wire::{Packet, at, frame},
};
use ebpf_common::{DropReason, Timeouts};
use ipamd::{
    datapath::{Datapath, Direction, EndpointEntry, NodeSettings, Outside, PublishEntry},
    uplinks::{HostView, Uplink},
};
use ipamd_api::{MacAddr, PortMapping, Protocol};
use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

/// Ports that translated sources get when their own is taken: few, so that they run out.
pub(crate) const FIRST_PORT: u16 = 40_000;
pub(crate) const LAST_PORT: u16 = 40_003;
/// Most answered flows of an endpoint here.
pub(crate) const QUOTA: u32 = 3_000;

/// MACs of what comes from outside: the uplink's and the router's.
pub(crate) const FROM_ROUTER: (MacAddr, MacAddr) =
    (MacAddr([2, 0, 0, 0, 0, 0x10]), MacAddr([2, 0, 0, 0, 0, 0x20]));

/// Addresses of one family.
pub(crate) struct Family {
    pub(crate) a: &'static str,
    pub(crate) b: &'static str,
    /// In another network.
    pub(crate) c: &'static str,
    pub(crate) internal: &'static str,
    pub(crate) plain: &'static str,
    pub(crate) routed: &'static str,
    pub(crate) gateway: &'static str,
    /// Of the uplink with the default route.
    pub(crate) uplink: &'static str,
    /// Behind it.
    pub(crate) server: &'static str,
    pub(crate) router: &'static str,
    /// Of the other uplink, and somebody behind it.
    pub(crate) uplink2: &'static str,
    pub(crate) server2: &'static str,
    /// Reached without masquerade.
    pub(crate) excepted: &'static str,
}

pub(crate) const V4: Family = Family {
    a: "10.1.0.2",
    b: "10.1.0.3",
    c: "10.2.0.4",
    internal: "10.9.0.5",
    plain: "10.10.0.6",
    routed: "10.11.0.7",
    gateway: "10.1.0.1",
    uplink: "192.0.2.1",
    server: "203.0.113.9",
    router: "192.0.2.254",
    uplink2: "198.51.100.1",
    server2: "198.51.100.77",
    excepted: "172.20.1.1",
};

pub(crate) const V6: Family = Family {
    a: "fd01::2",
    b: "fd01::3",
    c: "fd02::4",
    internal: "fd09::5",
    plain: "fd10::6",
    routed: "fd11::7",
    gateway: "fd01::1",
    uplink: "2001:db8::1",
    server: "2001:db8:ffff::9",
    router: "2001:db8::fe",
    uplink2: "2001:db8:1::1",
    server2: "2001:db8:1::77",
    excepted: "2001:db8:20::1",
};

/// What a program is to do.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    /// On to the stack (or, of what leaves, on its way), unchanged.
    Stack,
    /// The same, as this packet.
    Changed(Vec<u8>),
    /// Out of the host, as this packet.
    Out(Vec<u8>),
    /// Into the sandbox of this endpoint, as this packet.
    Into(&'static str, Vec<u8>),
    Drop(DropReason),
}

pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) endpoints: Vec<EndpointEntry>,
    pub(crate) up0: u32,
    pub(crate) up1: u32,
    pub(crate) view: HostView,
}

impl Host {
    pub(crate) fn new() -> Self {
        let node = Node::new();
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
        }
        ip("link add bridge0 type bridge");
        ip("link set bridge0 up");
        for (name, v4, v6) in [("up0", V4.uplink, V6.uplink), ("up1", V4.uplink2, V6.uplink2)] {
            ip(&format!("link add {name} type veth peer name {name}p"));
            ip(&format!("addr add {v4}/24 dev {name}"));
            ip(&format!("addr add {v6}/64 dev {name} nodad"));
            ip(&format!("link set {name} up"));
            ip(&format!("link set {name}p up"));
        }
        ip(&format!("route add default via {}", V4.router));
        ip(&format!("-6 route add default via {}", V6.router));
        let (up0, up1) = (ifindex("up0"), ifindex("up1"));
        let uplink = |ifindex, name: &str, v4: &str, v6: &str| Uplink {
            ifindex,
            name: name.to_owned(),
            l3: false,
            ipv4: Some(v4.parse().unwrap()),
            ipv6: Some(v6.parse().unwrap()),
            mtu: 1500,
        };
        let uplinks =
            vec![uplink(up0, "up0", V4.uplink, V6.uplink), uplink(up1, "up1", V4.uplink2, V6.uplink2)];
        let own = [V4.uplink, V4.uplink2, V4.gateway, V6.uplink, V6.uplink2, V6.gateway];
        let view = HostView { uplinks, addresses: own.iter().map(|a| a.parse().unwrap()).collect() };
        let mut host = Self { node, endpoints: Vec::new(), up0, up1, view };
        host.configure(&[], &[]);
        host.node.datapath.set_host(&host.view).unwrap();
        for (i, (v4, v6, outside)) in [
            (V4.a, V6.a, Outside::Masquerade),
            (V4.b, V6.b, Outside::Masquerade),
            (V4.c, V6.c, Outside::Masquerade),
            (V4.internal, V6.internal, Outside::Masquerade),
            (V4.plain, V6.plain, Outside::Plain),
            (V4.routed, V6.routed, Outside::Routed),
        ]
        .into_iter()
        .enumerate()
        {
            host.add(u8::try_from(i + 2).unwrap(), v4, v6, outside);
        }
        let excepted = ["172.20.0.0/16".parse().unwrap(), "2001:db8:20::/48".parse().unwrap()];
        host.node.datapath.set_unmasqueraded(NETWORK, &excepted).unwrap();
        host
    }

    /// Removes what a table leaves: published ports, flows, lists, rules of routing (to the table 77).
    pub(crate) fn clean(&self) {
        for family in ["-4", "-6"] {
            let rule = || Command::new("ip").args([family, "rule", "del", "lookup", "77"]).output().unwrap();
            while rule().status.success() {}
        }
        self.node.datapath.retain_published(&[]).unwrap();
        self.node.datapath.remove_flows(&mut |_| true).unwrap();
        self.configure(&[], &[]);
    }

    fn add(&mut self, last: u8, v4: &str, v6: &str, outside: Outside) {
        let network = u32::from(v4.split('.').nth(1).unwrap().parse::<u8>().unwrap());
        let network = if network == 1 { NETWORK } else { network + 100 };
        let pool4 = format!("10.{}.0.0/16", v4.split('.').nth(1).unwrap());
        let pool6 = format!("{}::/64", v6.split("::").next().unwrap());
        self.node.datapath.set_pools(network, &[pool4.parse().unwrap(), pool6.parse().unwrap()]).unwrap();
        let made = entry(last);
        ip(&format!("link add {} type veth peer name p{last}", made.host_ifname));
        let gateway4 = format!("10.{}.0.1", v4.split('.').nth(1).unwrap()).parse().unwrap();
        let gateway6 = format!("{}::1", v6.split("::").next().unwrap()).parse().unwrap();
        let endpoint = EndpointEntry {
            host_ifindex: ifindex(&made.host_ifname),
            network,
            internal: v4 == V4.internal,
            ipv4: Some((v4.parse().unwrap(), gateway4)),
            ipv6: Some((v6.parse().unwrap(), gateway6)),
            mac: ipamd_api::mac_of_address(v4.parse().unwrap()),
            bridge_ifindex: ifindex("bridge0"),
            outside,
            published: true,
            ..made
        };
        self.node.datapath.attach(&endpoint).unwrap();
        self.endpoints.push(endpoint);
    }

    /// Settings with these node-wide lists.
    pub(crate) fn configure(&self, allow: &[&str], deny: &[&str]) {
        self.node.datapath.configure(&Self::settings(allow, deny)).unwrap();
    }

    /// From now on a connection that is over has expired.
    pub(crate) fn expire_closed(&self) {
        let timeouts = Timeouts { tcp_closed: 1, ..Timeouts::DEFAULT };
        let settings = NodeSettings { timeouts, ..Self::settings(&[], &[]) };
        self.node.datapath.configure(&settings).unwrap();
    }

    fn settings(allow: &[&str], deny: &[&str]) -> NodeSettings {
        let list = |of: &[&str]| of.iter().map(|cidr| cidr.parse().unwrap()).collect();
        NodeSettings {
            host_cookie: 1,
            nat_ports: FIRST_PORT..=LAST_PORT,
            flow_quota: QUOTA,
            timeouts: Timeouts::DEFAULT,
            stack_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fdcc::/64".parse().unwrap()],
            publish_allow: list(allow),
            publish_deny: list(deny),
            event_interval: Duration::from_secs(1),
        }
    }

    /// The endpoint that has an address.
    pub(crate) fn endpoint(&self, address: IpAddr) -> &EndpointEntry {
        let has = |e: &&EndpointEntry| {
            e.ipv4.is_some_and(|(a, _)| a == address) || e.ipv6.is_some_and(|(a, _)| a == address)
        };
        self.endpoints.iter().find(has).unwrap_or_else(|| panic!("no endpoint has {address}"))
    }

    /// Publishes ports of the endpoint with this address.
    pub(crate) fn publish(&self, address: &str, mapping: PortMapping) -> PublishEntry {
        let endpoint = self.endpoint(address.parse().unwrap());
        let entry = PublishEntry {
            endpoint: endpoint.id,
            network: endpoint.network,
            ipv4: endpoint.ipv4.map(|(a, _)| a),
            ipv6: endpoint.ipv6.map(|(a, _)| a),
            mapping,
        };
        self.node.datapath.publish(&entry).unwrap();
        entry
    }

    /// What the endpoint at `packet.from` sends.
    #[track_caller]
    pub(crate) fn pod(&self, what: &str, packet: &Packet, want: &Want) {
        self.pod_bytes(what, packet.from.ip(), &packet.bytes(), want);
    }

    /// The same of bytes.
    #[track_caller]
    pub(crate) fn pod_bytes(&self, what: &str, from: IpAddr, packet: &[u8], want: &Want) {
        let sender = self.endpoint(from);
        let macs = (GATEWAY_MAC, sender.mac);
        self.check(what, (Direction::FromPod, sender.host_ifindex, 0), macs, packet, want);
    }

    /// What comes in by the first uplink.
    #[track_caller]
    pub(crate) fn outside(&self, what: &str, packet: &Packet, want: &Want) {
        self.outside_bytes(what, &packet.bytes(), want);
    }

    /// The same of bytes.
    #[track_caller]
    pub(crate) fn outside_bytes(&self, what: &str, packet: &[u8], want: &Want) {
        self.check(what, (Direction::FromNetdev, self.up0, 0), FROM_ROUTER, packet, want);
    }

    /// What the stack sends out by the first uplink.
    #[track_caller]
    pub(crate) fn leaves(&self, what: &str, packet: &Packet, want: &Want) {
        self.check(what, (Direction::ToNetdev, self.up0, 0), FROM_ROUTER, &packet.bytes(), want);
    }

    /// Runs a program and checks what comes of it: the action, every byte, the drop counters.
    #[track_caller]
    pub(crate) fn check(
        &self,
        what: &str,
        (direction, at, segment): (Direction, u32, u32),
        macs: (MacAddr, MacAddr),
        packet: &[u8],
        want: &Want,
    ) {
        let before = self.node.drops();
        let (action, out) = self.run((direction, at, segment), &frame(macs, packet));
        let after = self.node.drops();
        let grown: Vec<&(String, u64)> = after.iter().filter(|d| !before.contains(d)).collect();
        let (wanted, bytes) = match want {
            Want::Stack => (UNSPEC, Some(frame(macs, packet))),
            Want::Changed(packet) => (UNSPEC, Some(frame(macs, packet))),
            Want::Out(packet) => (REDIRECT, Some(frame(macs, packet))),
            Want::Into(who, packet) => {
                let mac = self.endpoint(who.parse().unwrap()).mac;
                (REDIRECT, Some(frame((mac, GATEWAY_MAC), packet)))
            }
            Want::Drop(_) => (SHOT, None),
        };
        assert_eq!(action, wanted, "{what}: the action, for {want:?}; drops: {grown:?}; out: {out:02x?}");
        if let Some(bytes) = bytes {
            assert!(out == bytes, "{what}: came out as\n{out:02x?}, not as\n{bytes:02x?}");
        }
        match want {
            Want::Drop(reason) => assert_eq!(grown.len(), 1, "{what}: {grown:?}, not {reason:?}"),
            _ => assert!(grown.is_empty(), "{what}: dropped and not: {grown:?}"),
        }
        if let Want::Drop(reason) = want {
            assert_eq!(grown[0].0, reason.name(), "{what}");
        }
    }

    /// Runs a program on a packet as it is.
    pub(crate) fn run(
        &self,
        (direction, at, segment): (Direction, u32, u32),
        packet: &[u8],
    ) -> (i32, Vec<u8>) {
        self.node.run(direction, Skb { segment, ..Skb::at(at) }, packet)
    }

    /// A flow of an endpoint to the outside: the packet, and the answer to what it became with `as_source`.
    #[track_caller]
    pub(crate) fn flow_out(&self, what: &str, packet: &Packet, as_source: SocketAddr) {
        let sent = packet.becomes(as_source, packet.to);
        self.pod(&format!("{what}, there"), packet, &Want::Out(sent.bytes()));
        let answer = sent.answer();
        let got = answer.becomes(answer.from, packet.from);
        let who = address_text(packet.from.ip());
        self.outside(&format!("{what}, back"), &answer, &Want::Into(who, got.bytes()));
    }

    /// A client outside dials a port of the node, which leads to `backend`: both directions.
    #[track_caller]
    pub(crate) fn serves(&self, what: &str, packet: &Packet, backend: (&'static str, u16)) {
        let got = packet.becomes(packet.from, at(backend.0, backend.1));
        self.outside(&format!("{what}, there"), packet, &Want::Into(backend.0, got.bytes()));
        let answer = got.answer();
        let sent = answer.becomes(packet.to, answer.to);
        self.pod(&format!("{what}, back"), &answer, &Want::Out(sent.bytes()));
    }

    /// Flows that the datapath tracks.
    pub(crate) fn flows(&self) -> usize {
        let mut count = 0;
        self.node
            .datapath
            .flows(&mut |_| {
                count += 1;
                true
            })
            .unwrap();
        count
    }
}

/// The constant that an endpoint's address was made of.
pub(crate) fn address_text(address: IpAddr) -> &'static str {
    let all = [&V4, &V6].map(|f| [f.a, f.b, f.c, f.internal, f.plain, f.routed]);
    let found = all.iter().flatten().find(|text| text.parse::<IpAddr>() == Ok(address));
    found.unwrap_or_else(|| panic!("no endpoint has {address}"))
}

/// One port published at every address.
pub(crate) fn mapping(host_port: u16, container_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_port, container_port, count: 1, protocol, host_ip: None, allow_from: Vec::new() }
}
