//! Settings of the network stack: per device where that is enough, and undone at uninstall where it is not.
//!
//! IPv4 forwards by the setting of the device a packet came in on, so Weft sets only its own devices. IPv6 does so from Linux
//! 6.17 (`force_forwarding`); before, only `all.forwarding` counts, and it makes every device stop listening to router
//! advertisements unless `accept_ra` is 2. `bpf_fib_lookup`, by which the programs route what leaves a sandbox, asks the
//! bridge's own `forwarding` in both families, whatever `force_forwarding` and `all.forwarding` say
//! (`BPF_FIB_LKUP_RET_FWD_DISABLED`, bpf-helpers(7)), so that is set as well. What is changed for good of devices that are not
//! Weft's is first written to `sysctl-undo.json`. Thread rule: `/proc/sys/net` shows the namespace of the calling thread.

use super::{Result, netlink::refused};
use ipamd_api::EndpointId;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";
const IPV4_CONF: &str = "/proc/sys/net/ipv4/conf";

/// Name of the file in the state directory.
const UNDO_FILE: &str = "sysctl-undo.json";

/// How IPv6 packets of Weft's devices are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6Forwarding {
    /// Per device where the kernel can (Linux 6.17), else [`Self::AllDevices`].
    #[default]
    Auto,
    /// `net.ipv6.conf.all.forwarding`, with `accept_ra=2` where it was 1.
    AllDevices,
}

/// A setting as it was before Weft changed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    path: PathBuf,
    value: String,
}

/// Settings outside Weft's own devices.
#[derive(Debug)]
pub(super) struct NodeSettings {
    undo: PathBuf,
    forwarding: Ipv6Forwarding,
    /// Held while settings of a device are made: `all.forwarding` and its record belong together.
    settling: Mutex<()>,
}

impl NodeSettings {
    pub(super) fn new(state_dir: &Path, forwarding: Ipv6Forwarding) -> Self {
        Self { undo: state_dir.join(UNDO_FILE), forwarding, settling: Mutex::new(()) }
    }

    /// Settings of a device with gateway addresses: a bridge, or the overlay's. They are looked at each time: whoever writes
    /// `ip_forward` or `all.forwarding` resets those of every device, and networks would stand still.
    pub(super) fn of_device(&self, device: &str, forward: bool, ipv6: bool) -> Result<()> {
        let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let flag = if forward { "1" } else { "0" };
        let v4 = Path::new(IPV4_CONF).join(device);
        set(&v4.join("forwarding"), flag)?;
        set(&v4.join("send_redirects"), "0")?;
        // Loose: an endpoint's packets may come back another way than they went (the programs check its source).
        set(&v4.join("rp_filter"), "2")?;
        let v6 = Path::new(IPV6_CONF).join(device);
        if !set_ipv6(&v6, ipv6)? {
            return Ok(());
        }
        if !self.force_forwarding(&v6, flag)? && forward {
            self.forward_all()?;
        }
        // After `all.forwarding`, which sets every device's; a bridge made later has it from `default.forwarding`.
        set_forwarding(&v6.join("forwarding"), flag)
    }

    /// Lets a device have addresses of IPv6, of which nothing is forwarded.
    pub(super) fn allow_ipv6(&self, device: &str) -> Result<()> {
        let path = Path::new(IPV6_CONF).join(device).join("disable_ipv6");
        if path.exists() { set(&path, "0") } else { Err(unsupported(&path)) }
    }

    /// IPv6 settings of an endpoint's host end that is in no bridge; those of IPv4 come by netlink (`link::configure_end`). It needs no
    /// `forwarding` of its own: the stack asks `force_forwarding` or `all.forwarding`, which the overlay's device has set, and the
    /// programs ask for that device.
    pub(super) fn of_end(&self, ifname: &str, forward: bool, ipv6: bool) -> Result<()> {
        let v6 = Path::new(IPV6_CONF).join(ifname);
        if set_ipv6(&v6, ipv6)? {
            self.force_forwarding(&v6, if forward { "1" } else { "0" })?;
        }
        Ok(())
    }

    /// Sets what makes one IPv6 device forward by itself; whether the kernel has that and the node wants it.
    fn force_forwarding(&self, v6: &Path, flag: &str) -> Result<bool> {
        let per_device = v6.join("force_forwarding");
        if self.forwarding != Ipv6Forwarding::Auto || !per_device.exists() {
            return Ok(false);
        }
        set(&per_device, flag).map(|()| true)
    }

    /// Whether the settings of such an end are as they should be.
    pub(super) fn end_is_settled(&self, ifname: &str, forward: bool, ipv6: bool) -> bool {
        let is =
            |path: &Path, wanted: bool| get(path).is_ok_and(|found| found == if wanted { "1" } else { "0" });
        let v4 = Path::new(IPV4_CONF).join(ifname);
        let v6 = Path::new(IPV6_CONF).join(ifname);
        let per_device = v6.join("force_forwarding");
        is(&v4.join("forwarding"), forward)
            && (!v6.exists() || is(&v6.join("accept_ra"), false))
            && (!ipv6
                || self.forwarding != Ipv6Forwarding::Auto
                || !per_device.exists()
                || is(&per_device, forward))
    }

    /// `all.forwarding`, with every device still listening to router advertisements.
    fn forward_all(&self) -> Result<()> {
        let all = Path::new(IPV6_CONF).join("all/forwarding");
        if get(&all)? == "1" {
            return Ok(());
        }
        let mut former = self.former()?;
        let mut remember = |path: &Path, value: &str| {
            // The first value is the one from before Weft.
            if !former.iter().any(|f| f.path == path) {
                former.push(Former { path: path.to_owned(), value: value.to_owned() });
            }
        };
        remember(&all, "0");
        let mut listening = Vec::new();
        for device in devices()? {
            let accept_ra = device.join("accept_ra");
            if get(&accept_ra).is_ok_and(|v| v == "1") {
                remember(&accept_ra, "1");
                listening.push(accept_ra);
            }
            let forwarding = device.join("forwarding");
            if get(&forwarding).is_ok_and(|v| v == "1") {
                remember(&forwarding, "1");
            }
        }
        self.write(&former)?;
        for accept_ra in listening {
            // A device may go away meanwhile.
            if let Err(error) = set(&accept_ra, "2")
                && accept_ra.exists()
            {
                return Err(error);
            }
        }
        set(&all, "1")
    }

    /// Puts back what [`Self::forward_all`] changed. Success when nothing was.
    pub(super) fn undo(&self) -> Result<()> {
        // `all.forwarding` comes first in the file: it resets every device, and the devices' own values follow.
        for former in self.former()? {
            if former.path.exists() {
                set(&former.path, &former.value)?;
            }
        }
        match fs::remove_file(&self.undo) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", e)),
            _ => Ok(()),
        }
    }

    fn former(&self) -> Result<Vec<Former>> {
        match fs::read(&self.undo) {
            Ok(body) => serde_json::from_slice(&body).map_err(|e| self.failed("read", e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(self.failed("read", e)),
        }
    }

    fn write(&self, former: &[Former]) -> Result<()> {
        let temporary = self.undo.with_extension("json.new");
        let written = serde_json::to_vec_pretty(former)
            .map_err(io::Error::from)
            .and_then(|body| fs::write(&temporary, body))
            .and_then(|()| fs::rename(&temporary, &self.undo));
        written.map_err(|e| self.failed("write", e))
    }

    fn failed(&self, action: &'static str, cause: io::Error) -> super::KernelError {
        refused(action, &self.undo.display().to_string(), cause)
    }
}

/// Settings of every device of Weft's: no router advertisement counts there, and IPv6 is on if the network has it. Whether it has.
fn set_ipv6(v6: &Path, ipv6: bool) -> Result<bool> {
    if !v6.exists() {
        return if ipv6 { Err(unsupported(v6)) } else { Ok(false) };
    }
    set(&v6.join("accept_ra"), "0")?;
    if ipv6 {
        set(&v6.join("disable_ipv6"), "0")?;
    }
    Ok(ipv6)
}

/// Sets `forwarding` of one IPv6 device. Switching it on for any device makes the kernel forget what all devices have learned
/// from router advertisements, but for those whose `accept_ra` is 2. So the others' is 2 for that moment; it means the
/// same as 1 to a device that does not forward, so nothing is lost should ipamd die in between.
fn set_forwarding(path: &Path, value: &str) -> Result<()> {
    if get(path)? == value {
        return Ok(());
    }
    let mut listening = Vec::new();
    if value == "1" {
        for device in devices()?.into_iter().filter(|d| !d.ends_with("default")) {
            let accept_ra = device.join("accept_ra");
            let is = |path: &Path, value: &str| get(path).is_ok_and(|found| found == value);
            if is(&accept_ra, "1") && is(&device.join("forwarding"), "0") {
                // What cannot be written belongs to a device that went away meanwhile.
                listening.extend(set(&accept_ra, "2").is_ok().then_some(accept_ra));
            }
        }
    }
    let done = set(path, value);
    for accept_ra in listening {
        if let Err(error) = set(&accept_ra, "1")
            && accept_ra.exists()
        {
            return done.and(Err(error));
        }
    }
    done
}

/// Enables IPv6 on a device of the calling thread's namespace.
pub(super) fn enable_ipv6(ifname: &str) -> Result<()> {
    set(&Path::new(IPV6_CONF).join(ifname).join("disable_ipv6"), "0")
}

/// Every device's folder and `default`, but not `all`, nor endpoints' host ends, which have no address.
fn devices() -> Result<Vec<PathBuf>> {
    let failed = |e| refused("list", IPV6_CONF, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(IPV6_CONF).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name != "all" && EndpointId::of_host_ifname(&name).is_none() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn get(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|e| refused("read", &path.display().to_string(), e))?;
    Ok(text.trim().to_owned())
}

/// Writes only what differs: a write takes the kernel's big network lock.
fn set(path: &Path, value: &str) -> Result<()> {
    if get(path)? == value {
        return Ok(());
    }
    fs::write(path, value).map_err(|e| refused("set", &format!("{} to {value}", path.display()), e))
}

fn unsupported(path: &Path) -> super::KernelError {
    let cause = io::Error::new(io::ErrorKind::Unsupported, "IPv6 is switched off on this node");
    refused("set", &path.display().to_string(), cause)
}
