//! `runtimeConfig`: what runtimes set for the capabilities that a conflist declares (CONVENTIONS.md of CNI).
//!
//! Keys come as CONVENTIONS.md spells them or as Go structs without tags do (`HostPort`, `IngressRate`, `Servers`).
//! Capabilities that Weft does not know (`infinibandGUID`, `ipRanges`, ...) are ignored.

use super::fields::Fields;
use crate::{environment::shorten, error};
use ipamd_api::{ApiError, Bandwidth, Dns, EndpointOptions, PortMapping};

/// Lays what the runtime set over `options`, but for the addresses, which are read with those of other sources.
pub(super) fn apply(
    config: &Fields<'_>,
    network: &str,
    options: &mut EndpointOptions,
) -> Result<(), ApiError> {
    options.mac = config.parsed("mac")?.or(options.mac);
    options.aliases = aliases(config, network)?;
    options.port_mappings =
        config.objects("portMappings")?.iter().map(port_mapping).collect::<Result<_, _>>()?;
    options.bandwidth = config.object("bandwidth")?.map(|limits| bandwidth(&limits)).transpose()?.flatten();
    if let Some(dns) = config.object("dns")? {
        let lay = |over: Vec<String>, under: &mut Vec<String>| {
            if !over.is_empty() {
                *under = over;
            }
        };
        let Dns { nameservers, search, options: resolver_options, .. } = &mut options.dns;
        lay(dns.texts("servers")?, nameservers);
        lay(dns.texts("searches")?, search);
        lay(dns.texts("options")?, resolver_options);
    }
    Ok(())
}

/// A list of names (CONVENTIONS.md), or lists by network as podman sends them.
fn aliases(config: &Fields<'_>, network: &str) -> Result<Vec<String>, ApiError> {
    match config.get("aliases") {
        Some(by_network) if !by_network.is_list() => {
            let by_network = by_network.object()?;
            let own = by_network.entries().find(|(name, _)| *name == network);
            let names = own.map_or(Ok(Vec::new()), |(_, names)| names.list())?;
            names.iter().map(|name| name.text().map(str::to_owned)).collect()
        }
        _ => config.texts("aliases"),
    }
}

/// An element of `portMappings` (CONVENTIONS.md), with `allowFrom` beside it: CIDRs of who may come in. Host port 0 asks for one to be
/// chosen.
fn port_mapping(fields: &Fields<'_>) -> Result<PortMapping, ApiError> {
    let port = |key| {
        fields.number::<u16>(key)?.ok_or_else(|| {
            error::invalid(format!("netconf: \"runtimeConfig.portMappings\" has an element without {key:?}"))
        })
    };
    let container_port = port("containerPort")?;
    if container_port == 0 {
        let why = "netconf: \"containerPort\" in \"runtimeConfig.portMappings\" is 0; ports start at 1";
        return Err(error::invalid(why));
    }
    let protocol = fields.text("protocol")?.unwrap_or("tcp");
    let Ok(protocol) = protocol.parse() else {
        let why = "Weft publishes tcp, udp and sctp";
        return Err(error::unsupported("runtimeConfig.portMappings.protocol", shorten(protocol), why));
    };
    Ok(PortMapping {
        host_port: port("hostPort")?,
        container_port,
        count: 1,
        protocol,
        host_ip: fields.parsed("hostIP")?,
        allow_from: fields.parsed_list("allowFrom")?,
    })
}

/// `None` if nothing is limited.
fn bandwidth(fields: &Fields<'_>) -> Result<Option<Bandwidth>, ApiError> {
    let number = |key| Ok::<_, ApiError>(fields.number(key)?.unwrap_or(0));
    let limits = Bandwidth {
        ingress_rate: number("ingressRate")?,
        ingress_burst: number("ingressBurst")?,
        egress_rate: number("egressRate")?,
        egress_burst: number("egressBurst")?,
    };
    Ok((limits != Bandwidth::default()).then_some(limits))
}
