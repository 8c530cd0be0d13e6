//! Weft's eBPF programs: entries only. A packet's walk starts here and goes to [`verdict`] or [`host`], a socket's to [`socket`].
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value is copied to the stack, which has 512 bytes"
)]
#![expect(clippy::needless_pass_by_value, reason = "the entries' macro passes the context by value")]

mod beyond;
mod clock;
mod conntrack;
mod dns;
mod drop;
mod flow;
mod fragment;
mod guard;
mod host;
mod maps;
mod nat;
mod neighbour;
#[cfg(feature = "next")]
mod next;
mod overlay;
mod packet;
mod port;
mod publish;
mod quote;
mod redirect;
mod rewrite;
mod route;
mod scratch;
mod socket;
mod source;
mod verdict;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use socket::Call;

/// What a container sends: runs at the ingress of the host side of its veth.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    verdict::from_pod(&packet::Packet::of(&ctx))
}

/// What is sent to a container: runs at the egress of the host side of its veth.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    verdict::to_pod(&packet::Packet::of(&ctx))
}

/// What comes in by a device of the host: runs at its ingress.
#[classifier]
fn from_netdev(ctx: TcContext) -> i32 {
    host::from_netdev(&packet::Packet::of(&ctx))
}

/// What leaves by a device of the host: runs at its egress.
#[classifier]
fn to_netdev(ctx: TcContext) -> i32 {
    host::to_netdev(&packet::Packet::of(&ctx))
}

/// The same as `from_netdev` where packets have no link-layer header (tun, wireguard).
#[classifier]
fn from_netdev_l3(ctx: TcContext) -> i32 {
    host::from_netdev(&packet::Packet::of_l3(&ctx))
}

/// The same as `to_netdev`, likewise.
#[classifier]
fn to_netdev_l3(ctx: TcContext) -> i32 {
    host::to_netdev(&packet::Packet::of_l3(&ctx))
}

/// What comes in by the VXLAN device: runs at its ingress.
#[classifier]
fn from_overlay(ctx: TcContext) -> i32 {
    overlay::from_overlay(&packet::Packet::of(&ctx))
}

/// For replays alone, attached nowhere: gives a made-up packet the outer header that it is said to have had, and goes on to `from_overlay`.
#[classifier]
fn as_tunnelled(ctx: TcContext) -> i32 {
    overlay::as_tunnelled(&packet::Packet::of(&ctx))
}

/// What leaves by the VXLAN device: runs at its egress.
#[classifier]
fn to_overlay(ctx: TcContext) -> i32 {
    overlay::to_overlay(&packet::Packet::of(&ctx))
}

/// A socket connects to an IPv4 address.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    socket::dial4(&ctx)
}

/// A socket connects to an IPv6 address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    socket::dial6(&ctx, Call::Connect)
}

/// A UDP socket sends to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::dial4(&ctx)
}

/// A UDP socket sends to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::dial6(&ctx, Call::Send)
}

/// A UDP socket is told who sent, IPv4.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::restore4(&ctx);
    1
}

/// A UDP socket is told who sent, IPv6.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::restore6(&ctx);
    1
}

/// A socket asks for its IPv4 peer.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::restore4(&ctx);
    1
}

/// A socket asks for its IPv6 peer.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::restore6(&ctx);
    1
}

/// A socket binds an IPv4 address.
#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    socket::reserve4(&ctx)
}

/// A socket binds an IPv6 address.
#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    socket::reserve6(&ctx)
}

/// "Apache-2.0 OR GPL-2.0-only" in the words that the kernel knows (include/linux/license.h). It lends the routing table
/// (`bpf_fib_lookup`) and the check of an MTU (`bpf_check_mtu`) only to programs that may be used under the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 26] = *b"GPL and additional rights\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code path leads here (the verifier would refuse the endless loop).
    loop {}
}
