//! Whether the host encrypts what it sends, or wants what it gets to be encrypted: IPsec policies, asked of the kernel by netlink
//! (`XFRM_MSG_GETSPDINFO`, linux/xfrm.h).

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};
use std::io;

/// Bytes of a netlink header.
const HEADER: usize = 16;
/// Bytes of request and answer before attributes: the header and a word of flags.
const BEFORE_ATTRIBUTES: usize = HEADER + 4;
const NLM_F_REQUEST: u16 = 1;
const XFRM_MSG_NEWSPDINFO: u16 = 0x24;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
/// `XFRMA_SPD_INFO`: numbers of policies, `struct xfrmu_spdinfo`, in and out first.
const XFRMA_SPD_INFO: u16 = 1;

/// Whether there are policies. A kernel without IPsec has none; one that does not say might.
pub(super) fn has_policies() -> bool {
    match ask() {
        Ok(answer) => policies(&answer).is_none_or(|[inward, outward]| inward != 0 || outward != 0),
        Err(cause) => cause.raw_os_error() != Some(libc::EPROTONOSUPPORT),
    }
}

fn ask() -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = [0; BEFORE_ATTRIBUTES];
    request[0..4].copy_from_slice(&(BEFORE_ATTRIBUTES as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&XFRM_MSG_GETSPDINFO.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    socket.send(&request, 0)?;
    // The kernel answers within the send.
    let mut answer = Vec::with_capacity(256);
    socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
    Ok(answer)
}

/// How many policies there are for what comes in and for what goes out.
fn policies(answer: &[u8]) -> Option<[u32; 2]> {
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let is_it = half(4)? == XFRM_MSG_NEWSPDINFO && half(BEFORE_ATTRIBUTES + 2)? == XFRMA_SPD_INFO;
    let first = BEFORE_ATTRIBUTES + 4;
    if is_it { Some([word(first)?, word(first + 4)?]) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 answers: a header, flags, and the first attribute.
    fn answer(kind: u16, counts: [u32; 6]) -> Vec<u8> {
        let mut message = vec![0; BEFORE_ATTRIBUTES];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(28_u16.to_ne_bytes());
        message.extend(XFRMA_SPD_INFO.to_ne_bytes());
        message.extend(counts.iter().flat_map(|count| count.to_ne_bytes()));
        message
    }

    #[test]
    fn policies_are_counted_by_direction() {
        let message = answer(XFRM_MSG_NEWSPDINFO, [1, 2, 3, 4, 5, 6]);
        assert_eq!(policies(&message), Some([1, 2]));
        assert_eq!(policies(&answer(2, [1; 6])), None, "an error");
        for length in 0..BEFORE_ATTRIBUTES + 12 {
            assert_eq!(policies(&message[..length]), None, "{length} bytes");
        }
    }
}
