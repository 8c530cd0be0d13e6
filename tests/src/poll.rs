//! Waiting for something to become true, with a deadline.

use anyhow::{Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a port may stay taken by nobody.
const FREED: Duration = Duration::from_secs(10);

/// Looks until `found` returns a value.
///
/// # Errors
/// It returned none within `limit`; the message says what was waited for.
pub fn poll_for<T>(limit: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = found() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(PAUSE);
    }
}

/// Looks until `condition` is true.
///
/// # Errors
/// As [`poll_for`].
pub fn poll_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    poll_for(limit, what, || condition().then_some(()))
}

/// Binds a socket, and waits for its port if need be: of one that was closed, a process that another test is starting has a copy until
/// its exec.
///
/// # Errors
/// The port stays taken, or the kernel refuses.
pub fn bind_soon<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < FREED => {
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Waits until there is something to read, or somebody to accept, but no longer than `limit`; whether there is.
pub(crate) fn wait_to_read(socket: &impl AsFd, limit: Duration) -> bool {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], limit).is_ok_and(|ready| ready > 0)
}
