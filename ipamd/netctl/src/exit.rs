//! How a command ends: the exit code, and the text of a failure.

use ipamd_api::{ApiError, ClientError};
use std::{fmt, io, process::ExitCode};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, and what was looked at is as it should be. Code 0.
    Done,
    /// Refused or failed, not found, or something is not as it should be. Code 1.
    Refused,
    /// The command line is wrong; nothing was asked of ipamd. Of `diff`: there is nothing to compare, for whatever reason. Code 2.
    Usage,
}

impl Exit {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Usage => 2,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// ipamd refused, or could not be asked.
    Client(ClientError),
    /// The command line says what cannot be meant.
    Usage(String),
    /// Something on this side failed.
    Local(String),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Client(_) | Self::Local(_) => Exit::Refused,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(cause: ClientError) -> Self {
        Self::Client(cause)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(ClientError::Refused(error)) => fmt_refusal(f, error),
            Self::Client(ClientError::Unavailable { socket, cause })
                if cause.kind() == io::ErrorKind::PermissionDenied =>
            {
                writeln!(f, "netctl: ipamd's socket {} may not be used: {cause}", socket.display())?;
                writeln!(f, "  next: call netctl as root")
            }
            Self::Client(error) => writeln!(f, "netctl: {error}"),
            Self::Usage(text) => {
                writeln!(f, "netctl: {text}")?;
                writeln!(f, "  next: see `netctl help`")
            }
            Self::Local(text) => writeln!(f, "netctl: {text}"),
        }
    }
}

fn fmt_refusal(f: &mut fmt::Formatter<'_>, error: &ApiError) -> fmt::Result {
    writeln!(f, "netctl: {} (code {})", crate::output::printable(&error.msg), error.code)?;
    for line in error.details.lines() {
        writeln!(f, "  {}", crate::output::printable(line))?;
    }
    match error.code() {
        Some(code) => writeln!(f, "  next: {}", code.remedy()),
        None => writeln!(f, "  next: this ipamd is newer than netctl; use binaries of one release"),
    }
}
