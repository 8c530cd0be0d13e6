//! Weft's eBPF programs: entries only. A packet's walk starts here and goes to [`verdict`].
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the entries' macro passes the context by value")]

mod drop;
mod flow;
#[allow(dead_code, reason = "called by translation, which comes next")]
mod fragment;
mod maps;
mod neighbour;
#[allow(dead_code, unused_imports, reason = "partly for translation, which comes next")]
mod packet;
#[allow(dead_code, reason = "called by translation, which comes next")]
mod quote;
mod redirect;
#[allow(dead_code, reason = "called by translation, which comes next")]
mod rewrite;
#[allow(dead_code, reason = "called by translation, which comes next")]
mod route;
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
