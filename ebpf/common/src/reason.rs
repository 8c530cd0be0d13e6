//! Why a packet was dropped. Numbers are stable: dashboards and `netctl` know them.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a packet was dropped: the index into `DROPS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl DropReason {
            /// All reasons, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Stable name, as `netctl` shows it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What it means.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The interface is no endpoint (any more).
    UnknownEndpoint = 0, "unknown-endpoint";
    /// A header is cut short or contradicts its own length.
    Malformed = 1, "malformed";
    /// The source MAC is not the endpoint's.
    SpoofedMac = 2, "spoofed-mac";
    /// The source IP is not the endpoint's.
    SpoofedIp = 3, "spoofed-ip";
    /// ARP or neighbour discovery speaks for an address that is not the endpoint's, or as a router.
    SpoofedNeighbour = 4, "spoofed-neighbour";
    /// The frame carries a VLAN tag.
    VlanTag = 5, "vlan-tag";
    /// Neither ARP, IPv4 nor IPv6.
    Ethertype = 6, "ethertype";
    /// The destination belongs to another network.
    Isolated = 7, "isolated";
    /// The network is internal and the destination is outside.
    Internal = 8, "internal";
    /// An IPv6 header chain longer than Weft follows, or a routing header of type 0.
    ExtensionHeader = 9, "extension-header";
    /// A redirect of the host's stack, which does not know the sandbox's way.
    Redirect = 10, "redirect";
    /// Rewriting or redirecting failed in the kernel.
    Rewrite = 11, "rewrite-failed";
    /// From outside to a sandbox's own address, of a network that is not routed.
    NotPublished = 12, "not-published";
    /// The published port does not allow this client.
    NotAllowed = 13, "not-allowed";
    /// No source port is free for a translated flow to this destination.
    PortsExhausted = 14, "ports-exhausted";
    /// The flow table takes no more flows.
    FlowTable = 15, "flow-table";
    /// A fragment whose first one has not been seen: its ports are not known.
    FragmentUnknown = 16, "fragment-unknown";
    /// A packet that begins no flow and belongs to none.
    NoFlow = 17, "no-flow";
    /// The uplink that routing chose has no address of this family to masquerade with.
    NoUplinkAddress = 18, "no-uplink-address";
    /// VXLAN from an address that is no node's, or of a network that this node does not know.
    UnknownPeer = 19, "unknown-peer";
    /// A sandbox sends VXLAN to a node, which would put packets into a network.
    ForgedOverlay = 20, "forged-overlay";
    /// Nobody has this address of an overlay network.
    NoSuchAddress = 21, "no-such-address";
    /// A sandbox wants to reach the node's store.
    Guarded = 22, "guarded";
}

/// Entries of `DROPS`: room for reasons to come, so that the map outlives upgrades.
pub const DROP_REASONS: u32 = 64;

const _: () = {
    assert!(DropReason::ALL.len() <= DROP_REASONS as usize);
    let mut i = 0;
    while i < DropReason::ALL.len() {
        assert!(DropReason::ALL[i] as usize == i);
        i += 1;
    }
};
