//! A run directory that is full, or read-only.

use super::scene::{self, Pod};
use anyhow::{Context, Result, ensure};
use ipamd_api::{ErrorCode, NetworkView};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};
use weft_tests::{Inventory, Node, inventory};

/// A small tmpfs on a node's run directory; unmounted on drop, which has to come before the node's.
struct SmallRunDir(PathBuf);

impl SmallRunDir {
    fn mount(dir: &Path) -> Result<Self> {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=256k,nr_inodes=64"))
            .context("mounting a small tmpfs")?;
        Ok(Self(dir.to_owned()))
    }

    /// Writes until nothing fits any more.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.0.join("filler"))?;
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        fs::remove_file(self.0.join("filler")).context("removing the filler")
    }

    /// Read-only for whoever comes by its path; ipamd's lock file, open for writing, keeps the file system itself from it.
    fn cover(&self) -> Result<()> {
        let none = None::<&str>;
        mount(Some(&self.0), &self.0, none, MsFlags::MS_BIND, none).context("covering the run directory")?;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, &self.0, none, flags, none).context("making the cover read-only")
    }

    fn uncover(&self) -> Result<()> {
        umount2(&self.0, MntFlags::MNT_DETACH).context("uncovering the run directory")
    }
}

impl Drop for SmallRunDir {
    fn drop(&mut self) {
        // Nobody is left to tell; the cover of a test that failed goes with what it covers.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// What an ADD could change, tombstones aside.
fn state(node: &Node) -> Result<(Inventory, Vec<NetworkView>)> {
    let mut inventory = Inventory::of(node)?;
    inventory.journal.remove("freed");
    Ok((inventory, node.client().get(ipamd_api::path::NETWORKS)?))
}

fn refuses_add_and_serves_del(
    name: &str,
    spoil: fn(&SmallRunDir) -> Result<()>,
    mend: fn(&SmallRunDir) -> Result<()>,
) -> Result<()> {
    let mut node = scene::node(name).build()?;
    let run_dir = SmallRunDir::mount(&node.run_dir())?;
    node.start()?;
    let (mut first, second, stranger) = (Pod::new("first")?, Pod::new("second")?, Pod::wide("stranger")?);
    first.add(&node)?;
    let before = state(&node)?;
    spoil(&run_dir)?;
    // On a network that exists, and as the first one of another.
    for pod in [&second, &stranger] {
        let error = pod.add_refused(&node)?;
        ensure!(error.code == ErrorCode::Journal.number(), "{}: {error}", pod.id);
        ensure!(!pod.has_interface()?, "{} got an interface", pod.id);
    }
    ensure!(state(&node)? == before, "a refused ADD changed {before:?}\ninto {:?}", state(&node)?);
    let status = node.cni()?.call("STATUS", &scene::netconf())?;
    ensure!(status.as_ref().is_err_and(|e| e.code == ErrorCode::NotAvailable.number()), "STATUS: {status:?}");
    first.del(&node)?;
    weft_tests::poll_until(std::time::Duration::from_secs(10), "the interface to go", || {
        first.has_interface().is_ok_and(|there| !there)
    })?;
    weft_tests::poll_until(std::time::Duration::from_secs(10), "the endpoint to go", || {
        Inventory::of(&node).is_ok_and(|i| i.used == Some(0) && i.links.is_empty() && i.copies.is_empty())
    })?;
    mend(&run_dir)?;
    // Whatever could not be written down then is not brought back now.
    node.restart()?;
    inventory::assert_clean(&node)?;
    let mut second = second;
    second.add(&node)?;
    second.del(&node)?;
    inventory::assert_clean(&node)?;
    node.stop()?;
    drop(run_dir);
    Ok(())
}

#[test]
fn a_full_run_directory_refuses_add_and_serves_del() -> Result<()> {
    refuses_add_and_serves_del("full", SmallRunDir::fill, SmallRunDir::empty)
}

#[test]
fn a_read_only_run_directory_refuses_add_and_serves_del() -> Result<()> {
    refuses_add_and_serves_del("read-only", SmallRunDir::cover, SmallRunDir::uncover)
}
