//! Attaching by tcx links, pinned, for veths whose `ingress` qdisc belongs to somebody else.
//!
//! A link is found again by its pin and gets the new program by an update in place. Attaching and detaching sleep for a grace
//! period of the kernel (about 12 ms), which is why clsact is the default.

use super::place;
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions, TcError},
};
use std::{fs, io, path::Path};

/// Makes `program` run on a hook of `interface`, by the link pinned at `pin` or by a new one that is then pinned there.
pub(super) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    pin: &Path,
) -> io::Result<()> {
    if let Some(link) = pinned(pin)? {
        match program.attach_to_link(link) {
            // The pin holds the link; ours may go.
            Ok(id) => return program.take_link(id).map(drop).map_err(to_io),
            // Its device is gone; the index of the pin's endpoint never was another's, so it is merely stale.
            Err(_) => fs::remove_file(pin)?,
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, hook, options).map_err(to_io)?;
    let link: FdLink = program.take_link(id).map_err(to_io)?.try_into().map_err(link_to_io)?;
    link.pin(pin).map(drop).map_err(io::Error::other)
}

/// Puts `program` in the place of the one that runs by the link at `pin`. A link that is gone, or its device, is fine.
pub(super) fn replace(program: &mut SchedClassifier, pin: &Path) -> io::Result<()> {
    let Some(link) = pinned(pin)? else { return Ok(()) };
    match program.attach_to_link(link).map_err(to_io) {
        Ok(id) => program.take_link(id).map(drop).map_err(to_io),
        Err(cause) if cause.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        Err(cause) => Err(cause),
    }
}

/// Whether the program with this id runs on a hook of `interface`.
pub(super) fn is_attached(interface: &str, hook: TcAttachType, program: u32) -> io::Result<bool> {
    match SchedClassifier::query_tcx(interface, hook) {
        Ok((_, programs)) => Ok(programs.iter().any(|p| p.id() == program)),
        Err(error) => match to_io(error) {
            // No link of that name, or a kernel without tcx.
            e if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::EINVAL)) => Ok(false),
            e => Err(e),
        },
    }
}

/// Removes a pin, and with it the link.
pub(super) fn forget(pin: &Path) -> Result<(), super::DatapathError> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(place::pin(pin, e)),
        _ => Ok(()),
    }
}

fn pinned(pin: &Path) -> io::Result<Option<SchedClassifierLink>> {
    let link = match PinnedLink::from_pin(pin) {
        Ok(pinned) => FdLink::from(pinned),
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(link_to_io(e)),
    };
    SchedClassifierLink::try_from(link).map(Some).map_err(link_to_io)
}

/// The kernel's own error, where there is one.
fn to_io(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(e) => e.io_error,
        ProgramError::TcError(TcError::IoError(e)) => e,
        other => io::Error::other(other),
    }
}

fn link_to_io(error: LinkError) -> io::Error {
    match error {
        LinkError::SyscallError(e) => e.io_error,
        other => io::Error::other(other),
    }
}
