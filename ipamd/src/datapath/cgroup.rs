//! The hooks of sockets: ten programs on the cgroup that holds the node's processes, each by a pinned link.
//!
//! Invariants: a link that is there gets the new program by an update in place, so no socket call ever goes by without one; a link
//! of another cgroup (`--cgroup` was changed) is replaced by name only after its successor works. Dropping [`CgroupHooks`]
//! detaches nothing; [`CgroupHooks::remove`] does, at once. Thread rule: none, nothing here depends on the caller's namespace.

use super::{
    DatapathError,
    ebpf::{load_error, object},
    place::{self, Place},
    programs::patiently,
};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, ProgramFd, links::FdLink},
};
use std::{
    ffi::CString,
    fs::{self, File},
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

/// Every hook; programs have their names.
pub const CGROUP_HOOKS: [&str; 10] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "bind4",
    "bind6",
];

/// The hooks as this process attached them.
#[derive(Debug)]
pub struct CgroupHooks {
    links: PathBuf,
    cgroup: u64,
    /// Ids of the programs, in the order of [`CGROUP_HOOKS`].
    programs: Vec<u32>,
}

/// Programs of the hooks, with their ids, in the order of [`CGROUP_HOOKS`].
pub(super) struct LoadedHooks(Vec<(ProgramFd, u32)>);

impl CgroupHooks {
    /// Replaces the hooks alone: on the maps that are pinned below `bpf_dir`, without the programs of packets, which take long to load.
    ///
    /// # Errors
    /// As [`super::EbpfDatapath::open`].
    pub fn open(bpf_dir: &Path, cgroup: &Path) -> Result<Self, DatapathError> {
        let place = Place::make(bpf_dir)?;
        let mut ebpf =
            EbpfLoader::new().default_map_pin_directory(&place.maps).load(object()).map_err(load_error)?;
        let loaded = Self::load(&mut ebpf)?;
        Self::attach(&mut ebpf, loaded, cgroup, &place.links)
    }

    /// Loads the programs.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<LoadedHooks, DatapathError> {
        CGROUP_HOOKS.into_iter().map(|hook| load(ebpf, hook)).collect::<Result<_, _>>().map(LoadedHooks)
    }

    /// Makes the programs, which have been loaded, run for every process of `cgroup` and below it. `links` is the directory of pinned
    /// links.
    ///
    /// # Errors
    /// `cgroup` is none, somebody holds a hook for himself alone, or the kernel refuses. Hooks done by then stay.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        loaded: LoadedHooks,
        cgroup: &Path,
        links: &Path,
    ) -> Result<Self, DatapathError> {
        let refused = |hook, cause| DatapathError::Cgroup { hook, cgroup: cgroup.to_owned(), cause };
        let file = File::open(cgroup).map_err(|cause| refused("every", cause))?;
        // The number of a cgroup is its inode's (kernfs_node).
        let id = file.metadata().map_err(|cause| refused("every", cause))?.ino();
        let mut programs = Vec::with_capacity(CGROUP_HOOKS.len());
        for (hook, (fd, number)) in CGROUP_HOOKS.into_iter().zip(loaded.0) {
            let pin = pin_of(links, hook);
            let replaced = replace(&pin, id, fd.as_fd()).map_err(|cause| refused(hook, cause))?;
            if !replaced {
                let link = link(ebpf, hook, &file).map_err(|cause| refused(hook, cause))?;
                pin_over(link, &pin).map_err(|cause| place::pin(&pin, cause))?;
            }
            programs.push(number);
        }
        Ok(Self { links: links.to_owned(), cgroup: id, programs })
    }

    /// The hooks where something else than this process' program runs, or nothing.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn missing(&self) -> Result<Vec<&'static str>, DatapathError> {
        let mut missing = Vec::new();
        for (&hook, &program) in CGROUP_HOOKS.iter().zip(&self.programs) {
            let pin = pin_of(&self.links, hook);
            match observe(&pin).map_err(|cause| place::pin(&pin, cause))? {
                Some(seen) if (seen.cgroup, seen.program) == (self.cgroup, program) => {}
                _ => missing.push(hook),
            }
        }
        Ok(missing)
    }

    /// Takes every hook off whatever cgroup it is on, and removes its pin. Says which pins there were.
    ///
    /// # Errors
    /// The first error; the rest is removed all the same.
    pub fn remove(links: &Path) -> Result<Vec<String>, DatapathError> {
        let mut removed = Vec::new();
        let mut first = Ok(());
        for hook in CGROUP_HOOKS {
            let pin = pin_of(links, hook);
            match take_off(&pin) {
                Ok(true) => removed.push(pin.display().to_string()),
                Ok(false) => {}
                Err(cause) => first = first.and(Err(place::pin(&pin, cause))),
            }
        }
        first.map(|()| removed)
    }
}

fn pin_of(links: &Path, hook: &str) -> PathBuf {
    links.join(format!("cgroup-{hook}"))
}

fn load(ebpf: &mut Ebpf, hook: &'static str) -> Result<(ProgramFd, u32), DatapathError> {
    let loaded = program(ebpf, hook).and_then(|program| {
        patiently(|| program.load())?;
        Ok((program.fd()?.try_clone()?, program.info()?.id()))
    });
    loaded.map_err(|cause| DatapathError::Program { program: hook, cause: Box::new(cause) })
}

fn program<'a>(ebpf: &'a mut Ebpf, hook: &str) -> Result<&'a mut CgroupSockAddr, ProgramError> {
    ebpf.program_mut(hook).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// Gives the link at `pin` another program. False when there is none, or none that is on this cgroup.
fn replace(pin: &Path, cgroup: u64, program: BorrowedFd<'_>) -> io::Result<bool> {
    let Some(link) = open(pin)? else { return Ok(false) };
    if info(link.as_fd())?.cgroup != cgroup {
        return Ok(false);
    }
    match update(link.as_fd(), program) {
        // The cgroup was removed meanwhile, and one of the same inode made.
        Err(cause) if cause.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        done => done.map(|()| true),
    }
}

/// A new link. Programs of others stay beside it: links always allow them.
fn link(ebpf: &mut Ebpf, hook: &str, cgroup: &File) -> io::Result<FdLink> {
    let linked = program(ebpf, hook).and_then(|program| {
        let id = program.attach(cgroup, CgroupAttachMode::Single)?;
        program.take_link(id)
    });
    let link = linked.map_err(|error| match error {
        ProgramError::SyscallError(e) => e.io_error,
        other => io::Error::other(other),
    })?;
    link.try_into().map_err(io::Error::other)
}

/// Pins a link, in place of what is pinned there, which is detached.
fn pin_over(link: FdLink, pin: &Path) -> io::Result<()> {
    // No dot: a bpffs keeps such names for itself (EPERM).
    let mut new = pin.as_os_str().to_owned();
    new.push("-new");
    let new = PathBuf::from(new);
    // Left by a crash between the two steps below.
    take_off(&new)?;
    link.pin(&new).map_err(io::Error::other)?;
    let old = open(pin)?;
    fs::rename(&new, pin)?;
    old.map_or(Ok(()), |old| detach(old.as_fd()))
}

/// Detaches and unpins a link; false when there is none.
fn take_off(pin: &Path) -> io::Result<bool> {
    let Some(link) = open(pin)? else { return Ok(false) };
    // Unpinning alone would leave it attached for as long as anybody holds it open.
    let detached = detach(link.as_fd());
    fs::remove_file(pin)?;
    detached.map(|()| true)
}

fn observe(pin: &Path) -> io::Result<Option<Link>> {
    open(pin)?.map(|link| info(link.as_fd())).transpose()
}

// What follows is bpf(2) itself: aya opens pinned links, but shows neither their descriptor nor their cgroup.

/// `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `struct bpf_link_info` of a cgroup link, as far as it is read.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    end: u32,
}

/// What a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    program: u32,
    /// Zero when the cgroup is gone.
    cgroup: u64,
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;

/// Opens a pinned link.
fn open(pin: &Path) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Get {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    match bpf(BPF_OBJ_GET, &attributes) {
        // SAFETY: the kernel has just given it to us.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

fn info(link: BorrowedFd<'_>) -> io::Result<Link> {
    #[repr(C)]
    struct GetInfo {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let length = mem::size_of::<LinkInfo>() as u32;
    let attributes = GetInfo { fd: number(link), length, info: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    if info.kind != LINK_TYPE_CGROUP {
        return Err(io::Error::other("it is no link to a cgroup; remove it"));
    }
    Ok(Link { program: info.program, cgroup: info.cgroup })
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let attributes = Update { link: number(link), program: number(program), flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &attributes).map(drop)
}

/// Takes a link off its cgroup, whoever else holds it open.
fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Detach {
        link: u32,
    }
    bpf(BPF_LINK_DETACH, &Detach { link: number(link) }).map(drop)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// bpf(2). `attributes` is the beginning of `union bpf_attr` that the command reads, without padding.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as we say there are; pointers in them outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), mem::size_of::<T>()) };
    match libc::c_int::try_from(done) {
        Ok(done) if done >= 0 => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}
