//! Everything that Weft could leave behind on a node, read from the kernel, the files and the pins, and from the API where
//! ipamd runs.
//!
//! Reads only. What the API says is compared with what is there, never taken for it.

use crate::{Node, TestNetns, poll_for, poll_until};
use anyhow::{Context, Result, bail};
use ipamd_api::{EndpointId, EndpointView, NetworkView, Phase, path};
use nix::net::if_::if_nameindex;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a removal behind an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pinned maps that have entries of endpoints, and whether an entry is an endpoint's or an address's.
const COUNTED: [&str; 3] = ["ENDPOINTS", "COUNTERS", "ADDRESSES"];

/// What is on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Host ends of veths, by generation.
    pub links: BTreeSet<EndpointId>,
    /// Journal records by phase.
    pub journal: BTreeMap<&'static str, BTreeSet<EndpointId>>,
    /// Files in the journal's folder that are no records: set aside, or half written.
    pub strange_files: BTreeSet<PathBuf>,
    /// Release records that have not been replayed.
    pub released: BTreeSet<PathBuf>,
    /// Copies of journal records in the pinned map.
    pub copies: BTreeSet<EndpointId>,
    /// Entries of the other pinned maps, by map.
    pub entries: BTreeMap<&'static str, usize>,
    /// Pinned links of programs on endpoints. Those of the node itself (cgroup, devices) stay as long as Weft is installed.
    pub link_pins: BTreeSet<PathBuf>,
    /// Endpoints that the API shows; `None` while ipamd is away.
    pub endpoints: Option<Vec<EndpointView>>,
    /// Addresses that the API counts as used; `None` while ipamd is away.
    pub used: Option<u64>,
}

impl Inventory {
    /// Looks at a node.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn of(node: &Node) -> Result<Self> {
        let mut found = Self {
            links: host_ends(node.netns())?,
            released: files(&node.run_dir().join("released"))?.into_iter().collect(),
            ..Self::default()
        };
        for path in files(&node.run_dir().join("journal"))? {
            match read_record(&path) {
                Some(record) => {
                    found.journal.entry(word(record.phase)).or_default().insert(record.endpoint);
                }
                None => {
                    found.strange_files.insert(path);
                }
            }
        }
        found.look_at_pins(&node.bpf_dir())?;
        if node.ipamd_pid().is_some() {
            let client = node.client();
            found.endpoints = Some(client.get(path::ENDPOINTS)?);
            let networks: Vec<NetworkView> = client.get(path::NETWORKS)?;
            found.used = Some(networks.iter().flat_map(|n| &n.pool_use).map(|p| p.used).sum());
        }
        Ok(found)
    }

    fn look_at_pins(&mut self, bpf_dir: &Path) -> Result<()> {
        for layout in files(bpf_dir)? {
            let links = files(&layout.join("links"))?;
            self.link_pins.extend(links.into_iter().filter(|path| of_endpoint(path)));
            for name in COUNTED {
                *self.entries.entry(name).or_default() += keys(&layout.join(name))?.len();
            }
            for key in keys(&layout.join("RECORDS"))? {
                let number = key.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
                self.copies.extend(number.and_then(EndpointId::new));
            }
        }
        Ok(())
    }

    /// What is there beside these live endpoints, or missing of them, in words. Tombstones in the journal are as they should be.
    pub fn differences(&self, live: &[EndpointId]) -> Vec<String> {
        let live: BTreeSet<EndpointId> = live.iter().copied().collect();
        let mut found = Vec::new();
        let mut compare = |what: &str, there: &BTreeSet<EndpointId>| {
            found.extend(there.difference(&live).map(|id| format!("{what} of {id} is left")));
            found.extend(live.difference(there).map(|id| format!("{what} of {id} is missing")));
        };
        let none = BTreeSet::new();
        compare("link", &self.links);
        compare("journal record", self.journal.get("live").unwrap_or(&none));
        compare("pinned record", &self.copies);
        let mut addresses = None;
        if let Some(endpoints) = &self.endpoints {
            compare("endpoint of the API", &endpoints.iter().map(|e| e.endpoint).collect());
            let held =
                endpoints.iter().filter(|e| live.contains(&e.endpoint)).map(|e| e.addresses.len()).sum();
            addresses = Some(held);
            found.extend(
                endpoints.iter().filter(|e| e.phase != Phase::Live).map(|e| format!("{e:?} is not live")),
            );
        }
        for (phase, ids) in self.journal.iter().filter(|(phase, _)| !["live", "freed"].contains(*phase)) {
            found.extend(ids.iter().map(|id| format!("a journal record of {id} in phase {phase} is left")));
        }
        for (name, count) in &self.entries {
            let expected = if *name == "ADDRESSES" { addresses } else { Some(live.len()) };
            if expected.is_some_and(|expected| expected != *count) {
                found.push(format!("{name} has {count} entries instead of {expected:?}"));
            }
        }
        if let (Some(used), Some(held)) = (self.used, addresses)
            && used != held as u64
        {
            found.push(format!("{used} addresses are counted as used instead of {held}"));
        }
        let paths = self.strange_files.iter().chain(&self.released);
        found.extend(paths.map(|path| format!("{} is left", path.display())));
        if live.is_empty() {
            found.extend(self.link_pins.iter().map(|path| format!("{} is left", path.display())));
        }
        found
    }
}

/// Waits until exactly these endpoints are on the node, and nothing is left of any other.
///
/// # Errors
/// Something is left or missing after ten seconds; the message lists it.
pub fn assert_holds(node: &Node, live: &[EndpointId]) -> Result<()> {
    let mut last = Vec::new();
    let held = poll_for(PATIENCE, "nothing to be left", || match Inventory::of(node) {
        Ok(inventory) => {
            last = inventory.differences(live);
            last.is_empty().then_some(())
        }
        Err(error) => {
            last = vec![format!("{error:#}")];
            None
        }
    });
    match held {
        Ok(()) => Ok(()),
        Err(_) => bail!(
            "on {live:?} there should be nothing else than these:\n{}\n{}",
            last.join("\n"),
            node.log_tail()
        ),
    }
}

/// Waits until no endpoint is on the node, nor anything of one.
///
/// # Errors
/// As [`assert_holds`].
pub fn assert_clean(node: &Node) -> Result<()> {
    assert_holds(node, &[])
}

/// Waits until nothing of any endpoint is on a node of a cluster. What it holds for itself, an address on each overlay network,
/// outlives them.
///
/// # Errors
/// Something is left; the message lists it.
pub fn assert_no_endpoint(node: &Node) -> Result<()> {
    let mut last = Vec::new();
    poll_until(PATIENCE, "nothing to be left", || {
        last = match Inventory::of(node) {
            Ok(inventory) => inventory.differences(&[]),
            Err(error) => vec![format!("{error:#}")],
        };
        last.retain(|difference| !difference.contains("addresses are counted as used"));
        last.is_empty()
    })
    .with_context(|| format!("{}\n{}", last.join("\n"), node.log_tail()))
}

/// Interfaces in a namespace beside `lo`.
///
/// # Errors
/// The namespace cannot be entered.
pub fn interfaces(netns: &TestNetns) -> Result<BTreeSet<String>> {
    let names = netns.run(|| {
        let all = if_nameindex()?;
        Ok::<_, nix::Error>(
            all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect::<BTreeSet<_>>(),
        )
    })?;
    let mut names = names.context("listing interfaces")?;
    names.remove("lo");
    Ok(names)
}

fn host_ends(netns: &TestNetns) -> Result<BTreeSet<EndpointId>> {
    Ok(interfaces(netns)?.iter().filter_map(|name| EndpointId::of_host_ifname(name)).collect())
}

/// What an inventory needs of a journal record.
#[derive(Deserialize)]
struct Record {
    endpoint: EndpointId,
    phase: Phase,
}

/// Whether a pinned link has the name of an endpoint's: `<generation>-<hook>`.
fn of_endpoint(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('-').next().is_some_and(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn read_record(path: &Path) -> Option<Record> {
    let name = path.file_name()?.to_str()?;
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (name == format!("{}.json", record.endpoint)).then_some(record)
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Adding => "adding",
        Phase::Live => "live",
        Phase::Deleting => "deleting",
        Phase::Freed => "freed",
    }
}

/// What is in a folder; nothing where there is none.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("reading {}", dir.display()))?,
    };
    entries.map(|entry| Ok(entry.with_context(|| format!("reading {}", dir.display()))?.path())).collect()
}

/// Longest key of Weft's maps, bytes; the kernel reads and writes only as many as the map has.
const LONGEST_KEY: usize = 64;

/// The keys of a pinned map, padded with zeros; none where nothing is pinned (`bpf(2)`).
fn keys(pin: &Path) -> Result<Vec<[u8; LONGEST_KEY]>> {
    const MAP_GET_NEXT_KEY: libc::c_int = 4;
    const OBJ_GET: libc::c_int = 7;
    #[repr(C)]
    struct ObjGet {
        pathname: u64,
        fd_and_flags: [u32; 2],
    }
    #[repr(C)]
    struct NextKey {
        map: [u32; 2],
        key: u64,
        next: u64,
        flags: u64,
    }
    if !pin.exists() {
        return Ok(Vec::new());
    }
    let name = std::ffi::CString::new(pin.as_os_str().as_encoded_bytes()).context("a pin's path")?;
    let get = ObjGet { pathname: name.as_ptr() as u64, fd_and_flags: [0; 2] };
    // SAFETY: the attribute and the path in it are live, and the size is the attribute's.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const get, size_of::<ObjGet>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd =
        fd.ok_or_else(std::io::Error::last_os_error).with_context(|| format!("opening {}", pin.display()))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut found: Vec<[u8; LONGEST_KEY]> = Vec::new();
    loop {
        let mut next = [0u8; LONGEST_KEY];
        let key = found.last().map_or(0, |key| key.as_ptr() as u64);
        let map = [map.as_raw_fd().cast_unsigned(), 0];
        let mut attribute = NextKey { map, key, next: next.as_mut_ptr() as u64, flags: 0 };
        // SAFETY: key (or none) and next point to live buffers longer than any key of these maps.
        let rc = unsafe {
            libc::syscall(libc::SYS_bpf, MAP_GET_NEXT_KEY, &raw mut attribute, size_of::<NextKey>())
        };
        if rc == 0 {
            found.push(next);
            continue;
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOENT) {
            return Ok(found);
        }
        return Err(error).with_context(|| format!("listing {}", pin.display()));
    }
}
