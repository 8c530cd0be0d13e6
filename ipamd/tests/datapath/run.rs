//! One run of a program on a made-up frame (`BPF_PROG_TEST_RUN`).

use crate::node::Node;
use aya::programs::TestRunOptions;
use ipamd::datapath::Direction;

/// What programs return (linux/pkt_cls.h).
pub(crate) const UNSPEC: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

/// What the kernel tells a program beside the frame, of `struct __sk_buff` (linux/bpf.h). The rest is zero.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Skb {
    /// The device that the program is attached to.
    pub(crate) ifindex: u32,
    /// The device by which the packet came to the host.
    pub(crate) came_by: u32,
    /// Bytes of each segment that it will be cut into.
    pub(crate) segment: u32,
}

impl Skb {
    pub(crate) fn at(ifindex: u32) -> Self {
        Self { ifindex, ..Self::default() }
    }
}

impl Node {
    /// The program's return value, and the frame that comes out.
    pub(crate) fn run(&self, direction: Direction, skb: Skb, frame: &[u8]) -> (i32, Vec<u8>) {
        let mut context = [0; 192];
        context[36..40].copy_from_slice(&skb.came_by.to_ne_bytes());
        context[40..44].copy_from_slice(&skb.ifindex.to_ne_bytes());
        context[176..180].copy_from_slice(&skb.segment.to_ne_bytes());
        let mut out = vec![0; frame.len() + 512];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::new()
        };
        let result = self.datapath.test_run(direction, options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value.cast_signed(), out)
    }
}
