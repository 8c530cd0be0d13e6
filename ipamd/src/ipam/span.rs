//! A run of addresses of one family, as numbers: the arithmetic that pools, blocks and ranges share.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An inclusive run of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    v6: bool,
    first: u128,
    last: u128,
}

/// The number of an address within its family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Span {
    /// The addresses of a CIDR, whatever its host bits.
    pub fn of(cidr: IpNetwork) -> Self {
        let bits = if cidr.is_ipv6() { 128 } else { 32 };
        let host_bits = bits - u32::from(cidr.prefix()).min(bits);
        // A shift by 128 overflows, so the mask of ::/0 is written out.
        let hosts = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        let first = number(cidr.ip()) & !hosts;
        Self { v6: cidr.is_ipv6(), first, last: first | hosts }
    }

    /// The run from `first` to `last` in the family of `self`; `None` when it is empty.
    pub(crate) fn between(&self, first: u128, last: u128) -> Option<Self> {
        (first <= last).then_some(Self { v6: self.v6, first, last })
    }

    /// Number of the first address.
    pub(crate) fn first(&self) -> u128 {
        self.first
    }

    /// Number of the last address.
    pub(crate) fn last(&self) -> u128 {
        self.last
    }

    /// Whether it is a run of IPv6 addresses.
    pub fn is_ipv6(&self) -> bool {
        self.v6
    }

    /// The address of a number, in this family.
    pub(crate) fn address(&self, number: u128) -> IpAddr {
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        } else {
            // Numbers of an IPv4 span never exceed 32 bits.
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
        }
    }

    /// How many addresses, saturating (only `::/0` has more than fit).
    pub(crate) fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.v6 == address.is_ipv6() && (self.first..=self.last).contains(&number(address))
    }

    /// Whether both share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.intersection(other).is_some()
    }

    /// Whether every address of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.first && other.last <= self.last
    }

    /// What both share.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.v6 != other.v6 {
            return None;
        }
        self.between(self.first.max(other.first), self.last.min(other.last))
    }
}

/// `cidr` with host bits zero.
pub(crate) fn normalised(cidr: IpNetwork) -> IpNetwork {
    // The prefix came out of a valid CIDR, so this cannot fail; the input is the harmless answer if it did.
    IpNetwork::new(cidr.network(), cidr.prefix()).unwrap_or(cidr)
}
