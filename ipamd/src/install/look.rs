//! Asks the files that are there who they are. An executable is asked by running it: no stamp beside it can be stale then.

use super::plan::{Found, FoundConflist, looks_cut, version_in};
use crate::conflist;
use std::{
    fs,
    io::{self, Read as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long an executable may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than this is no answer.
const MAX_ANSWER: u64 = 4096;

/// What is at `path`, where the executable `name` belongs.
pub(super) fn executable(path: &Path, name: &str) -> io::Result<Found> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let mut head = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(64).read_to_end(&mut head)?,
        // A link to nothing: `weft-ipam` of a release whose `weft` is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Broken),
        Err(error) => return Err(error),
    };
    let broken = |cause: String| if looks_cut(&head) { Found::Broken } else { Found::Foreign(cause) };
    Ok(match answer(path, name) {
        Ok((said, status)) => match version_in(&said, name) {
            Some(version) if status.success() => Found::Release(version),
            _ if status.signal().is_some() => broken(format!("it ended with {status}")),
            _ => Found::Foreign(format!("it does not name itself {name} with a version")),
        },
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => broken(error.to_string()),
        Err(error) => Found::Foreign(format!("it cannot be asked for its version: {error}")),
    })
}

/// What is at `path`, where the conflist belongs.
pub(super) fn conflist(path: &Path) -> io::Result<FoundConflist> {
    match fs::read(path) {
        Ok(text) => Ok(match conflist::calls_weft(&text) {
            Some(true) => FoundConflist::Weft,
            Some(false) => FoundConflist::Foreign,
            None => FoundConflist::Broken,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FoundConflist::Absent),
        Err(error) => Err(error),
    }
}

/// What an executable prints when it is asked who it is: `weft` without a verb, `netctl` by its flag.
fn answer(path: &Path, name: &str) -> io::Result<(String, ExitStatus)> {
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if name == super::NETCTL {
        command.arg("--version");
    }
    let mut child = command.spawn()?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut said = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(MAX_ANSWER).read_to_end(&mut said)?;
    }
    if let Some(err) = child.stderr.take() {
        err.take(MAX_ANSWER).read_to_end(&mut said)?;
    }
    Ok((String::from_utf8_lossy(&said).into_owned(), status))
}
