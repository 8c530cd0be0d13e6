//! What goes into a bundle: calls of ipamd's API, programs, and files.

use ipamd_api::path;

/// Calls of ipamd, and the files that their answers become.
pub(super) const CALLS: [(&str, &str); 11] = [
    ("api/status.json", path::STATUS),
    ("api/doctor.json", path::DOCTOR),
    ("api/networks.json", path::NETWORKS),
    ("api/pools.json", path::POOLS),
    ("api/endpoints.json", path::ENDPOINTS),
    ("api/nodes.json", path::NODES),
    ("api/publish.json", path::PUBLISH),
    ("api/drops.json", path::DROPS),
    ("api/dns-stats.json", path::DNS_STATS),
    ("api/names.json", path::NAMES),
    ("api/traffic.json", path::TRAFFIC),
];

/// Programs, and the files that their output becomes. None of them changes anything, and none shows a key: `ip xfrm state` would.
pub(super) const PROGRAMS: [(&str, &str); 21] = [
    ("host/uname.txt", "uname -a"),
    ("host/links.txt", "ip -d -s link show"),
    ("host/addresses.txt", "ip address show"),
    ("host/routes4.txt", "ip -4 route show table all"),
    ("host/routes6.txt", "ip -6 route show table all"),
    ("host/rules4.txt", "ip -4 rule show"),
    ("host/rules6.txt", "ip -6 rule show"),
    ("host/neighbours.txt", "ip neighbour show"),
    ("host/ipsec-policies.txt", "ip xfrm policy show nosock"),
    ("host/fdb.txt", "bridge fdb show"),
    ("host/qdiscs.txt", "tc -s qdisc show"),
    ("host/sockets.txt", "ss -tuanp"),
    ("host/nftables.txt", "nft list ruleset"),
    ("host/iptables4.txt", "iptables-save"),
    ("host/iptables6.txt", "ip6tables-save"),
    ("host/programs.txt", "bpftool prog show"),
    ("host/maps.txt", "bpftool map show"),
    ("host/attached.txt", "bpftool net show"),
    ("host/sysctl.txt", "sysctl -a --pattern ^net[.]"),
    ("host/modules.txt", "lsmod"),
    ("log/ipamd.log", "journalctl --unit ipamd --lines 20000 --no-pager --output short-iso"),
];

/// Files as they are.
pub(super) const FILES: [(&str, &str); 4] = [
    ("host/os-release.txt", "/etc/os-release"),
    ("host/memory.txt", "/proc/meminfo"),
    ("host/mounts.txt", "/proc/self/mountinfo"),
    ("host/pressure.txt", "/proc/loadavg"),
];
