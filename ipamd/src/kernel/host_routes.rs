//! Prefixes that the host routes already, so that default pools keep away from them.

use ipnetwork::{IpNetwork, Ipv4Network};
use std::net::Ipv4Addr;

/// IPv4 prefixes in the main routing table of ipamd's namespace, without the default route (`/proc/net/route`, proc(5)).
/// What cannot be read is no prefix: a clash then shows when the bridge gets its address.
pub fn host_prefixes() -> Vec<IpNetwork> {
    std::fs::read_to_string("/proc/thread-self/net/route").map(|text| parse(&text)).unwrap_or_default()
}

fn parse(text: &str) -> Vec<IpNetwork> {
    let prefix = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // The numbers are in network byte order, printed as a host-order integer.
        let number =
            |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
        let network = Ipv4Network::with_netmask(number(1)?, number(7)?).ok()?;
        (network.prefix() > 0).then_some(IpNetwork::V4(network))
    };
    text.lines().skip(1).filter_map(prefix).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_endian = "little")]
    fn reads_what_proc_prints() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nbroken\n";
        assert_eq!(super::parse(text), ["192.168.0.0/24".parse().unwrap()]);
    }
}
