//! Who fills in the checksums of what leaves by a device: the network card (offload), or the stack before it gets there.
//!
//! By ethtool's old ioctl (`SIOCETHTOOL`, linux/ethtool.h), which every kernel has, as `ethtool -K DEVICE tx on|off` does. Without
//! checksums the kernel leaves segmentation to no card either: segments are cut before the device, each with its own sum.

use super::{Result, netlink::refused};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// `ETHTOOL_GTXCSUM`: is it on?
const GET: u32 = 0x16;
/// `ETHTOOL_STXCSUM`: turn it on or off.
const SET: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` as this request uses it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut Value,
    /// Up to the size of the union.
    rest: [u8; 16],
}

/// Whether the device is given packets whose checksums are not filled in. `None`: there is no such device.
pub(super) fn checksums(device: &str) -> Result<Option<bool>> {
    match ask(device, GET, 0) {
        Ok(data) => Ok(Some(data != 0)),
        Err(cause) if cause.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(cause) => Err(refused("read the checksum offload of", device, cause)),
    }
}

/// Turns that on or off.
pub(super) fn set_checksums(device: &str, on: bool) -> Result<()> {
    let done = ask(device, SET, on.into()).map(drop);
    done.map_err(|cause| refused("switch the checksum offload of", device, cause))
}

fn ask(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut value, rest: [0; 16] };
    // The last byte stays NUL.
    for (to, from) in request.name[..libc::IFNAMSIZ - 1].iter_mut().zip(device.bytes()) {
        *to = from;
    }
    // SAFETY: the request is at least as large as `struct ifreq`, and the value it points to is what both commands take; both live
    // through the call.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if failed == 0 { Ok(value.data) } else { Err(io::Error::last_os_error()) }
}
