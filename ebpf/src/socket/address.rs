//! The context of a socket address hook, in the byte order of map keys.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use core::ptr::{read_volatile, write_volatile};
use ebpf_common::mapped4;

/// `AF_INET` of `socket.h`.
const AF_INET: u32 = 2;

/// The socket and the address of the system call. Reads and writes are volatile, because the verifier takes only accesses as wide as
/// the field, and the compiler would join or split them.
#[derive(Clone, Copy)]
pub(super) struct SockAddr<'a> {
    context: &'a SockAddrContext,
}

impl<'a> SockAddr<'a> {
    #[inline(always)]
    pub(super) fn of(context: &'a SockAddrContext) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn fields(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    /// IPv4 address. For the hooks of IPv4 only: the verifier refuses others.
    #[inline(always)]
    pub(super) fn ipv4(&self) -> [u8; 4] {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { read_volatile(&raw const (*self.fields()).user_ip4) }.to_ne_bytes()
    }

    #[inline(always)]
    pub(super) fn set_ipv4(&self, address: [u8; 4]) {
        // SAFETY: as above; these hooks may write the field.
        unsafe { write_volatile(&raw mut (*self.fields()).user_ip4, u32::from_ne_bytes(address)) };
    }

    /// IPv6 address. For the hooks of IPv6 only.
    #[inline(always)]
    pub(super) fn ipv6(&self) -> [u8; 16] {
        let mut address = [0; 16];
        for (part, word) in address.chunks_exact_mut(4).zip(0..4) {
            // SAFETY: as above; four words.
            let word = unsafe { read_volatile(&raw const (*self.fields()).user_ip6[word]) };
            part.copy_from_slice(&word.to_ne_bytes());
        }
        address
    }

    #[inline(always)]
    pub(super) fn set_ipv6(&self, address: [u8; 16]) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
        let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
        let fields = self.fields();
        // SAFETY: as above; each index is constant, so that each store is one at a constant offset.
        unsafe {
            write_volatile(&raw mut (*fields).user_ip6[0], u32::from_ne_bytes(words[0]));
            write_volatile(&raw mut (*fields).user_ip6[1], u32::from_ne_bytes(words[1]));
            write_volatile(&raw mut (*fields).user_ip6[2], u32::from_ne_bytes(words[2]));
            write_volatile(&raw mut (*fields).user_ip6[3], u32::from_ne_bytes(words[3]));
        }
    }

    /// Port, network order. The field has 32 bits, of which the kernel fills the first 16.
    #[inline(always)]
    pub(super) fn port(&self) -> [u8; 2] {
        // SAFETY: as above.
        let port = unsafe { read_volatile(&raw const (*self.fields()).user_port) };
        (port as u16).to_ne_bytes()
    }

    #[inline(always)]
    pub(super) fn set_port(&self, port: [u8; 2]) {
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut (*self.fields()).user_port, u32::from(u16::from_ne_bytes(port)));
        }
    }

    /// IP protocol number; zero for what does not fit into a byte of a packet (MPTCP's is made of TCP sockets, which come here).
    #[inline(always)]
    pub(super) fn protocol(&self) -> u8 {
        // SAFETY: as above.
        let protocol = unsafe { read_volatile(&raw const (*self.fields()).protocol) };
        if protocol > 0xff { 0 } else { protocol as u8 }
    }

    /// The address that the socket is bound to; zero when it is bound to none. IPv4 sockets have theirs v4-mapped.
    #[inline(always)]
    pub(super) fn bound(&self) -> [u8; 16] {
        // SAFETY: as above. These hooks never run without a socket, and its fields are read like the context's.
        unsafe {
            let socket = read_volatile(&raw const (*self.fields()).__bindgen_anon_1.sk);
            if read_volatile(&raw const (*socket).family) == AF_INET {
                let address = read_volatile(&raw const (*socket).src_ip4).to_ne_bytes();
                return if address == [0; 4] { [0; 16] } else { mapped4(address) };
            }
            let words = [
                read_volatile(&raw const (*socket).src_ip6[0]),
                read_volatile(&raw const (*socket).src_ip6[1]),
                read_volatile(&raw const (*socket).src_ip6[2]),
                read_volatile(&raw const (*socket).src_ip6[3]),
            ];
            let mut address = [0; 16];
            for (part, word) in address.chunks_exact_mut(4).zip(words) {
                part.copy_from_slice(&word.to_ne_bytes());
            }
            address
        }
    }

    /// Cookie of the socket.
    #[inline(always)]
    pub(super) fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the hook's context.
        unsafe { bpf_get_socket_cookie(self.context.as_ptr()) }
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub(super) fn netns_cookie(&self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }
}

/// The IPv4 address in a v4-mapped one.
#[inline(always)]
pub(super) fn mapped(address: [u8; 16]) -> Option<[u8; 4]> {
    let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] = address else { return None };
    Some([a, b, c, d])
}

/// The first four bytes.
#[inline(always)]
pub(super) fn narrow(address: [u8; 16]) -> [u8; 4] {
    let [a, b, c, d, ..] = address;
    [a, b, c, d]
}
