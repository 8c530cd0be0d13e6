//! Maps as bytes: what no type here describes, because its layout is another release's or the programs' own.
//!
//! Invariant: a buffer that the kernel reads or fills is as long as the kernel says a key or a value of the map is.

use super::batch::{Attributes, LOOKUP_BATCH, bpf, descriptor_of};
use aya::{
    maps::{MapData, MapError, MapType},
    util::nr_cpus,
};
use std::{io, mem};

/// `BPF_MAP_LOOKUP_ELEM` (linux/bpf.h, enum bpf_cmd).
const LOOKUP_ELEMENT: libc::c_long = 1;
/// `BPF_MAP_UPDATE_ELEM`.
const UPDATE_ELEMENT: libc::c_long = 2;

/// Bytes of the values of one batch, about.
const BATCH_BYTES: usize = 1 << 20;

/// Sizes of the entries of a map, as the kernel copies them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    key: usize,
    /// Bytes of one value.
    value: usize,
    /// Bytes of the values of all CPUs, or of the only one.
    whole: usize,
    entries: usize,
}

impl Sizes {
    /// Of a map.
    pub(super) fn of(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(to_io)?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        let whole = match info.map_type().map_err(to_io)? {
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash => {
                // Documentation/bpf/map_array.rst.
                value.next_multiple_of(8) * nr_cpus().map_err(|(_, cause)| cause)?
            }
            _ => value,
        };
        Ok(Self { key, value, whole, entries: info.max_entries() as usize })
    }

    /// The parts of a value as the kernel copies it, one for each CPU or the only one, without what fills them up to the next one.
    pub(super) fn parts<'a>(&self, whole: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let value = self.value;
        whole.chunks(self.stride()).map(move |part| part.get(..value).unwrap_or(part))
    }

    /// The same, to be changed.
    pub(super) fn parts_mut<'a>(&self, whole: &'a mut [u8]) -> impl Iterator<Item = &'a mut [u8]> + use<'a> {
        let value = self.value;
        whole.chunks_mut(self.stride()).map(move |part| {
            let value = value.min(part.len());
            &mut part[..value]
        })
    }

    fn stride(&self) -> usize {
        if self.whole == self.value { self.value.max(1) } else { self.value.next_multiple_of(8) }
    }

    /// A value of nothing but zeroes.
    pub(super) fn zeroes(&self) -> Vec<u8> {
        vec![0; self.whole]
    }
}

/// Calls `visit` with key and value of every entry of a map that has batches. Entries that come or go meanwhile may be missed.
pub(super) fn each(
    map: &MapData,
    sizes: Sizes,
    mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (key, value) = (sizes.key.max(1), sizes.whole.max(1));
    let mut room = (BATCH_BYTES / value).clamp(64, 4096).min(sizes.entries.max(1));
    // Where it is: the number of a bucket, or in tries and arrays a key.
    let (mut at, mut next) = (None::<Vec<u8>>, vec![0_u8; key.max(4)]);
    let (mut keys, mut values) = (vec![0_u8; room * key], vec![0_u8; room * value]);
    loop {
        let mut attributes = Attributes {
            in_batch: at.as_ref().map_or(0, |at| at.as_ptr().expose_provenance() as u64),
            out_batch: next.as_mut_ptr().expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: descriptor_of(map)?,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `keys` and `values` have room for `count` entries of the map's own sizes, `in_batch` and `out_batch` for a key of it and
        // for the number of a bucket, and the kernel keeps none of the pointers.
        let result = unsafe { bpf(LOOKUP_BATCH, &mut attributes) };
        let last = match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => false,
            // The end; or a trie from which so much goes meanwhile that the kernel gives up.
            Err(Some(libc::ENOENT | libc::EINTR)) => true,
            // A bucket has more entries than there is room.
            Err(Some(libc::ENOSPC)) => {
                room *= 2;
                keys.resize(room * key, 0);
                values.resize(room * value, 0);
                continue;
            }
            Err(_) => return result,
        };
        let filled = keys.chunks_exact(key).zip(values.chunks_exact(value));
        for (key, value) in filled.take(attributes.count as usize) {
            visit(key, value)?;
        }
        if last {
            return Ok(());
        }
        at = Some(mem::replace(&mut next, vec![0; key.max(4)]));
    }
}

/// How many entries a map has, whatever they are. Entries that come or go meanwhile may be missed.
pub(super) fn count(map: &MapData) -> io::Result<u64> {
    let mut entries = 0;
    each(map, Sizes::of(map)?, |_, _| {
        entries += 1;
        Ok(())
    })?;
    Ok(entries)
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

/// The value of a key, if it is there.
pub(super) fn get(map: &MapData, sizes: Sizes, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = sizes.zeroes();
    match entry(LOOKUP_ELEMENT, map, sizes, key, &mut value, 0) {
        Ok(()) => Ok(Some(value)),
        Err(cause) if cause.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Writes an entry. `flags`: `BPF_ANY`, `BPF_NOEXIST` or `BPF_EXIST`.
pub(super) fn put(map: &MapData, sizes: Sizes, key: &[u8], value: &mut [u8], flags: u64) -> io::Result<()> {
    entry(UPDATE_ELEMENT, map, sizes, key, value, flags)
}

fn entry(
    command: libc::c_long,
    map: &MapData,
    sizes: Sizes,
    key: &[u8],
    value: &mut [u8],
    flags: u64,
) -> io::Result<()> {
    if (key.len(), value.len()) != (sizes.key, sizes.whole) {
        return Err(io::Error::other("an entry of other sizes than the map's"));
    }
    let mut entry = Entry {
        map_fd: descriptor_of(map)?,
        _padding: 0,
        key: key.as_ptr().expose_provenance() as u64,
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags,
    };
    // SAFETY: key and value are as long as the kernel takes them for (`sizes` are the map's own), and it keeps neither pointer.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut entry, size_of::<Entry>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's own error, where there is one.
pub(super) fn to_io(cause: MapError) -> io::Error {
    match cause {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        other => io::Error::other(other),
    }
}
