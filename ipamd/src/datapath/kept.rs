//! Programs that stay loaded from one ipamd to the next: pins of them in `<layout>/programs/`, each named after the program and the
//! object it is of. The verifier takes 0.1 s for a program; a start of the same build on the same maps need not wait for it.
//!
//! Invariant: a pinned program is taken only if it is of this very object and every map that it works on is pinned now, or is one of
//! those that it may have to itself ([`PRIVATE`]). Whatever is doubtful is loaded anew: a pin is worth time, never more. No lock; the owner has one.

use super::{
    Direction,
    ebpf::object,
    place::{self, Place},
};
use crate::datapath::DatapathError;
use aya::{maps::MapInfo, programs::SchedClassifier};
use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

/// Directory of the pins below that of the maps.
const DIRECTORY: &str = "programs";

/// Maps that are not pinned: constants of the object, and those in which nothing outlives a run of a program. A program may go on with
/// its own.
const PRIVATE: [&str; 4] = [".rodata", "SCRATCH", "QUESTION", "FORGOTTEN"];

/// The pins of programs.
pub(super) struct Kept {
    dir: PathBuf,
    /// Says which object a program is of.
    object: String,
    /// Ids of the maps that are pinned.
    maps: BTreeSet<u32>,
}

impl Kept {
    /// Those below `place`, where every map is pinned by now; of some, `left` says, the entries are on their way to another. Programs of
    /// other objects are let go: where they run they stay until they are replaced.
    pub(super) fn open(place: &Place, left: impl Fn(&Path) -> bool) -> Result<Self, DatapathError> {
        let dir = place.maps.join(DIRECTORY);
        let maps = pins(&place.maps)?.into_iter().filter(|pin| !left(pin));
        let maps = maps.filter_map(|pin| Some(MapInfo::from_pin(pin).ok()?.id()));
        // A compiler that hashes otherwise makes other names, and the programs are loaded anew.
        let mut hash = DefaultHasher::new();
        object().hash(&mut hash);
        let kept = Self { maps: maps.collect(), object: format!("{:016x}", hash.finish()), dir };
        fs::create_dir_all(&kept.dir).map_err(|cause| place::pin(&kept.dir, cause))?;
        let own = Direction::ALL.map(|direction| kept.pin(direction));
        for pin in pins(&kept.dir)?.iter().filter(|pin| !own.contains(pin)) {
            fs::remove_file(pin).map_err(|cause| place::pin(pin, cause))?;
        }
        Ok(kept)
    }

    fn pin(&self, direction: Direction) -> PathBuf {
        self.dir.join(format!("{}-{}", direction.name(), self.object))
    }

    /// A program that is loaded already.
    pub(super) fn take(&self, direction: Direction) -> Option<SchedClassifier> {
        let program = SchedClassifier::from_pin(self.pin(direction)).ok()?;
        let maps = program.info().ok()?.map_ids().ok()??;
        let private = |id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str().is_some_and(is_private));
        maps.into_iter().all(|id| self.maps.contains(&id) || private(id)).then_some(program)
    }

    /// Keeps a program that was loaded just now. That it cannot be is no more than a slower start.
    pub(super) fn keep(&self, direction: Direction, program: &mut SchedClassifier) {
        let pin = self.pin(direction);
        // One on other maps, which was not taken.
        let _ = fs::remove_file(&pin);
        if let Err(error) = program.pin(&pin) {
            tracing::warn!(pin = %pin.display(), %error, "the next start has to load this program again");
        }
    }
}

fn is_private(name: &str) -> bool {
    PRIVATE.contains(&name)
}

/// The pins in a directory, without those in directories of it.
fn pins(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let files = fs::read_dir(dir).and_then(|entries| {
        let files = entries.filter_map(|entry| match entry {
            Ok(entry) => entry.file_type().map(|kind| (!kind.is_dir()).then(|| entry.path())).transpose(),
            Err(error) => Some(Err(error)),
        });
        files.collect()
    });
    files.map_err(|cause| place::pin(dir, cause))
}
