//! Calls of the CNI executable as a runtime makes them: `CNI_*` variables, the netconf on stdin, the result on stdout.

use crate::{TestNetns, binaries};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
};

/// An error of the CNI specification as the executable printed it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CniError {
    /// Code.
    pub code: u32,
    /// Message.
    pub msg: String,
    /// Details.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {}): {}", self.msg, self.code, self.details)
    }
}

impl std::error::Error for CniError {}

/// A caller of the executable, for one attachment.
#[derive(Debug, Clone)]
pub struct Cni<'a> {
    host: &'a TestNetns,
    run_dir: PathBuf,
    program: PathBuf,
    variables: Vec<(String, Option<OsString>)>,
}

impl<'a> Cni<'a> {
    /// A caller on a node: in its namespace, with its run directory put into netconfs that name none.
    ///
    /// # Errors
    /// The executable has not been built.
    pub fn new(host: &'a TestNetns, run_dir: &Path) -> Result<Self> {
        let program = binaries::find("weft")?;
        let path = program.parent().map(|p| p.as_os_str().to_owned());
        let variables = vec![("CNI_PATH".to_owned(), path), ("CNI_IFNAME".to_owned(), Some("eth0".into()))];
        Ok(Self { host, run_dir: run_dir.to_owned(), program, variables })
    }

    /// Calls another executable, e.g. one of the reference plugins.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Sets `CNI_CONTAINERID`.
    #[must_use]
    pub fn container(self, id: &str) -> Self {
        self.variable("CNI_CONTAINERID", Some(id.into()))
    }

    /// Sets `CNI_NETNS`.
    #[must_use]
    pub fn netns(self, path: impl AsRef<Path>) -> Self {
        self.variable("CNI_NETNS", Some(path.as_ref().as_os_str().to_owned()))
    }

    /// Sets `CNI_IFNAME`; it is `eth0` otherwise.
    #[must_use]
    pub fn ifname(self, name: &str) -> Self {
        self.variable("CNI_IFNAME", Some(name.into()))
    }

    /// Sets `CNI_ARGS`.
    #[must_use]
    pub fn args(self, args: &str) -> Self {
        self.variable("CNI_ARGS", Some(args.into()))
    }

    /// Sets any variable, or makes it absent.
    #[must_use]
    pub fn variable(mut self, name: &str, value: Option<OsString>) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value));
        self
    }

    /// Calls a verb. The outer error: the executable could not be run, or broke the protocol.
    ///
    /// # Errors
    /// See above; the inner error is the executable's own.
    pub fn call(&self, verb: &str, netconf: &Value) -> Result<std::result::Result<Value, CniError>> {
        let mut netconf = netconf.clone();
        if let Some(fields) = netconf.as_object_mut() {
            fields.entry("runDir").or_insert_with(|| self.run_dir.display().to_string().into());
        }
        self.call_raw(verb, netconf.to_string().as_bytes())
    }

    /// The same with any bytes on stdin.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn call_raw(&self, verb: &str, stdin: &[u8]) -> Result<std::result::Result<Value, CniError>> {
        let mut command = self.host.command_without_cgroup(&self.program);
        command.env("CNI_COMMAND", verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn().with_context(|| format!("running {}", self.program.display()))?;
        let mut pipe = child.stdin.take().context("the child's stdin is a pipe")?;
        // A caller that fails early closes its end; its answer says why.
        let written = pipe.write_all(stdin);
        drop(pipe);
        let output = child.wait_with_output().context("waiting for the CNI executable")?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            // VERSION needs no netconf and reads none.
            match written {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    return Err(error).context("writing the netconf");
                }
                _ => {}
            }
            if said.trim().is_empty() {
                return Ok(Ok(Value::Null));
            }
            return Ok(Ok(serde_json::from_str(&said).with_context(|| format!("{verb} printed {said:?}"))?));
        }
        match serde_json::from_str(&said) {
            Ok(error) => Ok(Err(error)),
            Err(_) => bail!(
                "{verb} ended with {} and printed {said:?}, {:?}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// ADD; an error of the executable is a [`CniError`] (downcast it).
    ///
    /// # Errors
    /// As [`Self::call`], either error.
    pub fn add(&self, netconf: &Value) -> Result<Value> {
        Ok(self.call("ADD", netconf)??)
    }

    /// DEL.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn del(&self, netconf: &Value) -> Result<()> {
        self.call("DEL", netconf)??;
        Ok(())
    }

    /// CHECK; `prev` becomes the netconf's `prevResult`.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn check(&self, netconf: &Value, prev: &Value) -> Result<()> {
        let mut netconf = netconf.clone();
        if let Some(fields) = netconf.as_object_mut() {
            fields.insert("prevResult".into(), prev.clone());
        }
        self.call("CHECK", &netconf)??;
        Ok(())
    }
}
