//! What is compared: anything that connects a sandbox and disconnects it again.

use crate::{floor::Bare, shared::go_on};
use anyhow::{Context, Result, bail};
use std::{
    path::PathBuf,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use weft_tests::{Node, Sandbox};

/// How long a link may take to go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the candidates work.
pub(crate) struct Places<'a> {
    pub(crate) node: &'a Node,
    /// Sees when links are gone.
    pub(crate) links: Mutex<Bare>,
    /// For the leases of the reference plugins; on a tmpfs, as Weft's journal.
    leases: TempDir,
}

impl<'a> Places<'a> {
    pub(crate) fn new(node: &'a Node) -> Result<Self> {
        let leases = tempfile::Builder::new().prefix("weft-leases-").tempdir().context("making a folder")?;
        Ok(Self { node, links: Mutex::new(Bare::open()?), leases })
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.leases.path().to_owned()
    }

    /// Waits until no link of this name is in the node, and the kernel has finished its removal.
    pub(crate) fn wait_gone(&self, link: &str) -> Result<()> {
        let start = Instant::now();
        let mut links = self.links.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        loop {
            go_on()?;
            if !links.exists(link)? {
                return Ok(links.settle()?);
            }
            if start.elapsed() > PATIENCE {
                bail!("{link} is still there {PATIENCE:?} after the DEL");
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// What a DEL needs to know of its ADD.
pub(crate) struct Held {
    /// The results of the chain; the last is the one that a runtime caches.
    pub(crate) result: serde_json::Value,
    /// The link on the host.
    pub(crate) link: String,
    pub(crate) address: String,
}

/// One way to connect sandboxes.
pub(crate) trait Candidate: Sync {
    fn name(&self) -> &'static str;

    /// Whether Weft wants to be faster than it.
    fn is_peer(&self) -> bool {
        false
    }

    /// Connects the sandbox; `call` has not been used before.
    fn add(&self, sandbox: &Sandbox, call: usize) -> Result<Held>;

    /// Disconnects it.
    fn del(&self, sandbox: &Sandbox, call: usize, held: &Held) -> Result<()>;
}
