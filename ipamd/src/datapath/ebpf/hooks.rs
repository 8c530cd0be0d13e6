//! Where the programs are attached: to endpoints' veths, to devices of the host, to the VXLAN device.

use super::{EbpfDatapath, lock};
use crate::{
    datapath::{Attached, DatapathError, Direction, EndpointEntry, clsact::Hook, tcx},
    uplinks::Uplink,
};
use aya::programs::TcAttachType;
use ipamd_api::EndpointId;
use std::{io, path::PathBuf};

/// The programs of an endpoint and where tcx puts them.
const TCX: [(Direction, TcAttachType); 2] =
    [(Direction::FromPod, TcAttachType::Ingress), (Direction::ToPod, TcAttachType::Egress)];
pub(super) const POD: (Direction, Direction) = (Direction::FromPod, Direction::ToPod);
const OVERLAY: (Direction, Direction) = (Direction::FromOverlay, Direction::ToOverlay);

impl EbpfDatapath {
    pub(super) fn attach_clsact(&self, ifindex: u32, (from, to): (Direction, Direction)) -> io::Result<()> {
        let hook = |d: Direction| Ok::<_, io::Error>(Hook { name: d.name(), program: self.programs.fd(d)? });
        let (from, to) = (hook(from)?, hook(to)?);
        lock(&self.clsact).attach(ifindex, &from, &to)
    }

    /// Which of two programs are the filters of a link.
    pub(in crate::datapath) fn attached_clsact(
        &self,
        ifindex: u32,
        (from, to): (Direction, Direction),
    ) -> io::Result<Attached> {
        let (from, to) = (self.programs.id(from)?, self.programs.id(to)?);
        lock(&self.clsact).attached(ifindex, from, to)
    }

    pub(super) fn attach_tcx(&self, endpoint: &EndpointEntry) -> io::Result<()> {
        for (direction, hook) in TCX {
            let pin = self.link_pin(endpoint.id, hook);
            let attach = |program: &mut _| tcx::attach(program, &endpoint.host_ifname, hook, &pin);
            self.programs.with(direction, attach).map_err(io::Error::other)??;
        }
        Ok(())
    }

    pub(super) fn attached_tcx(&self, endpoint: &EndpointEntry) -> io::Result<Attached> {
        let is =
            |(direction, hook)| tcx::is_attached(&endpoint.host_ifname, hook, self.programs.id(direction)?);
        let [from, to] = TCX;
        Ok(Attached { from_pod: is(from)?, to_pod: is(to)? })
    }

    pub(super) fn link_pin(&self, endpoint: EndpointId, hook: TcAttachType) -> PathBuf {
        let direction = if hook == TcAttachType::Ingress { "from" } else { "to" };
        self.place.links.join(format!("{endpoint}-{direction}"))
    }

    /// Puts the programs of this version on a device of the host.
    pub(super) fn attach_device(&self, device: &Uplink) -> Result<(), DatapathError> {
        let programs = Direction::of_device(device.l3);
        let attached = self.attached_clsact(device.ifindex, programs).and_then(|attached| {
            if attached.complete() { Ok(()) } else { self.attach_clsact(device.ifindex, programs) }
        });
        match attached {
            // It is gone; the next view does not have it.
            Err(cause) if cause.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(|cause| DatapathError::Device {
                interface: device.name.clone(),
                operation: "attach the programs",
                cause,
            }),
        }
    }

    /// Takes the programs off a device and then its entry out of the map.
    pub(super) fn dismiss_device(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach_device(ifindex).and(lock(&self.host).dismiss(ifindex))
    }

    pub(super) fn detach_device(&self, ifindex: u32) -> Result<(), DatapathError> {
        lock(&self.clsact).detach(ifindex).map_err(|cause| DatapathError::Device {
            interface: format!("ifindex {ifindex}"),
            operation: "detach the programs",
            cause,
        })
    }

    /// Puts the programs of this version on the VXLAN device.
    pub(super) fn attach_overlay(&self, ifindex: u32) -> Result<(), DatapathError> {
        let attached = self.attached_clsact(ifindex, OVERLAY).and_then(|attached| {
            if attached.complete() { Ok(()) } else { self.attach_clsact(ifindex, OVERLAY) }
        });
        attached.map_err(|cause| DatapathError::Device {
            interface: format!("the VXLAN device, ifindex {ifindex}"),
            operation: "attach the programs",
            cause,
        })
    }
}
