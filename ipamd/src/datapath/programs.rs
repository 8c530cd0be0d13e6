//! The programs: loading them, and what they are called.
//!
//! Lock: aya's objects have one; file descriptors and ids are read without.

use super::DatapathError;
use aya::{
    Ebpf,
    programs::{ProgramError, ProgramFd, SchedClassifier, TestRun, TestRunOptions, TestRunResult},
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
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
}

impl Direction {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 6] =
        [Self::FromPod, Self::ToPod, Self::FromNetdev, Self::ToNetdev, Self::FromNetdevL3, Self::ToNetdevL3];

    /// Name of the program, as `tc filter show` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
            Self::FromNetdevL3 => "from_netdev_l3",
            Self::ToNetdevL3 => "to_netdev_l3",
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
}

/// All programs, loaded.
pub(super) struct Programs {
    // tcx and test runs need aya's own objects.
    ebpf: Mutex<Ebpf>,
    loaded: [Loaded; Direction::ALL.len()],
}

impl Programs {
    /// Loads the programs of an object whose maps are there.
    pub(super) fn load(mut ebpf: Ebpf) -> Result<Self, DatapathError> {
        let [a, b, c, d, e, f] = Direction::ALL;
        let mut load = |direction| load(&mut ebpf, direction);
        let loaded = [load(a)?, load(b)?, load(c)?, load(d)?, load(e)?, load(f)?];
        Ok(Self { ebpf: Mutex::new(ebpf), loaded })
    }

    pub(super) fn fd(&self, direction: Direction) -> BorrowedFd<'_> {
        self.loaded[direction as usize].fd.as_fd()
    }

    pub(super) fn id(&self, direction: Direction) -> u32 {
        self.loaded[direction as usize].id
    }

    /// Lends aya's object of a program.
    pub(super) fn with<T>(
        &self,
        direction: Direction,
        work: impl FnOnce(&mut SchedClassifier) -> T,
    ) -> Result<T, ProgramError> {
        classifier(&mut self.lock(), direction).map(work)
    }

    /// Lends the whole object, to load and attach programs of other kinds.
    pub(super) fn whole<T>(&self, work: impl FnOnce(&mut Ebpf) -> T) -> T {
        work(&mut self.lock())
    }

    /// Runs a program on a made-up packet.
    pub(super) fn test_run(
        &self,
        direction: Direction,
        options: TestRunOptions<'_>,
    ) -> Result<TestRunResult, DatapathError> {
        let result = self.with(direction, |program| program.test_run(options)).flatten();
        result.map_err(|cause| DatapathError::Program { program: direction.name(), cause: Box::new(cause) })
    }

    /// A panic elsewhere leaves nothing half done that the next call would trip over.
    fn lock(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(ebpf: &mut Ebpf, direction: Direction) -> Result<Loaded, DatapathError> {
    let name = direction.name();
    let loaded = classifier(ebpf, direction).and_then(|program| {
        patiently(|| program.load())?;
        Ok(Loaded { fd: program.fd()?.try_clone()?, id: program.info()?.id() })
    });
    loaded.map_err(|cause| match &cause {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            let object = format!("cannot load the eBPF program {name}");
            DatapathError::Permission { object, cause: io_error.to_string() }
        }
        _ => DatapathError::Program { program: name, cause: Box::new(cause) },
    })
}

/// Loads a program again when the kernel gave up on it because a signal is waiting for this thread: it looks at every signal while
/// it verifies, which takes long under load, and says EAGAIN.
pub(super) fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(2);
    let begun = Instant::now();
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

fn classifier(ebpf: &mut Ebpf, direction: Direction) -> Result<&mut SchedClassifier, ProgramError> {
    ebpf.program_mut(direction.name()).ok_or(ProgramError::NotLoaded)?.try_into()
}
