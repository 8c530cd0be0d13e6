//! The programs: loading them, and what they are called.
//!
//! The verifier takes 0.1 s for a program: those that an earlier ipamd of the same build has loaded are taken as they are ([`Kept`]), the
//! others that every node needs are verified side by side. Few nodes have devices without a link-layer header: the programs for these
//! are loaded with the first such device.
//!
//! Lock: aya's objects have one; file descriptors and ids of loaded programs are read without.

use super::{DatapathError, kept::Kept};
use aya::{
    Ebpf,
    programs::{ProgramError, ProgramFd, SchedClassifier, TestRun, TestRunOptions, TestRunResult},
};
use nix::sys::signal::{SigSet, SigmaskHow};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What containers send.
    FromPod,
    /// What is sent to containers.
    ToPod,
    /// What comes by a device of the host.
    FromNetdev,
    /// What leaves by a device of the host.
    ToNetdev,
    /// What comes by a device whose packets have no link-layer header.
    FromNetdevL3,
    /// What leaves by such a device.
    ToNetdevL3,
    /// What comes by the VXLAN device.
    FromOverlay,
    /// What leaves by the VXLAN device.
    ToOverlay,
}

impl Direction {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 8] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromNetdev,
        Self::ToNetdev,
        Self::FromNetdevL3,
        Self::ToNetdevL3,
        Self::FromOverlay,
        Self::ToOverlay,
    ];

    /// Those that every node needs.
    const EVERYWHERE: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromNetdev, Self::ToNetdev];

    /// The one of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Name of the program, as `tc filter show` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
            Self::FromNetdevL3 => "from_netdev_l3",
            Self::ToNetdevL3 => "to_netdev_l3",
            Self::FromOverlay => "from_overlay",
            Self::ToOverlay => "to_overlay",
        }
    }

    /// Those of a device of the host: of what comes, of what leaves.
    pub(super) fn of_device(l3: bool) -> (Self, Self) {
        if l3 { (Self::FromNetdevL3, Self::ToNetdevL3) } else { (Self::FromNetdev, Self::ToNetdev) }
    }
}

/// A program in the kernel.
struct Loaded {
    fd: ProgramFd,
    id: u32,
    tag: u64,
}

/// aya's objects of the programs.
struct Objects {
    ebpf: Ebpf,
    /// Where programs stay for the next ipamd, if they are to.
    kept: Option<Kept>,
    /// Those that an earlier one has left, instead of those in `ebpf`.
    taken: [Option<SchedClassifier>; Direction::ALL.len()],
}

/// All programs, loaded as they are needed.
pub(super) struct Programs {
    // To load, for tcx and for test runs, aya's own objects are needed.
    objects: Mutex<Objects>,
    loaded: [OnceLock<Loaded>; Direction::ALL.len()],
}

impl Programs {
    /// The programs of an object whose maps are there, each loaded when it is needed.
    pub(super) fn of(ebpf: Ebpf) -> Self {
        let objects = Objects { ebpf, kept: None, taken: Default::default() };
        Self { objects: Mutex::new(objects), loaded: [const { OnceLock::new() }; Direction::ALL.len()] }
    }

    /// The programs of an object whose maps are pinned, taken or loaded as far as every node needs them.
    pub(super) fn load(ebpf: Ebpf, kept: Kept) -> Result<Self, DatapathError> {
        let mut programs = Self::of(ebpf);
        programs.objects.get_mut().unwrap_or_else(PoisonError::into_inner).begin(kept);
        for direction in Direction::EVERYWHERE {
            programs.loaded(direction)?;
        }
        Ok(programs)
    }

    /// The program, loaded now at the latest.
    fn loaded(&self, direction: Direction) -> Result<&Loaded, DatapathError> {
        let slot = &self.loaded[direction as usize];
        if let Some(loaded) = slot.get() {
            return Ok(loaded);
        }
        let mut objects = self.lock();
        // Somebody else may have had the lock for the same reason.
        match slot.get() {
            Some(loaded) => Ok(loaded),
            None => {
                let loaded = objects.load(direction)?;
                Ok(slot.get_or_init(|| loaded))
            }
        }
    }

    /// Descriptor of a program.
    pub(super) fn fd(&self, direction: Direction) -> io::Result<BorrowedFd<'_>> {
        Ok(self.loaded(direction).map_err(io::Error::other)?.fd.as_fd())
    }

    /// Id of a program.
    pub(super) fn id(&self, direction: Direction) -> io::Result<u32> {
        Ok(self.loaded(direction).map_err(io::Error::other)?.id)
    }

    /// The kernel's hash over a program's instructions, maps left out: the same of the same program on other maps.
    pub(super) fn tag(&self, direction: Direction) -> Result<u64, DatapathError> {
        Ok(self.loaded(direction)?.tag)
    }

    /// Lends aya's object of a program.
    pub(super) fn with<T>(
        &self,
        direction: Direction,
        work: impl FnOnce(&mut SchedClassifier) -> T,
    ) -> Result<T, ProgramError> {
        self.lock().classifier(direction).map(work)
    }

    /// Lends the whole object, to load and attach programs of other kinds.
    pub(super) fn whole<T>(&self, work: impl FnOnce(&mut Ebpf) -> T) -> T {
        work(&mut self.lock().ebpf)
    }

    /// Runs a program on a made-up packet.
    pub(super) fn test_run(
        &self,
        direction: Direction,
        options: TestRunOptions<'_>,
    ) -> Result<TestRunResult, DatapathError> {
        self.loaded(direction)?;
        let result = self.with(direction, |program| program.test_run(options)).flatten();
        result.map_err(|cause| DatapathError::Program { program: direction.name(), cause: Box::new(cause) })
    }

    /// A panic elsewhere leaves nothing half done that the next call would trip over.
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects {
    /// Takes what was kept, and has the others that every node needs verified side by side.
    fn begin(&mut self, kept: Kept) {
        self.taken = Direction::ALL.map(|direction| kept.take(direction));
        let wanted: Vec<_> =
            Direction::EVERYWHERE.into_iter().filter(|d| self.taken[*d as usize].is_none()).collect();
        thread::scope(|scope| {
            for (name, program) in self.ebpf.programs_mut() {
                if wanted.iter().any(|direction| direction.name() == name)
                    && let Ok(program) = <&mut SchedClassifier>::try_from(program)
                {
                    // One that is refused is refused again, and told of, when it is asked for.
                    scope.spawn(|| patiently(|| program.load()));
                }
            }
        });
        self.kept = Some(kept);
    }

    fn classifier(&mut self, direction: Direction) -> Result<&mut SchedClassifier, ProgramError> {
        match &mut self.taken[direction as usize] {
            Some(program) => Ok(program),
            None => self.ebpf.program_mut(direction.name()).ok_or(ProgramError::NotLoaded)?.try_into(),
        }
    }

    fn load(&mut self, direction: Direction) -> Result<Loaded, DatapathError> {
        let taken = self.taken[direction as usize].is_some();
        let kept = self.kept.take();
        let loaded = self.classifier(direction).and_then(|program| {
            if program.fd().is_err() {
                patiently(|| program.load())?;
            }
            if let Some(kept) = kept.as_ref().filter(|_| !taken) {
                kept.keep(direction, program);
            }
            let info = program.info()?;
            Ok(Loaded { fd: program.fd()?.try_clone()?, id: info.id(), tag: info.tag() })
        });
        self.kept = kept;
        loaded.map_err(|cause| refused(direction, cause))
    }
}

fn refused(direction: Direction, cause: ProgramError) -> DatapathError {
    let name = direction.name();
    match &cause {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            let object = format!("cannot load the eBPF program {name}");
            DatapathError::Permission { object, cause: io_error.to_string() }
        }
        _ => DatapathError::Program { program: name, cause: Box::new(cause) },
    }
}

/// Loads a program with signals held back, and again when the kernel gave up on it because one is waiting for this thread all the
/// same (a debugger's, a freezer's): it looks at every step while it verifies, which takes long under load, and says EAGAIN.
pub(super) fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    let _quiet = Quiet::new();
    let interrupted = |result: &Result<(), ProgramError>| matches!(result, Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN));
    loop {
        let result = load();
        if !interrupted(&result) || begun.elapsed() > PATIENCE {
            return result;
        }
        // Whoever signals (a profiler, a debugger, a supervisor) may do so again at once.
        thread::sleep(PAUSE);
    }
}

/// Signals to this thread wait while it exists; those to the process go to another thread.
struct Quiet(Option<SigSet>);

impl Quiet {
    fn new() -> Self {
        Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It fails for no mask that was there before.
            let _ = before.thread_set_mask();
        }
    }
}
