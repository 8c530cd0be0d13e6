//! Pins whose maps have another shape than this release's (ADR 0016): their entries move into maps of the right one, while the programs
//! of before go on in the old ones, and nothing is lost whenever ipamd is killed.
//!
//! Invariants: every map that some program works on is pinned, as `NAME` or as `NAME-new`, `NAME-new2` …, until no program of ipamd's
//! does; whoever starts brings all that there are together in one, so what an interrupted migration left is input of the next one, of
//! whatever release. While there is more than one, ipamd writes nothing: only programs do, and what they do is what [`merge`] knows.
//!
//! The order: [`Migration::plan`], load the object with the new maps made ([`Migration::aim`]), [`Migration::copy`] all, load the
//! programs, [`Migration::catch_up`], put the programs in place between two [`Migration::catch_up_flows`], [`Migration::finish`].

mod merge;
mod shape;
#[cfg(test)]
mod tests;

use super::{
    DatapathError,
    bytes::{self, Sizes, to_io},
    place,
};
use crate::stop::stop_point;
use aya::{EbpfLoader, maps::MapData};
use merge::Merge;
use shape::{Need, Shape};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// `BPF_ANY`, `BPF_NOEXIST`, `BPF_EXIST`.
const ANY: u64 = 0;
const NEW_ONLY: u64 = 1;
const OLD_ONLY: u64 = 2;

/// How much older than a change a time stamp in an entry may be: the programs bring it up to date once a second.
const STAMP_AGE: u64 = 2_000_000_000;

/// What is to be done with the pins of a directory.
pub(super) struct Migration {
    needs: Vec<Need>,
    moves: Vec<Move>,
}

/// The pins of one map, when they are not the right one alone.
struct Move {
    name: String,
    /// Where the map is to be in the end.
    pin: PathBuf,
    /// Pin of the map that all entries get into.
    target: PathBuf,
    /// Whether it was made for this: nothing is in it, and nobody works on it.
    is_fresh: bool,
    sources: Vec<PathBuf>,
    /// When the last copying began.
    copied: Option<u64>,
}

impl Migration {
    /// Compares the pins below `dir` with what the programs in `object` need, with these capacities for maps that have one of
    /// their own.
    ///
    /// A capacity that the entries do not fit into stays as it is.
    ///
    /// # Errors
    /// A pin is of a map whose entries cannot be carried over: its keys or its type are others.
    pub(super) fn plan(
        dir: &Path,
        object: &[u8],
        capacities: &[(&'static str, u32)],
    ) -> Result<Self, DatapathError> {
        let pins = pins(dir)?;
        let mut needs = shape::needs(object, capacities)?;
        let mut moves = Vec::new();
        for need in &mut needs {
            let mine: Vec<_> = pins.iter().filter(|pin| is_pin_of(pin, &need.name)).collect();
            let mut shapes = Vec::new();
            for pin in &mine {
                let path = dir.join(pin);
                let map = open(&path)?;
                let found = Shape::of(&map).map_err(|cause| place::pin(&path, cause))?;
                if !need.shape.takes_entries_of(&found) {
                    let (found, needed) = (found.to_string(), need.shape.to_string());
                    return Err(DatapathError::Layout { path, found, needed });
                }
                if need.shape.could_overflow(&found) {
                    let entries = bytes::count(&map).map_err(|cause| place::pin(&path, cause))?;
                    if entries > u64::from(need.shape.entries / 8 * 7) {
                        tracing::warn!(
                            map = need.name,
                            entries,
                            capacity = found.entries,
                            wanted = need.shape.entries,
                            "a map keeps its capacity: its entries do not fit into a smaller one; the next start tries again"
                        );
                        need.shape.entries = need.shape.entries.max(found.entries);
                    }
                }
                shapes.push(found);
            }
            let right = |pin: &&&String| mine.iter().zip(&shapes).any(|(p, s)| p == *pin && *s == need.shape);
            // In order, so the one in its place comes first.
            let target = mine.iter().find(right);
            if mine.is_empty() || (mine.len() == 1 && target.is_some()) {
                continue;
            }
            let is_fresh = target.is_none();
            let target = target.map_or_else(|| free_name(&pins, &need.name), |pin| (*pin).clone());
            let sources = mine.iter().filter(|pin| ***pin != target).map(|pin| dir.join(pin)).collect();
            moves.push(Move {
                name: need.name.clone(),
                pin: dir.join(&need.name),
                target: dir.join(target),
                is_fresh,
                sources,
                copied: None,
            });
        }
        Ok(Self { needs, moves })
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// Whether the entries of the map that is pinned there go into another.
    pub(super) fn leaves(&self, pin: &Path) -> bool {
        self.moves.iter().any(|one| one.sources.iter().any(|source| source == pin))
    }

    /// Makes a loader work on the right maps, and make those that are missing.
    pub(super) fn aim<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for need in &self.needs {
            loader.map_max_entries(&need.name, need.shape.entries);
        }
        for one in &self.moves {
            loader.map_pin_path(&one.name, one.target.as_path());
        }
    }

    /// Copies every entry. The programs go on in the old maps meanwhile.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn copy(&mut self, now: u64) -> Result<(), DatapathError> {
        for one in &mut self.moves {
            tracing::info!(map = one.name, "a map gets another shape; its entries are carried over");
            one.carry(now)?;
            stop_point("ipamd.migration.copied");
        }
        Ok(())
    }

    /// Carries over what changed since the last time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn catch_up(&mut self, now: u64) -> Result<(), DatapathError> {
        self.moves.iter_mut().try_for_each(|one| one.carry(now))
    }

    /// The same of flows alone: a flow that the program of its next packet does not know is broken, so this is done last before the programs
    /// change and first after it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn catch_up_flows(&mut self, now: u64) -> Result<(), DatapathError> {
        let mut flows = self.moves.iter_mut().filter(|one| Merge::of(&one.name) == Merge::Flow);
        flows.try_for_each(|one| one.carry(now))
    }

    /// Carries over what the programs of before wrote to their end, and puts the new maps in the place of the old ones. No program may
    /// be attached any more that works on these; some may still be running.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn finish(
        &mut self,
        now: impl Fn() -> Result<u64, DatapathError>,
    ) -> Result<(), DatapathError> {
        if self.is_empty() {
            return Ok(());
        }
        wait_for_programs();
        self.catch_up(now()?)?;
        stop_point("ipamd.migration.caught-up");
        for one in &self.moves {
            if one.target != one.pin {
                fs::rename(&one.target, &one.pin).map_err(|cause| place::pin(&one.pin, cause))?;
            }
            stop_point("ipamd.migration.in-place");
            for left in one.sources.iter().filter(|left| **left != one.pin) {
                fs::remove_file(left).map_err(|cause| place::pin(left, cause))?;
            }
        }
        Ok(())
    }
}

impl Move {
    /// Brings the entries of all maps together in the new one. What has not changed since the last time is left out as far as
    /// entries tell.
    fn carry(&mut self, now: u64) -> Result<(), DatapathError> {
        let refused = |cause| place::pin(&self.target, cause);
        let merge = Merge::of(&self.name);
        let target = open(&self.target)?;
        let sizes = Sizes::of(&target).map_err(refused)?;
        let since = self.copied.map(|copied| copied.saturating_sub(STAMP_AGE));
        let mut left_out = 0_u64;
        for (number, path) in self.sources.iter().enumerate() {
            let source = open(path)?;
            let shape = Shape::of(&source).map_err(refused)?;
            if !shape.has_entries() {
                continue;
            }
            let from = Sizes::of(&source).map_err(refused)?;
            let is_blank = self.is_fresh && self.copied.is_none() && number == 0;
            bytes::each(&source, from, |key, old| {
                if since.is_some_and(|since| merge.stamp(old).is_some_and(|stamp| stamp < since)) {
                    return Ok(());
                }
                let there = if is_blank { None } else { bytes::get(&target, sizes, key)? };
                let (mut value, flags) = match there {
                    Some(value) => (value, OLD_ONLY),
                    None => (sizes.zeroes(), if is_blank { ANY } else { NEW_ONLY }),
                };
                let changed =
                    merge.apply(flags == OLD_ONLY, from.parts(old).zip(sizes.parts_mut(&mut value)));
                if changed && !write(&target, sizes, key, &mut value, flags)? && shape.counts_entries() {
                    left_out += 1;
                }
                Ok(())
            })
            .map_err(refused)?;
        }
        if left_out > 0 {
            tracing::error!(
                map = self.name,
                entries = left_out,
                "entries did not fit into a map of another shape"
            );
        }
        self.copied = Some(now);
        Ok(())
    }
}

/// Writes an entry; false when there is no room for it.
fn write(map: &MapData, sizes: Sizes, key: &[u8], value: &mut [u8], flags: u64) -> io::Result<bool> {
    /// The kernel gets memory for new entries ready behind the caller's back, and may be late.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        match bytes::put(map, sizes, key, value, flags).map_err(|cause| (cause.raw_os_error(), cause)) {
            // A program has made or removed it meanwhile, which is the newer word.
            Ok(()) | Err((Some(libc::EEXIST | libc::ENOENT), _)) => return Ok(true),
            Err((Some(libc::E2BIG | libc::ENOSPC), _)) => return Ok(false),
            Err((Some(libc::ENOMEM), _)) => thread::sleep(Duration::from_millis(1)),
            Err((_, cause)) => return Err(cause),
        }
    }
    Ok(false)
}

/// Waits until no program runs that was taken off before.
fn wait_for_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` (linux/membarrier.h): the kernel waits for its readers, and a program that runs is one.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no pointer is passed.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if waited != 0 {
        // A kernel with CPUs that it does not disturb (nohz_full) refuses; a program takes microseconds.
        thread::sleep(Duration::from_millis(20));
    }
}

fn open(pin: &Path) -> Result<MapData, DatapathError> {
    MapData::from_pin(pin).map_err(|cause| place::pin(pin, to_io(cause)))
}

/// Names of everything in the directory, sorted.
fn pins(dir: &Path) -> Result<BTreeSet<String>, DatapathError> {
    let read = || -> io::Result<_> {
        let names = fs::read_dir(dir)?.map(|entry| entry.map(|e| e.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    read().map_err(|cause| place::pin(dir, cause))
}

/// Whether a pin is that of a map, or of a map that is to come into its place. No other pin has a hyphen.
fn is_pin_of(pin: &str, name: &str) -> bool {
    pin.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("-new"))
}

/// Name of a pin beside that of a map.
fn free_name(pins: &BTreeSet<String>, name: &str) -> String {
    let first = format!("{name}-new");
    let more = (2_u32..).map(|number| format!("{name}-new{number}"));
    std::iter::once(first.clone()).chain(more).find(|name| !pins.contains(name)).unwrap_or(first)
}
