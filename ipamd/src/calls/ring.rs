//! The file of the flight recorder: as many slots as calls are kept, each a line of JSON filled up with spaces to 1 KiB.
//!
//! Invariants: the file is 1,024,000 bytes from the beginning; call `n` is in slot `n` modulo the number of slots; what is in a slot and is no
//! call (torn, empty, somebody else's) is skipped when the file is read and written over when its turn comes.

use ipamd_api::CallView;
use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Calls that the file holds.
pub(super) const SLOTS: usize = 1000;
/// Bytes of a slot, newline included.
pub(super) const SLOT: usize = 1024;

/// How long texts may be, tried one after another until the call fits its slot: the error, and each of the others.
const LIMITS: [(usize, usize); 7] =
    [(512, 255), (256, 255), (128, 255), (64, 128), (64, 64), (0, 16), (0, 0)];

/// The open file.
#[derive(Debug)]
pub(super) struct Ring(File);

impl Ring {
    /// Opens or makes the file, and reads what calls it has, in order of their numbers.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<CallView>)> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        let mut bytes = Vec::new();
        (&mut file).take((SLOTS * SLOT) as u64).read_to_end(&mut bytes)?;
        let mut calls: Vec<CallView> =
            bytes.chunks(SLOT).enumerate().filter_map(|(at, slot)| read(at, slot)).collect();
        calls.sort_unstable_by_key(|call| call.number);
        // An older lap, or a number of nobody's: only what the newest call still has room for.
        let newest = calls.last().map_or(0, |call| call.number);
        calls.retain(|call| newest - call.number < SLOTS as u64);
        file.set_len((SLOTS * SLOT) as u64)?;
        Ok((Self(file), calls))
    }

    /// Writes the slot of a call, by one system call.
    pub(super) fn put(&self, number: u64, slot: &[u8; SLOT]) -> io::Result<()> {
        self.0.write_all_at(slot, number % SLOTS as u64 * SLOT as u64)
    }
}

/// The call in a slot, if there is one that belongs there.
fn read(at: usize, slot: &[u8]) -> Option<CallView> {
    let call: CallView = serde_json::from_slice(slot.trim_ascii()).ok()?;
    // The last number has no successor; nobody gets there by counting.
    (call.number % SLOTS as u64 == at as u64 && call.number < u64::MAX).then_some(call)
}

/// The slot of a call, whose texts are cut until they fit.
pub(super) fn fit(call: &mut CallView) -> [u8; SLOT] {
    let mut slot = [b' '; SLOT];
    slot[SLOT - 1] = b'\n';
    for (of_error, of_others) in LIMITS {
        if let Some(error) = &mut call.error {
            clip(&mut error.msg, of_error);
            clip(&mut error.details, of_error);
        }
        for text in [
            Some(&mut call.attachment.container_id),
            Some(&mut call.attachment.ifname),
            Some(&mut call.network),
            Some(&mut call.runtime),
            call.pod.as_mut(),
        ] {
            text.into_iter().for_each(|text| clip(text, of_others));
        }
        // Serialising texts and numbers cannot fail.
        let line = serde_json::to_vec(call).unwrap_or_default();
        if line.len() < SLOT {
            slot[..line.len()].copy_from_slice(&line);
            break;
        }
    }
    slot
}

/// Cuts a text to so many bytes at most, between characters.
fn clip(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        // A name that was cut is no longer a name to go by, but memory that nobody sees is no use either.
        text.shrink_to_fit();
    }
}
