//! Programs on made-up packets (`BPF_PROG_TEST_RUN`), and the memory of maps.

use super::{go_on, read};
use anyhow::{Context, Result};
use aya::programs::TestRunOptions;
use ipamd::datapath::{DnsMode, EndpointEntry, Outside, Shaping};
use ipamd_api::{EndpointId, Hooks, MacAddr, mac_of_address};
use nix::net::if_::if_nametoindex;
use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    time::Duration,
};

/// Calls `one` for one run's time, again and again, and sums it up: the median, in nanoseconds. `n` counts from zero.
pub(crate) fn median_of(runs: usize, mut one: impl FnMut(usize) -> Result<Duration>) -> Result<f64> {
    let mut times = Vec::with_capacity(runs);
    for n in 0..runs {
        if n % 1000 == 0 {
            go_on()?;
        }
        times.push(one(n)?);
    }
    times.sort_unstable();
    times.get(runs / 2).map(|time| time.as_secs_f64() * 1e9).context("nothing was measured")
}

/// Bytes of kernel memory that each pinned map below a folder has, as the kernel says (`memlock` in the descriptor's
/// `fdinfo`; since Linux 6.4 what is really used).
pub(crate) fn map_memory(bpf_dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut sizes = Vec::new();
    for version in fs::read_dir(bpf_dir).with_context(|| format!("reading {}", bpf_dir.display()))? {
        let version = version?.path();
        for pin in fs::read_dir(&version).into_iter().flatten() {
            let path = pin?.path();
            // Folders and pins of links are no maps.
            let Ok(map) = aya::maps::MapData::from_pin(&path) else { continue };
            let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
            let info = read(&info)?;
            let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sizes.push((name, bytes.with_context(|| format!("no memlock in {info}"))?));
        }
    }
    sizes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    Ok(sizes)
}

/// An endpoint of a network that spans one node, on the link that has its name; no limits, ports or DNS.
pub(crate) fn endpoint(
    id: EndpointId,
    network: u32,
    address: Ipv4Addr,
    (gateway, gateway_mac): (Ipv4Addr, MacAddr),
) -> Result<EndpointEntry> {
    let host_ifname = id.host_ifname();
    let host_ifindex =
        if_nametoindex(host_ifname.as_str()).with_context(|| format!("the index of {host_ifname}"))?;
    Ok(EndpointEntry {
        id,
        host_ifindex,
        host_ifname,
        hooks: Hooks::Clsact,
        network,
        internal: false,
        ipv4: Some((address, gateway)),
        ipv6: None,
        mac: mac_of_address(address.into()),
        gateway_mac,
        shaping: Shaping::default(),
        bridge_ifindex: 0,
        overlay: false,
        outside: Outside::Masquerade,
        published: false,
        dns: DnsMode::Off,
    })
}

/// Bytes as MB.
#[expect(clippy::cast_precision_loss, reason = "a size to be shown")]
pub(crate) fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// `struct __sk_buff` (linux/bpf.h) with an ifindex and no more.
pub(crate) fn context(ifindex: u32) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// A run on this packet.
pub(crate) fn options<'a>(frame: &'a [u8], context: &'a [u8]) -> TestRunOptions<'a> {
    TestRunOptions { data_in: Some(frame), ctx_in: Some(context), ..TestRunOptions::new() }
}
