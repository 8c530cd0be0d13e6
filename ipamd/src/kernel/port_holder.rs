//! Who holds a port of the node, and whether that stands in the way of publishing it.
//!
//! Plain values and a pure decision; [`super::sockets`] asks the kernel.

use ipamd_api::Protocol;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

#[cfg(test)]
mod tests;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What the holder of a port does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// Listens.
    Listening,
    /// Is bound: receives datagrams, or may listen or connect later.
    Bound,
    /// A UDP socket with a peer: the port is often one that the kernel chose.
    Connected,
}

/// A socket that has a local port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHolder {
    /// Protocol.
    pub protocol: Protocol,
    /// Address it is bound to; a v4-mapped one is given as the IPv4 address that it is.
    pub local: SocketAddr,
    /// Whether `[::]` stands for IPv6 alone and not for both families.
    pub v6only: bool,
    /// What it does.
    pub state: SocketState,
    /// Inode of the socket; zero where the kernel has none.
    pub inode: u32,
    /// A process that has it open: the first, if it is shared.
    pub pid: Option<u32>,
    /// That process for people, e.g. `nginx (pid 123, container 4f3c0a1b2c3d)`.
    pub process: Option<String>,
}

/// `nginx (pid 123) with 0.0.0.0:80/tcp`
impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // WireGuard, VXLAN and NFS have sockets that no process has open.
        let process = self.process.as_deref().unwrap_or("the kernel itself or a process that cannot be seen");
        write!(f, "{process} with {}/{}", self.local, self.protocol)
    }
}

/// Whether the holder of a port stands in the way of publishing it, by the rules of bind(2) without `SO_REUSEADDR`.
///
/// `host_ip`: the address to publish on; `None` for every one. Of the unspecified addresses `0.0.0.0` is all of IPv4, `::` all of
/// IPv6. `family`: the only one to publish in; `None` for both. The holder's port and protocol are not looked at.
pub fn conflicts(holder: &PortHolder, host_ip: Option<IpAddr>, family: Option<Family>) -> bool {
    let host_ip = host_ip.map(|ip| ip.to_canonical());
    // The address that is wanted of a family: none of it, every one, or this one.
    let wanted = |of: Family| match host_ip {
        _ if family.is_some_and(|only| only != of) => None,
        Some(ip) if ip.is_ipv4() != (of == Family::V4) => None,
        Some(ip) if !ip.is_unspecified() => Some(Some(ip)),
        _ => Some(None),
    };
    let meets = |of: Family, held: Option<IpAddr>| match (wanted(of), held) {
        (None, _) => false,
        (Some(Some(wanted)), Some(held)) => wanted == held,
        (Some(_), _) => true,
    };
    let ip = holder.local.ip().to_canonical();
    let own = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
    if !ip.is_unspecified() {
        return meets(own, Some(ip));
    }
    meets(own, None) || (own == Family::V6 && !holder.v6only && meets(Family::V4, None))
}
