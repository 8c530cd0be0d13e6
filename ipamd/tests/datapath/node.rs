//! A host for one test: a network namespace that ends with the test's thread, a bpffs, and a datapath on it.
//!
//! Thread rule: the namespace belongs to the thread that made the node; use it there only.

use ipamd::datapath::{Datapath, DatapathOptions, DnsMode, EbpfDatapath, EndpointEntry, Outside, Shaping};
use ipamd_api::{EndpointId, Hooks, MacAddr, mac_of_address};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// MAC of every bridge here.
pub(crate) const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x57, 10, 1, 0, 1]);
pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1);
/// Number of the network that the gateway addresses belong to.
pub(crate) const NETWORK: u32 = 7;

/// Small tables: many tests run at once.
pub(crate) fn options() -> DatapathOptions {
    DatapathOptions {
        flow_entries: 1024,
        replied_entries: 8192,
        new_entries: 8192,
        host_flow_entries: 1024,
        socket_entries: 1024,
        cgroup: None,
    }
}

/// A bpffs for one test.
pub(crate) struct Bpffs {
    dir: TempDir,
}

impl Bpffs {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests need root: they mount a bpffs and load eBPF programs"
        );
        let dir = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none)
            .expect("cannot mount a bpffs: these tests need root with CAP_SYS_ADMIN and CAP_BPF");
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn open(&self) -> EbpfDatapath {
        EbpfDatapath::open(&self.path().join("weft"), &options()).unwrap()
    }

    /// Where maps are pinned.
    pub(crate) fn pins(&self) -> PathBuf {
        self.path().join("weft").join(format!("v{}", ebpf_common::LAYOUT_VERSION))
    }

    /// Lets go of the programs that are kept for the next start, which then loads others, as one of another build does.
    pub(crate) fn let_programs_go(&self) {
        fs::remove_dir_all(self.pins().join("programs")).unwrap();
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(self.dir.path(), MntFlags::MNT_DETACH).expect("cannot unmount the test's bpffs");
    }
}

/// A host with a datapath.
pub(crate) struct Node {
    pub(crate) datapath: EbpfDatapath,
    pub(crate) bpffs: Bpffs,
}

impl Node {
    pub(crate) fn new() -> Self {
        let bpffs = Bpffs::new();
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace");
        ip("link set lo up");
        Self { datapath: bpffs.open(), bpffs }
    }

    /// Makes a veth pair, both ends on the host, for an endpoint with the given last address byte; not attached.
    pub(crate) fn endpoint(&self, last: u8) -> EndpointEntry {
        let entry = entry(last);
        ip(&format!("link add {} type veth peer name p{last}", entry.host_ifname));
        EndpointEntry { host_ifindex: ifindex(&entry.host_ifname), ..entry }
    }

    /// The same, attached.
    pub(crate) fn attached(&self, last: u8) -> EndpointEntry {
        let entry = self.endpoint(last);
        self.datapath.attach(&entry).unwrap();
        entry
    }

    /// Whether the kernel has no tcx because it is older than Linux 6.6. Before it says so, it proves that such a kernel
    /// refuses an endpoint that wants tcx, and that the error names the way out; a newer kernel is never let off.
    pub(crate) fn is_too_old_for_tcx(&self) -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let release = release.trim();
        let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap());
        if (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 6) {
            return false;
        }
        let entry = EndpointEntry { hooks: Hooks::Tcx, ..self.endpoint(99) };
        let error = self.datapath.attach(&entry).unwrap_err().to_string();
        assert!(
            error.contains("tcx needs Linux 6.6 or later: use \"hooks\": \"clsact\""),
            "{release}: {error}"
        );
        assert!(!self.datapath.attached(&entry).unwrap().from_pod, "{release}");
        ip(&format!("link del {}", entry.host_ifname));
        println!("Linux {release} has no tcx");
        true
    }

    /// Drops by reason so far, without those that are zero.
    pub(crate) fn drops(&self) -> Vec<(String, u64)> {
        let drops = self.datapath.drops().unwrap().into_iter();
        drops.filter(|d| d.packets > 0).map(|d| (d.name, d.packets)).collect()
    }
}

/// An endpoint of [`NETWORK`] with addresses that end in `last`, its link not made.
pub(crate) fn entry(last: u8) -> EndpointEntry {
    let id = EndpointId::new(0xabc0_0000_0000 | u64::from(last)).unwrap();
    let ipv4 = Ipv4Addr::new(10, 1, 0, last);
    EndpointEntry {
        id,
        host_ifindex: 0,
        host_ifname: id.host_ifname(),
        hooks: Hooks::Clsact,
        network: NETWORK,
        internal: false,
        ipv4: Some((ipv4, GATEWAY4)),
        ipv6: Some((Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, last.into()), GATEWAY6)),
        mac: mac_of_address(IpAddr::V4(ipv4)),
        gateway_mac: GATEWAY_MAC,
        shaping: Shaping::default(),
        bridge_ifindex: 0,
        overlay: false,
        outside: Outside::Plain,
        published: false,
        dns: DnsMode::Off,
    }
}

/// Index of a link of this thread's namespace.
pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// A network namespace that lives as long as this.
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { file: made.join().unwrap() }
    }

    /// A path that other processes can open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        use std::os::fd::AsFd;
        ipamd_api::netns::in_netns(self.file.as_fd(), work).unwrap()
    }
}

/// Runs `ip` in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program in this thread's namespace; its arguments contain no spaces.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `what` holds, for a minute at most: emulated processors are slow.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::yield_now();
    }
}

/// Binds, and waits for the port if need be: of a socket that was closed, a process that another test is starting has a copy until
/// its exec.
pub(crate) fn bound<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    let mut made = None;
    eventually("the port is free", || match bind() {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => false,
        other => {
            made = Some(other.unwrap());
            true
        }
    });
    made.unwrap()
}
