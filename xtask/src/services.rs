//! Keeps the services of new packages from being started by their installation.
//!
//! Debian's packages start what they install, unless `/usr/sbin/policy-rc.d` forbids it (invoke-rc.d's interface,
//! Debian policy 9.3.3). A dockerd would write its rules into the machine's firewall, and an nginx would take port 80.
//! Invariants: a policy of somebody else is never changed, and one that would let services start is an error before
//! anything is installed; ours goes with the value, and one that a killed run left is taken for ours. One thread.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Where invoke-rc.d asks.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// "Forbidden", to whatever is asked.
const FORBID: &str =
    "#!/bin/sh\n# Weft's set-up, while it installs packages. Remove it if no set-up is running.\nexit 101\n";

/// The exit code of "forbidden".
const FORBIDDEN: i32 = 101;

/// No service is started while this exists.
#[derive(Debug)]
pub(crate) struct NoStart {
    /// The policy to remove; none when the machine has one of its own that forbids.
    made: Option<PathBuf>,
}

impl NoStart {
    /// Forbids it from now on.
    pub(crate) fn begin() -> Result<Self> {
        Self::begin_at(Path::new(POLICY))
    }

    fn begin_at(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o755).open(path) {
            Ok(mut file) => {
                let made = Self { made: Some(path.to_path_buf()) };
                file.write_all(FORBID.as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(made)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::found(path),
            Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }

    fn found(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        if text == FORBID {
            return Ok(Self { made: Some(path.to_path_buf()) });
        }
        let mut asked = Command::new(path);
        asked.args(["docker", "start"]).stdin(Stdio::null()).stdout(Stdio::null());
        let said = asked.status().with_context(|| format!("cannot run {}", path.display()))?;
        if said.code() != Some(FORBIDDEN) {
            bail!(
                "{} lets packages start their services while they are installed: make it forbid that (exit code 101), \
                 or install the packages yourself, and run this again",
                path.display()
            );
        }
        Ok(Self { made: None })
    }
}

impl Drop for NoStart {
    fn drop(&mut self) {
        if let Some(path) = &self.made
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("cannot remove {}, remove it yourself: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: Option<&str>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy-rc.d");
        if let Some(text) = text {
            // By another process: what this one holds open for writing, another test's fork would keep open, and a file
            // that is open so cannot be run.
            let mut install = Command::new("install");
            install.args(["-m", "755", "/dev/stdin"]).arg(&path).stdin(Stdio::piped());
            let mut install = install.spawn().unwrap();
            install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(install.wait().unwrap().success());
        }
        (dir, path)
    }

    #[test]
    fn services_are_forbidden_for_a_while() {
        // Also when a killed run left its policy.
        for before in [None, Some(FORBID)] {
            let (_dir, path) = policy(before);
            let forbidden = NoStart::begin_at(&path).unwrap();
            assert_eq!(Command::new("sh").arg(&path).status().unwrap().code(), Some(FORBIDDEN));
            drop(forbidden);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_machines_own_policy_stays() {
        let text = "#!/bin/sh\n[ \"$1\" = docker ] && exit 101\n";
        let (_dir, path) = policy(Some(text));
        drop(NoStart::begin_at(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_policy_that_lets_services_start_is_an_error() {
        let text = "#!/bin/sh\nexit 0\n";
        let (_dir, path) = policy(Some(text));
        let error = NoStart::begin_at(&path).unwrap_err().to_string();
        assert!(error.contains("exit code 101"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
