//! Reading, filling and emptying big hash maps in batches, by bpf(2) itself: aya 0.14 has no call for it.
//!
//! One system call for some thousand entries instead of two for each. Maps whose entries no type describes are read as [`super::bytes`].

use aya::{
    Pod,
    maps::{HashMap, IterableMap, MapData},
};
use std::{
    borrow::{Borrow, BorrowMut},
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

/// `BPF_MAP_LOOKUP_BATCH` (linux/bpf.h, enum bpf_cmd).
pub(super) const LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_BATCH`.
const UPDATE_BATCH: libc::c_long = 26;
/// `BPF_MAP_DELETE_BATCH`.
const DELETE_BATCH: libc::c_long = 27;
/// `ENOTSUPP` of the kernel, which has no name in user space: this kind of map has no batches.
const ENOTSUPP: i32 = 524;
/// Entries in a batch, unless a bucket has more.
const ENTRIES: usize = 4096;

/// The member `batch` of `union bpf_attr`.
#[repr(C)]
pub(super) struct Attributes {
    pub(super) in_batch: u64,
    pub(super) out_batch: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) count: u32,
    pub(super) map_fd: u32,
    pub(super) elem_flags: u64,
    pub(super) flags: u64,
}

/// Calls `visit` with every entry of a map while it returns true. Entries that come or go meanwhile may be missed; none is seen
/// twice.
pub(super) fn visit<K: Pod + Eq, V: Pod>(
    map: &HashMap<MapData, K, V>,
    mut visit: impl FnMut(&K, &V) -> bool,
) -> io::Result<()> {
    match in_batches(map, ENTRIES, &mut visit) {
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)) => {
            one_by_one(map, &mut visit)
        }
        other => other,
    }
}

fn in_batches<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    entries: usize,
    visit: &mut impl FnMut(&K, &V) -> bool,
) -> io::Result<()> {
    // SAFETY: every bit pattern is a valid K, says Pod.
    let mut keys: Vec<K> = vec![unsafe { mem::zeroed() }; entries];
    // SAFETY: likewise V.
    let mut values: Vec<V> = vec![unsafe { mem::zeroed() }; entries];
    // The number of a bucket, for the kernel's eyes only.
    let (mut at, mut next) = (None::<u32>, 0_u32);
    loop {
        let mut attributes = Attributes {
            in_batch: at.as_ref().map_or(0, |at| (&raw const *at).expose_provenance() as u64),
            out_batch: (&raw mut next).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            // What is longer would be asked for in pieces.
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map_fd: descriptor(map)?,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `keys` and `values` have room for `count` entries of the sizes that aya has checked against the map's,
        // the bucket numbers are live locals, and the kernel keeps none of the pointers.
        let result = unsafe { bpf(LOOKUP_BATCH, &mut attributes) };
        let last = match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => false,
            Err(Some(libc::ENOENT)) => true,
            // A bucket has more entries than there is room.
            Err(Some(libc::ENOSPC)) => {
                // SAFETY: as above.
                keys.resize(keys.len() * 2, unsafe { mem::zeroed() });
                // SAFETY: as above.
                values.resize(keys.len(), unsafe { mem::zeroed() });
                continue;
            }
            Err(_) => return result,
        };
        let filled = keys.iter().zip(&values).take(attributes.count as usize);
        for (key, value) in filled {
            if !visit(key, value) {
                return Ok(());
            }
        }
        if last {
            return Ok(());
        }
        at = Some(next);
    }
}

/// For kernels without batches for this kind of map.
fn one_by_one<K: Pod + Eq, V: Pod>(
    map: &HashMap<MapData, K, V>,
    visit: &mut impl FnMut(&K, &V) -> bool,
) -> io::Result<()> {
    for item in map {
        let (key, value) = item.map_err(io::Error::other)?;
        if !visit(&key, &value) {
            break;
        }
    }
    Ok(())
}

/// Writes entries into a map, over what is there. Those before one that fails stay. Plain hash maps only: they have batches on
/// every kernel that Weft runs on.
pub(super) fn put<T: BorrowMut<MapData>, K: Pod, V: Pod>(
    map: &mut HashMap<T, K, V>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    for (keys, values) in keys.chunks(ENTRIES).zip(values.chunks(ENTRIES)) {
        let mut attributes = Attributes {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr().expose_provenance() as u64,
            values: values.as_ptr().expose_provenance() as u64,
            count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
            map_fd: descriptor(map)?,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `keys` and `values` have `count` entries of the sizes that aya has checked against the map's; they are only read.
        unsafe { bpf(UPDATE_BATCH, &mut attributes) }?;
    }
    Ok(())
}

/// Removes keys from a map; what is gone already is fine.
pub(super) fn remove<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, keys: &[K]) -> io::Result<()> {
    for piece in keys.chunks(ENTRIES) {
        let mut rest = piece;
        while !rest.is_empty() {
            let mut attributes = Attributes {
                in_batch: 0,
                out_batch: 0,
                keys: rest.as_ptr().expose_provenance() as u64,
                values: 0,
                count: u32::try_from(rest.len()).unwrap_or(u32::MAX),
                map_fd: descriptor(map)?,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: `rest` has `count` keys of the size that aya has checked against the map's; they are only read.
            let result = unsafe { bpf(DELETE_BATCH, &mut attributes) };
            let removed = attributes.count as usize;
            match result.as_ref().map_err(io::Error::raw_os_error) {
                Ok(()) => break,
                // The one behind those that were removed is missing.
                Err(Some(libc::ENOENT)) => rest = rest.get(removed + 1..).unwrap_or_default(),
                Err(Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)) => {
                    for key in rest {
                        match map.remove(key).map_err(io::Error::other) {
                            Err(cause) if !is_missing(&cause) => return Err(cause),
                            _ => {}
                        }
                    }
                    break;
                }
                Err(_) => return result,
            }
        }
    }
    Ok(())
}

fn is_missing(cause: &io::Error) -> bool {
    use aya::maps::MapError;
    let Some(cause) = cause.get_ref().and_then(|e| e.downcast_ref::<MapError>()) else { return false };
    match cause {
        MapError::KeyNotFound => true,
        MapError::SyscallError(e) => e.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

fn descriptor<T: Borrow<MapData>, K: Pod, V: Pod>(map: &HashMap<T, K, V>) -> io::Result<u32> {
    descriptor_of(map.map())
}

pub(super) fn descriptor_of(map: &MapData) -> io::Result<u32> {
    u32::try_from(map.fd().as_fd().as_raw_fd()).map_err(io::Error::other)
}

/// bpf(2).
///
/// # Safety
/// The pointers and the count in `attributes` must be what `command` wants for the map.
pub(super) unsafe fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are a live value of the size given; what they point to is the caller's to see to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<Attributes>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
