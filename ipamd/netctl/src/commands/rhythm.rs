//! What is looked at again and again until the operator interrupts it: `top`, `flows --follow`.
//!
//! It ends, well, when it is interrupted or the reader of standard output goes away. Between two looks nothing is asked of ipamd.

use crate::{Exit, Surroundings, exit::Failure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    io::{self, Write},
    os::fd::AsFd,
    time::Duration,
};

/// What a look found.
pub(super) struct Look {
    /// What is printed of it.
    pub(super) text: String,
    /// Whether it was the last one.
    pub(super) last: bool,
}

/// Looks, prints, waits for `interval`, and again.
pub(super) fn run(
    interval: Duration,
    around: &Surroundings<'_>,
    out: &mut dyn Write,
    mut look: impl FnMut() -> Result<Look, Failure>,
) -> Result<Exit, Failure> {
    let interrupt = (around.interrupt)()
        .map_err(|cause| Failure::Local(format!("interrupts cannot be waited for: {cause}")))?;
    let patience = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    loop {
        let Look { text, last } = look()?;
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            Err(cause) => {
                return Err(Failure::Local(format!(
                    "the answer cannot be written to standard output: {cause}"
                )));
            }
        }
        if last {
            return Ok(Exit::Done);
        }
        let mut ends = vec![PollFd::new(interrupt.as_fd(), PollFlags::POLLIN)];
        // A pipe without a reader is in error; nothing else is asked of it.
        ends.extend(around.reader.map(|reader| PollFd::new(reader, PollFlags::empty())));
        match poll(&mut ends, patience) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(Exit::Done),
            Err(cause) => return Err(Failure::Local(format!("the next look cannot be waited for: {cause}"))),
        }
    }
}
