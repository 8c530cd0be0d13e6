//! Reading, filling and emptying big hash maps in batches, by bpf(2) itself: aya 0.14 has no call for it.
//!
//! One system call for some thousand entries instead of two for each. Arrays whose values no type here describes are read as bytes. All the
//! `unsafe` of the user-space side is here.

use aya::{
    Pod,
    maps::{HashMap, IterableMap, MapData},
};
use std::{
    borrow::{Borrow, BorrowMut},
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

/// `BPF_MAP_LOOKUP_ELEM` (linux/bpf.h, enum bpf_cmd).
const LOOKUP_ELEMENT: libc::c_long = 1;
/// `BPF_MAP_UPDATE_ELEM`.
const UPDATE_ELEMENT: libc::c_long = 2;
/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_long = 24;
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
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
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

/// How many entries a map has, whatever they are. Entries that come or go meanwhile may be missed.
pub(super) fn count(map: &MapData) -> io::Result<u64> {
    let info = map.info().map_err(io::Error::other)?;
    // The kernel copies entries by these sizes; values of maps per CPU would be larger, and are not counted.
    let (key, value) = (info.key_size() as usize, info.value_size().next_multiple_of(8) as usize);
    let mut room = ENTRIES.min(info.max_entries().max(1) as usize);
    // Where it is: the number of a bucket, or in tries a key.
    let (mut at, mut next) = (None::<Vec<u8>>, vec![0_u8; key.max(4)]);
    let (mut keys, mut values) = (vec![0_u8; room * key], vec![0_u8; room * value]);
    let mut entries = 0;
    loop {
        let mut attributes = Attributes {
            in_batch: at.as_ref().map_or(0, |at| at.as_ptr().expose_provenance() as u64),
            out_batch: next.as_mut_ptr().expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.fd().as_fd().as_raw_fd()).map_err(io::Error::other)?,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `keys` and `values` have room for `count` entries of the map's own sizes, `in_batch` and `out_batch` for a key of it and
        // for the number of a bucket, and the kernel keeps none of the pointers.
        let result = unsafe { bpf(LOOKUP_BATCH, &mut attributes) };
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => {}
            // The end; or a trie from which so much goes meanwhile that the kernel gives up.
            Err(Some(libc::ENOENT | libc::EINTR)) => return Ok(entries + u64::from(attributes.count)),
            // A bucket has more entries than there is room.
            Err(Some(libc::ENOSPC)) => {
                room *= 2;
                keys.resize(room * key, 0);
                values.resize(room * value, 0);
                continue;
            }
            Err(_) => return result.map(|()| entries),
        }
        entries += u64::from(attributes.count);
        at = Some(mem::replace(&mut next, vec![0; key.max(4)]));
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

fn descriptor_of(map: &MapData) -> io::Result<u32> {
    u32::try_from(map.fd().as_fd().as_raw_fd()).map_err(io::Error::other)
}

/// The members of `union bpf_attr` for one entry.
#[repr(C)]
struct Entry {
    map_fd: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Fills the first entry of an array of each CPU with zeroes. `size`: bytes of its values, as the kernel says.
pub(super) fn clear_first(map: &MapData, size: u32, cpus: usize) -> io::Result<()> {
    let mut value = vec![0; of_all_cpus(size, cpus)];
    first_entry(UPDATE_ELEMENT, map, &mut value)
}

/// The beginning of the first entry of an array of each CPU: `N` bytes of each of them.
pub(super) fn first_of_each_cpu<const N: usize>(
    map: &MapData,
    size: u32,
    cpus: usize,
) -> io::Result<Vec<[u8; N]>> {
    let mut value = vec![0; of_all_cpus(size, cpus)];
    first_entry(LOOKUP_ELEMENT, map, &mut value)?;
    let of_each = value.chunks_exact(value.len() / cpus.max(1));
    Ok(of_each.filter_map(|of_one| of_one.first_chunk().copied()).collect())
}

/// Bytes that the kernel reads and writes for a value of each CPU (Documentation/bpf/map_array.rst).
fn of_all_cpus(size: u32, cpus: usize) -> usize {
    (size as usize).next_multiple_of(8) * cpus
}

/// `value` has room for a value of each CPU.
fn first_entry(command: libc::c_long, map: &MapData, value: &mut [u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut entry = Entry {
        map_fd: descriptor_of(map)?,
        _padding: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the key is a live u32 as arrays have it, the value as long as the kernel takes it for (see the callers), and it
    // keeps neither pointer.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut entry, size_of::<Entry>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// bpf(2).
///
/// # Safety
/// The pointers and the count in `attributes` must be what `command` wants for the map.
unsafe fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are a live value of the size given; what they point to is the caller's to see to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<Attributes>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
