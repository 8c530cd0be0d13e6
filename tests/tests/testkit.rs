//! The testkit itself: what it makes works, and is gone afterwards.

use anyhow::Result;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};
use weft_tests::{BpfMount, Guarded, Sandbox, TestNetns, poll_for, poll_until};

fn mounted(path: &std::path::Path) -> Result<bool> {
    Ok(fs::read_to_string("/proc/self/mounts")?.contains(&path.display().to_string()))
}

#[test]
fn a_namespace_is_apart_and_gone_afterwards() -> Result<()> {
    let netns = TestNetns::new()?;
    let path = netns.path().to_owned();
    assert_eq!(netns.sh("ip -o link")?.lines().count(), 1, "only lo");
    let inside = netns.run(|| fs::metadata("/proc/thread-self/ns/net").map(|m| m.ino()))??;
    assert_eq!(inside, netns.identity().inode);
    assert_ne!(fs::metadata("/proc/thread-self/ns/net")?.ino(), inside, "the caller stays where it was");
    assert!(mounted(&path)?);
    drop(netns);
    assert!(!mounted(&path)? && !path.exists());
    Ok(())
}

#[test]
fn a_namespace_is_removed_by_a_panic_too() -> Result<()> {
    let netns = TestNetns::new()?;
    let path = netns.path().to_owned();
    let failed = std::thread::spawn(move || {
        let _held = netns;
        std::panic::resume_unwind(Box::new("as a failed assertion would"));
    });
    assert!(failed.join().is_err());
    assert!(!mounted(&path)? && !path.exists());
    Ok(())
}

#[test]
fn a_replaced_sandbox_has_its_path_and_another_cookie() -> Result<()> {
    let mut sandbox = Sandbox::new()?;
    let old = sandbox.identity().clone();
    sandbox.replace()?;
    assert_eq!(sandbox.identity().path, old.path);
    assert_ne!(sandbox.identity().cookie, old.cookie);
    Ok(())
}

#[test]
fn a_command_runs_inside_and_its_failure_is_told() -> Result<()> {
    let netns = TestNetns::new()?;
    let output = netns.command("readlink").arg("/proc/self/ns/net").output()?;
    let link = String::from_utf8(output.stdout)?;
    assert_eq!(link.trim(), format!("net:[{}]", netns.identity().inode));
    let error = netns.ip("link show nope0").err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("nope0"), "{error}");
    Ok(())
}

#[test]
fn a_child_ends_with_its_guard() -> Result<()> {
    let mut sandbox = Sandbox::with_process()?;
    let mut child = Guarded::spawn(sandbox.command("sleep").arg("infinity"))?;
    let status = std::path::PathBuf::from(format!("/proc/{}", child.id()));
    assert!(child.ended()?.is_none() && status.exists());
    sandbox.stop_process();
    drop(child);
    assert!(!status.exists(), "killed and waited for");
    Ok(())
}

#[test]
fn a_bpffs_is_unmounted() -> Result<()> {
    let bpf = BpfMount::new()?;
    let path = bpf.path().to_owned();
    assert!(mounted(&path)?);
    fs::create_dir(path.join("weft"))?;
    drop(bpf);
    assert!(!mounted(&path)? && !path.exists());
    Ok(())
}

#[test]
fn waiting_ends_at_the_deadline_and_says_for_what() {
    let start = Instant::now();
    let limit = Duration::from_millis(30);
    let error = poll_until(limit, "a miracle", || false).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("a miracle"), "{error}");
    assert!(start.elapsed() >= limit);
    assert_eq!(poll_for(limit, "a value", || Some(7)).ok(), Some(7));
}
