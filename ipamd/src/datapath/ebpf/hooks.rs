//! Where the programs are attached: to endpoints' veths, to devices of the host, to the VXLAN device.

use super::{EbpfDatapath, lock};
use crate::{
    datapath::{
        Attached, DatapathError, Direction, EndpointEntry,
        clsact::{Clsact, Filter, Hook},
        place,
        programs::Programs,
        tcx,
    },
    stop::stop_point,
    uplinks::Uplink,
};
use aya::programs::TcAttachType;
use ipamd_api::EndpointId;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

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
        self.place.links.join(format!("{endpoint}{}", suffix(hook)))
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

/// How the pin of an endpoint's link ends.
fn suffix(hook: TcAttachType) -> &'static str {
    if hook == TcAttachType::Ingress { "-from" } else { "-to" }
}

/// Every hook of the namespace where programs of an earlier ipamd run, with those that are to run there.
///
/// Programs of two releases, each with maps of its own, do not know each other's flows. So all hooks change hands in one go, before
/// anything else is done at a start.
#[derive(Default)]
pub(super) struct Succession {
    filters: Vec<(Filter, Direction)>,
    links: Vec<(PathBuf, Direction)>,
}

impl Succession {
    /// Looks which hooks there are, and loads what is to run there.
    pub(super) fn prepare(
        programs: &Programs,
        clsact: &mut Clsact,
        links: &Path,
    ) -> Result<Self, DatapathError> {
        let named = |filter: Filter| Direction::named(&filter.program).map(|direction| (filter, direction));
        let filters = clsact
            .filters()
            .map_err(|cause| DatapathError::Pin { path: PathBuf::from("the list of filters"), cause })?;
        let filters: Vec<_> = filters.into_iter().filter_map(named).collect();
        let pinned = || -> io::Result<Vec<_>> {
            let of_tcx = |entry: fs::DirEntry| {
                let name = entry.file_name().into_string().ok()?;
                let (direction, _) = TCX.into_iter().find(|(_, hook)| name.ends_with(suffix(*hook)))?;
                Some((entry.path(), direction))
            };
            let entries = fs::read_dir(links)?.collect::<io::Result<Vec<_>>>()?;
            Ok(entries.into_iter().filter_map(of_tcx).collect())
        };
        let links = pinned().map_err(|cause| place::pin(links, cause))?;
        let needed = filters.iter().map(|(_, d)| d).chain(links.iter().map(|(_, d)| d));
        for direction in needed {
            programs.fd(*direction).map_err(|cause| failed(direction.name(), cause))?;
        }
        Ok(Self { filters, links })
    }

    /// Puts the programs there.
    pub(super) fn take_place(self, programs: &Programs, clsact: &mut Clsact) -> Result<(), DatapathError> {
        for (filter, direction) in self.filters {
            let hook = programs.fd(direction).map(|program| Hook { name: direction.name(), program });
            let replaced = hook.and_then(|hook| clsact.replace(&filter, &hook));
            replaced.map_err(|cause| failed(&format!("ifindex {}", filter.ifindex), cause))?;
            stop_point("ipamd.migration.hook-replaced");
        }
        for (pin, direction) in self.links {
            let replaced = programs.with(direction, |program| tcx::replace(program, &pin));
            let replaced = replaced.map_err(io::Error::other).flatten();
            replaced.map_err(|cause| place::pin(&pin, cause))?;
        }
        Ok(())
    }
}

fn failed(interface: &str, cause: io::Error) -> DatapathError {
    DatapathError::Device { interface: interface.to_owned(), operation: "replace the programs", cause }
}
