//! Weft's eBPF programs: entries only. A packet's walk starts here and goes to [`verdict`] or [`host`].
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(clippy::needless_pass_by_value, reason = "the entries' macro passes the context by value")]

mod beyond;
mod conntrack;
mod drop;
mod flow;
mod fragment;
mod host;
mod maps;
mod nat;
mod neighbour;
mod packet;
mod port;
mod publish;
mod quote;
mod redirect;
mod rewrite;
mod route;
mod scratch;
mod source;
mod verdict;

use aya_ebpf::{macros::classifier, programs::TcContext};

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

// The kernel keeps `bpf_fib_lookup` and others for programs under the GPL, which these are as well (see Cargo.toml).
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code path leads here (the verifier would refuse the endless loop).
    loop {}
}
