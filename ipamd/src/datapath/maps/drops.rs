//! Counts of drops by reason, and samples of dropped packets.
//!
//! Thread rule: counts and samples have a lock each, because whoever waits for samples holds theirs.

use super::{DROPS, EVENTS, failed, take};
use crate::datapath::{DatapathError, DropSample};
use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray, RingBuf},
};
use ebpf_common::{DropEvent, DropReason};
use ipamd_api::DropCount;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    mem::offset_of,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// What the programs tell of drops.
pub(in crate::datapath) struct DropMaps {
    counts: PerCpuArray<MapData, u64>,
    samples: Mutex<RingBuf<MapData>>,
}

impl DropMaps {
    /// Takes the maps out of a loaded object.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { counts: take(ebpf, DROPS)?, samples: Mutex::new(take(ebpf, EVENTS)?) })
    }

    pub(in crate::datapath) fn counts(&self) -> Result<Vec<DropCount>, DatapathError> {
        let count = |reason: &DropReason| {
            let values = self.counts.get(&(*reason as u32), 0).map_err(|e| failed(DROPS, "read", e))?;
            let packets = values.iter().sum();
            Ok(DropCount { reason: *reason as u32, name: reason.name().to_owned(), packets })
        };
        DropReason::ALL.iter().map(count).collect()
    }

    /// Hands over what is there; waits up to `patience` if there is nothing.
    pub(in crate::datapath) fn samples(
        &self,
        patience: Duration,
        visit: &mut dyn FnMut(&DropSample),
    ) -> Result<(), DatapathError> {
        let mut buffer = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if drain(&mut buffer, visit) {
            return Ok(());
        }
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let waited = poll(&mut [PollFd::new(buffer.as_fd(), PollFlags::POLLIN)], timeout);
        match waited {
            Ok(_) | Err(Errno::EINTR) => {
                drain(&mut buffer, visit);
                Ok(())
            }
            Err(cause) => Err(failed(EVENTS, "wait for events", MapError::IoError(cause.into()))),
        }
    }
}

/// Whether there was anything.
fn drain(buffer: &mut RingBuf<MapData>, visit: &mut dyn FnMut(&DropSample)) -> bool {
    let mut any = false;
    while let Some(sample) = buffer.next().map(|item| sample(&item)) {
        any = true;
        sample.iter().for_each(&mut *visit);
    }
    any
}

/// An event out of its bytes; `None` when they are too few, as of a program of another version.
fn sample(bytes: &[u8]) -> Option<DropSample> {
    let word = |offset: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
    };
    let time = offset_of!(DropEvent, time);
    let captured = word(offset_of!(DropEvent, captured))? as usize;
    let packet = bytes.get(offset_of!(DropEvent, packet)..)?;
    Some(DropSample {
        time: u64::from_ne_bytes(bytes.get(time..time + 8)?.try_into().ok()?),
        reason: word(offset_of!(DropEvent, reason))?,
        hook: word(offset_of!(DropEvent, hook))?,
        ifindex: word(offset_of!(DropEvent, ifindex))?,
        length: word(offset_of!(DropEvent, length))?,
        l3: word(offset_of!(DropEvent, l3))? != 0,
        packet: packet.get(..captured).unwrap_or(packet).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_from_its_bytes() {
        let mut bytes = Vec::new();
        bytes.extend(77_u64.to_ne_bytes());
        for word in [12_u32, 3, 9, 1500, 4, 1] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([0xab; ebpf_common::EVENT_PACKET]);
        assert_eq!(bytes.len(), size_of::<DropEvent>());
        let wanted = DropSample {
            time: 77,
            reason: 12,
            hook: 3,
            ifindex: 9,
            length: 1500,
            l3: true,
            packet: vec![0xab; 4],
        };
        assert_eq!(sample(&bytes), Some(wanted));
        assert_eq!(sample(&bytes[..31]), None);
        assert_eq!(sample(&[]), None);
    }
}
