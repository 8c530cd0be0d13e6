//! Shapes of maps: what the programs need, and what there is.

use crate::datapath::{DatapathError, bytes::to_io};
use aya::{
    EbpfError,
    maps::{MapData, MapError, MapType},
};
use aya_obj::{Object, generated::bpf_map_type, maps::PinningType};
use std::{fmt, io};

/// What the kernel makes a map by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    kind: MapType,
    key: u32,
    value: u32,
    /// Capacity; of a ring buffer bytes.
    pub(super) entries: u32,
    flags: u32,
}

/// A map that is pinned by its name.
pub(super) struct Need {
    pub(super) name: String,
    pub(super) shape: Shape,
}

impl Shape {
    /// Of a map that is there.
    pub(super) fn of(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(to_io)?;
        Ok(Self {
            kind: info.map_type().map_err(to_io)?,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }

    /// Whether entries of a map of the other shape can be entries of one of this: values are cut, or filled up with zeroes.
    pub(super) fn takes_entries_of(&self, other: &Self) -> bool {
        let is_hash = |kind| matches!(kind, MapType::Hash | MapType::LruHash);
        self.key == other.key && (self.kind == other.kind || is_hash(self.kind) && is_hash(other.kind))
    }

    /// Whether there may be more entries in a map of the other shape than this takes, and none of them may go.
    pub(super) fn could_overflow(&self, other: &Self) -> bool {
        let fills = matches!(self.kind, MapType::Hash | MapType::PerCpuHash | MapType::LpmTrie);
        fills && self.entries < other.entries
    }

    /// Whether its entries are those that were put there. An array has them all at any time; a shorter one has no use for the rest.
    pub(super) fn counts_entries(&self) -> bool {
        !matches!(self.kind, MapType::Array | MapType::PerCpuArray)
    }

    /// Whether a map of this shape has entries; else it has a stream.
    pub(super) fn has_entries(&self) -> bool {
        self.kind != MapType::RingBuf
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, value, entries, flags } = self;
        write!(
            f,
            "type {kind:?}, keys of {key} bytes, values of {value} bytes, {entries} entries, flags {flags:#x}"
        )
    }
}

/// The maps that an object wants pinned, with these capacities instead of its own, by name.
pub(super) fn needs(object: &[u8], capacities: &[(&'static str, u32)]) -> Result<Vec<Need>, DatapathError> {
    let load = |cause: EbpfError| DatapathError::Load(Box::new(cause));
    let object = Object::parse(object).map_err(|cause| load(cause.into()))?;
    let mut needs = Vec::new();
    for (name, map) in object.maps {
        if map.pinning() != PinningType::ByName {
            continue;
        }
        let kind = bpf_map_type::try_from(map.map_type()).map_err(MapError::from).and_then(MapType::try_from);
        let kind = kind.map_err(|cause| load(cause.into()))?;
        let own = capacities.iter().find(|(of, _)| *of == name);
        let shape = Shape {
            kind,
            key: map.key_size(),
            value: map.value_size(),
            entries: own.map_or_else(|| map.max_entries(), |(_, entries)| *entries),
            flags: map.map_flags(),
        };
        needs.push(Need { name, shape });
    }
    needs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(needs)
}
