//! Which kernel modules the guest needs, with all that they need in turn.
//!
//! Pure: texts of depmod's files in, paths out.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Modules that Weft or its tests use. A kernel that has one neither as a module nor built in is not tested
/// with less: it is refused.
pub(super) const WANTED: &[&str] = &[
    // Before anything else: the guest's way to say something.
    "virtio_pci",
    "virtio_console",
    // Links.
    "bridge",
    "br_netfilter",
    "dummy",
    "ifb",
    "ipvlan",
    "macvlan",
    "tun",
    "veth",
    "vrf",
    "vxlan",
    "wireguard",
    // Traffic control.
    "act_gact",
    "act_mirred",
    "cls_bpf",
    "cls_matchall",
    "cls_u32",
    "sch_fq",
    "sch_htb",
    "sch_ingress",
    "sch_netem",
    "sch_tbf",
    // Sockets, and who holds them.
    "sctp",
    "sctp_diag",
    "tcp_diag",
    "udp_diag",
    // What kube-proxy and others put into the host's stack.
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "ip_set_hash_ipportnet",
    "ip_set_bitmap_port",
    "ip_vs",
    "ip_vs_rr",
    "ipt_REJECT",
    "ip6t_REJECT",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_ipvs",
    "xt_limit",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_physdev",
    "xt_set",
    "xt_statistic",
    "xt_tcpudp",
];

/// The modules that the guest loads at once; the others are loaded by the kernel when something asks for them,
/// as on any host. The kernel makes `/dev/net/tun` with its module.
pub(super) const LOADED: &[&str] = &["br_netfilter", "tun"];

/// The files of `wanted` and of all they need, relative to the folder of the kernel's modules.
///
/// # Errors
/// A module is neither in `modules.dep` nor in `modules.builtin`, or `modules.dep` is not whole.
pub(super) fn closure(dep: &str, builtin: &str, wanted: &[&str]) -> Result<BTreeSet<String>> {
    let needs: BTreeMap<&str, &str> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (file.trim(), needs))
        .collect();
    let by_name: BTreeMap<String, &str> = needs.keys().map(|file| (name(file), *file)).collect();
    let builtin: BTreeSet<String> = builtin.lines().map(name).collect();
    let mut found = BTreeSet::new();
    let mut open = Vec::new();
    for module in wanted {
        match by_name.get(*module) {
            Some(file) => open.push(*file),
            None if builtin.contains(*module) => {}
            None => bail!("this kernel has no {module}, neither as a module nor built in"),
        }
    }
    while let Some(file) = open.pop() {
        if found.insert(file.to_owned()) {
            let Some(needs) = needs.get(file) else { bail!("modules.dep names {file} and does not list it") };
            open.extend(needs.split_whitespace());
        }
    }
    Ok(found)
}

/// The name by which the kernel knows the module in `file`.
fn name(file: &str) -> String {
    let base = file.trim().rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                       kernel/net/802/stp.ko: kernel/net/llc/llc.ko\n\
                       kernel/net/llc/llc.ko:\n\
                       kernel/net/netfilter/nf-odd.ko:\n";
    const BUILTIN: &str = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio-console.ko\n";

    #[test]
    fn what_a_module_needs_comes_along_once() {
        let files = closure(DEP, BUILTIN, &["bridge", "nf_odd", "virtio_console"]).unwrap();
        let wanted = ["802/stp.ko", "bridge/bridge.ko", "llc/llc.ko", "netfilter/nf-odd.ko"];
        assert!(files.iter().eq(wanted.map(|file| format!("kernel/net/{file}")).iter()), "{files:?}");
    }

    #[test]
    fn a_kernel_without_a_module_is_refused() {
        let error = closure(DEP, BUILTIN, &["bridge", "veth"]).unwrap_err().to_string();
        assert!(error.contains("veth"), "{error}");
        let torn = closure("a/x.ko: a/y.ko\n", "", &["x"]).unwrap_err().to_string();
        assert!(torn.contains("a/y.ko"), "{torn}");
    }

    #[test]
    fn what_is_loaded_is_there() {
        assert!(LOADED.iter().all(|module| WANTED.contains(module)));
    }
}
