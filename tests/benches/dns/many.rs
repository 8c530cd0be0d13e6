//! What a question costs among few and many names: in the program that answers it, and in memory.

use crate::shared::{
    go_on,
    programs::{self, context, map_memory, mb, median_of, options},
};
use anyhow::{Context, Result, ensure};
use ipamd::datapath::{Datapath, DatapathOptions, Direction, DnsMode, EbpfDatapath, EndpointEntry, NameRow};
use ipamd_api::{EndpointId, MacAddr, mac_of_address};
use std::{net::Ipv4Addr, time::Instant};
use weft_tests::{BpfMount, TestNetns};

/// Names of the network.
const COUNTS: [u32; 3] = [10, 1_000, 100_000];

/// Runs of each kind of packet, each on a packet of its own.
const RUNS: usize = 20_000;

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0x57, 10, 1, 0, 1]);
const NETWORK: u32 = 7;

/// What a program returns for a packet that it sent on its way (linux/pkt_cls.h).
const REDIRECT: u32 = 7;

/// A host with two containers on one network.
struct Lab {
    datapath: EbpfDatapath,
    pod: EndpointEntry,
    bpf: BpfMount,
}

/// Measures in a namespace of its own.
pub(crate) fn many() -> Result<()> {
    let host = TestNetns::named("lab")?;
    let id = |last: u64| EndpointId::new(0xabc0_0000_0000 + last).context("an endpoint's number");
    let ids = [id(2)?, id(3)?];
    for (n, id) in ids.iter().enumerate() {
        host.ip(&format!("link add {} type veth peer name pod{n}", id.host_ifname()))?;
        host.ip(&format!("link set {} up", id.host_ifname()))?;
        host.ip(&format!("link set pod{n} up"))?;
    }
    host.run(|| measure(&Lab::open(ids)?))?
}

impl Lab {
    fn open(ids: [EndpointId; 2]) -> Result<Self> {
        let bpf = BpfMount::new()?;
        let datapath = EbpfDatapath::open(&bpf.path().join("weft"), &DatapathOptions::default())?;
        datapath.set_pools(NETWORK, &["10.1.0.0/16".parse()?])?;
        let endpoint = |id, address| -> Result<EndpointEntry> {
            let entry = programs::endpoint(id, NETWORK, address, (GATEWAY, GATEWAY_MAC))?;
            Ok(EndpointEntry { dns: DnsMode::Gateway, ..entry })
        };
        let (pod, neighbour) = (endpoint(ids[0], POD)?, endpoint(ids[1], NEIGHBOUR)?);
        datapath.attach(&pod)?;
        datapath.attach(&neighbour)?;
        Ok(Self { datapath, pod, bpf })
    }

    /// Median of the kernel's time for one packet; `n` counts its runs.
    fn cost(&self, answered: bool, packet: impl Fn(usize) -> Vec<u8>) -> Result<f64> {
        let context = context(self.pod.host_ifindex);
        median_of(RUNS, |n| {
            let packet = packet(n);
            let ran = self.datapath.test_run(Direction::FromPod, options(&packet, &context))?;
            ensure!(!answered || ran.return_value == REDIRECT, "the program returned {}", ran.return_value);
            Ok(ran.duration)
        })
    }

    /// Bytes of the maps of names.
    fn memory(&self) -> Result<u64> {
        let maps = map_memory(&self.bpf.path().join("weft"))?;
        let of_names =
            maps.iter().filter(|(name, _)| ["NAMES", "DOMAINS", "POINTERS"].contains(&name.as_str()));
        let (count, bytes) = of_names.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes));
        ensure!(count == 3, "not all maps of names are pinned: {maps:?}");
        Ok(bytes)
    }
}

fn measure(lab: &Lab) -> Result<()> {
    let asks = |name: &str| frame(GATEWAY_MAC, GATEWAY, &datagram(&question(name)), 17);
    let other = |_| frame(mac_of_address(NEIGHBOUR.into()), NEIGHBOUR, &segment(), 6);
    println!(
        "\nnames of a network: ns of one packet in the program (median of {RUNS} runs, what a test run costs included), memory of the maps"
    );
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10} {:>12} {:>14}",
        "names", "one name", "any name", "PTR", "missed", "no question", "maps, MB (B each)"
    );
    let before = lab.memory()?;
    let mut there = 0;
    for count in COUNTS {
        let begun = Instant::now();
        while there < count {
            go_on()?;
            let next = count.min(there + 10_000);
            lab.datapath.change_names(&(there..next).flat_map(rows).collect::<Vec<_>>(), &[])?;
            there = next;
        }
        let took = begun.elapsed();
        // Far from each other in whatever order they were put.
        let any = |n: usize| u32::try_from(n).unwrap_or(0).wrapping_mul(2_654_435_761) % count;
        let costs = [
            lab.cost(true, |_| asks("name-7"))?,
            lab.cost(true, |n| asks(&format!("name-{}", any(n))))?,
            lab.cost(true, |n| {
                let [a, b, c, d] = address(any(n)).octets();
                frame(
                    GATEWAY_MAC,
                    GATEWAY,
                    &datagram(&query(&format!("{d}.{c}.{b}.{a}.in-addr.arpa"), 12)),
                    17,
                )
            })?,
            lab.cost(false, |n| asks(&format!("nobody-{n}")))?,
            lab.cost(true, other)?,
        ];
        let [one, any, pointer, missed, no_question] = costs;
        let bytes = lab.memory()?.saturating_sub(before);
        println!(
            "{count:>8} {one:>10.0} {any:>10.0} {pointer:>10.0} {missed:>10.0} {no_question:>12.0} {:>9.2} ({:.0}), written in {took:.2?}",
            mb(bytes),
            mb(bytes) * 1e6 / f64::from(count)
        );
    }
    lab.datapath.attach(&EndpointEntry { dns: DnsMode::Off, ..lab.pod.clone() })?;
    println!("{:>8} {:>44} {:>12.0}", "", "no question, names off", lab.cost(true, other)?);
    Ok(())
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 0, 0)) + n)
}

/// A name with an address, and the address's name.
fn rows(n: u32) -> [NameRow; 2] {
    let name: ipamd::dns::DomainName = format!("name-{n}").parse().unwrap_or_default();
    let address = address(n).into();
    [
        NameRow::Name { network: NETWORK, name: name.clone(), ttl: 5, addresses: [address].into() },
        NameRow::Pointer { network: NETWORK, address, ttl: 5, target: name },
    ]
}

/// A question for IPv4 addresses.
fn question(name: &str) -> Vec<u8> {
    query(name, 1)
}

fn query(name: &str, kind: u8) -> Vec<u8> {
    let mut wire = crate::visible::question(name);
    let at = wire.len() - 3;
    wire[at] = kind;
    wire
}

/// A UDP header without checksum, and the data.
fn datagram(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
    [&40_000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat()
}

/// A TCP header: an ACK.
fn segment() -> Vec<u8> {
    let ports = [40_000_u16, 80].map(u16::to_be_bytes).concat();
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]].concat()
}

/// A packet of the container's; no program looks at checksums.
fn frame(to_mac: MacAddr, to: Ipv4Addr, payload: &[u8], protocol: u8) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = Vec::with_capacity(34 + payload.len());
    frame.extend(to_mac.0);
    frame.extend(mac_of_address(POD.into()).0);
    frame.extend([8, 0, 0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(POD.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}
