//! The `ipam` object of a netconf: which network the addresses come from, and what goes into the result unchanged.
//!
//! Keys are those of a network in `weft`'s netconf, and those of the reference plugin `host-local`, so that a configuration of
//! that plugin works with another `type`. Unknown keys are ignored, as `host-local` does.

use super::{ranges, resolv_conf};
use crate::{
    environment::shorten,
    error,
    netconf::{self, JsonFields, Netconf, dns},
    result::over,
};
use ipamd_api::{ApiError, Dns, Driver, NetworkSpec, check_name};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The object, and the netconf around it.
pub(crate) struct Conf<'a> {
    netconf: &'a Netconf,
    ipam: JsonFields<'a>,
}

impl<'a> Conf<'a> {
    pub(crate) fn of(netconf: &'a Netconf) -> Result<Self, ApiError> {
        let ipam = netconf.fields().object("ipam")?.ok_or_else(|| {
            error::invalid("netconf: \"ipam\" is missing; weft-ipam is called by a main plugin whose netconf has \"ipam\": {\"type\": \"weft-ipam\"}")
        })?;
        Ok(Self { netconf, ipam })
    }

    /// `network`, else the netconf's `name`.
    pub(super) fn network_name(&self) -> Result<&'a str, ApiError> {
        let Some(name) = self.ipam.text("network")? else { return Ok(&self.netconf.name) };
        check_name("netconf: \"ipam.network\"", name).map_err(|e| error::invalid(e.to_string()))?;
        Ok(name)
    }

    /// The netconf's name, if the network has another.
    pub(super) fn configuration(&self) -> Result<Option<String>, ApiError> {
        let own = &self.netconf.name;
        Ok((self.network_name()? != own).then(|| own.clone()))
    }

    /// The network as asked for.
    pub(crate) fn network(&self) -> Result<NetworkSpec, ApiError> {
        let ranges = self.netconf.runtime_config()?.map(|config| config.list("ipRanges")).transpose()?;
        if ranges.is_some_and(|ranges| !ranges.is_empty()) {
            let why = "a network's pools are the same for every container; remove the capability \"ipRanges\", and set \"subnet\" in \"ipam\"";
            return Err(error::unsupported("runtimeConfig.ipRanges", "set", why));
        }
        Ok(NetworkSpec {
            name: self.network_name()?.to_owned(),
            driver: Some(Driver::External),
            pools: ranges::pools(&self.ipam)?,
            dns_mode: netconf::dns_mode(&self.ipam)?,
            dns_upstreams: netconf::dns_upstreams(&self.ipam)?,
            ..NetworkSpec::default()
        })
    }

    /// `routes`, as they came.
    pub(super) fn routes(&self) -> Result<Vec<Map<String, Value>>, ApiError> {
        let read = |item: &netconf::JsonItem<'a>| {
            let route = item.object()?;
            if route.parsed::<IpNetwork>("dst")?.is_none() {
                return Err(error::invalid("netconf: \"ipam.routes\" has an element without \"dst\""));
            }
            route.parsed::<IpAddr>("gw")?;
            item.map().cloned()
        };
        self.ipam.list("routes")?.iter().map(read).collect()
    }

    /// `dns`, over what the file `resolvConf` says.
    pub(super) fn dns(&self) -> Result<Dns, ApiError> {
        let file = match self.ipam.text("resolvConf")?.filter(|path| !path.is_empty()) {
            None => Dns::default(),
            Some(path) => resolv_conf::read(Path::new(path)).map_err(|cause| {
                let msg = format!(
                    "netconf: \"ipam.resolvConf\" is {}, which cannot be read: {cause}",
                    shorten(path)
                );
                error::invalid(msg)
            })?,
        };
        Ok(over(&dns(&self.ipam)?, file))
    }

    /// `runDir`.
    pub(super) fn run_dir(&self) -> Result<Option<PathBuf>, ApiError> {
        netconf::run_dir(&self.ipam)
    }

    /// `runtime`.
    pub(super) fn runtime(&self) -> Result<Option<String>, ApiError> {
        netconf::runtime(&self.ipam)
    }
}
