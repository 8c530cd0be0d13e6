//! Names: what the programs answer by themselves. A name in a key or a value is in wire form (RFC 1035, section 3.1): labels, each
//! behind its length, in lower case, without the root's zero at the end, the rest of the field zero.

use crate::NetworkId;

/// Longest name in [`NameKey`]. Names that are longer are answered by ipamd alone.
pub const MAX_KEY_NAME: usize = 60;

/// Longest name that a [`Pointer`] leads to.
pub const MAX_TARGET_NAME: usize = 120;

/// Most addresses of a family in [`NameAddresses`]. Names with more are answered by ipamd alone.
pub const MAX_NAME_ADDRESSES: usize = 8;

/// Key of `NAMES` and `DOMAINS`: a name within a network.
///
/// `DOMAINS` holds what may stand behind a name of the network: its own name, and the search domains of its endpoints. A name
/// that is not in `NAMES` as a whole is its first label, if the rest is in `DOMAINS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NameKey {
    /// Network.
    pub network: NetworkId,
    /// The name.
    pub name: [u8; MAX_KEY_NAME],
}

/// Value of `NAMES`: all addresses of a name. A name without one of a family has none there (NODATA). One without any is a name that
/// ipamd answers alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameAddresses {
    /// Time to live, seconds.
    pub ttl: u32,
    /// Addresses used of `ipv4`.
    pub count4: u8,
    /// Addresses used of `ipv6`.
    pub count6: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// IPv4 addresses.
    pub ipv4: [[u8; 4]; MAX_NAME_ADDRESSES],
    /// IPv6 addresses.
    pub ipv6: [[u8; 16]; MAX_NAME_ADDRESSES],
}

/// Value of `POINTERS`, keyed by an [`crate::AddressKey`]: the name of an address, for PTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Time to live, seconds.
    pub ttl: u32,
    /// Bytes used of `name`.
    pub len: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The name.
    pub name: [u8; MAX_TARGET_NAME],
}

/// Value of `RESOLVERS`, keyed by a network namespace's cookie (u64, host order): where the sandbox's 127.0.0.11 is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Gateway of the network that is asked; zero: none of the family.
    pub gateway4: [u8; 4],
    /// The same, IPv6.
    pub gateway6: [u8; 16],
    /// Generation of the endpoint whose network that is.
    pub endpoint: [u8; 8],
}

/// What became of questions to the resolver: index into `DNS_COUNTS` (per CPU, u64 each).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsCount {
    /// Answered with IPv4 addresses.
    A = 0,
    /// Answered with IPv6 addresses.
    Aaaa = 1,
    /// Answered with the name of an address.
    Pointer = 2,
    /// Answered: the name has no address of the family.
    NoData = 3,
    /// Understood, but not the programs' to answer: left to ipamd.
    Missed = 4,
    /// Not understood, or of a kind that ipamd alone answers.
    NotUnderstood = 5,
}

/// How many [`DnsCount`]s there are.
pub const DNS_KINDS: u32 = 6;

const _: () = {
    assert!(size_of::<NameKey>() == 64);
    assert!(size_of::<NameAddresses>() == 8 + 4 * MAX_NAME_ADDRESSES + 16 * MAX_NAME_ADDRESSES);
    assert!(size_of::<Pointer>() == 128);
    assert!(size_of::<Resolver>() == 28);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::NameKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::NameAddresses {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Pointer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Resolver {}
}
