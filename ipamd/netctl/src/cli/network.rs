//! What `network create` is told, and the request it becomes.

use crate::exit::Failure;
use clap::{Args, ValueEnum};
use ipamd_api::{
    DnsMode, DnsUpstream, Driver, Encapsulation, Hooks, NetworkSpec, Overlay, OverlaySpec, PoolSpec,
};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What `network create` is told. A gateway, range or reservation belongs to the pool it lies in.
#[derive(Debug, Args)]
pub(crate) struct CreateNetwork {
    /// Name: starts with a letter or digit, then letters, digits, `_`, `.`, `-`
    name: String,
    /// How containers are connected: bridge, overlay, macvlan, host or none; external: other plugins wire them, and
    /// take the addresses by `weft-ipam` [default: bridge]
    #[arg(long)]
    driver: Option<Driver>,
    /// Pool of addresses; give one per family [default: the next free default pool]
    #[arg(long = "subnet", value_name = "CIDR")]
    subnets: Vec<IpNetwork>,
    /// Address of the gateway, inside a subnet [default: the subnet's first address]
    #[arg(long = "gateway", value_name = "IP", requires = "subnets")]
    gateways: Vec<IpAddr>,
    /// Part of a subnet that addresses are chosen from [default: all of it]
    #[arg(long = "dynamic-range", value_name = "CIDR", requires = "subnets")]
    dynamic_ranges: Vec<IpNetwork>,
    /// Address or CIDR that is never given
    #[arg(long, value_name = "IP|CIDR", requires = "subnets")]
    reserved: Vec<IpNetwork>,
    /// MTU in bytes [default: the node's setting]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65535))]
    mtu: Option<u32>,
    /// Let containers reach nothing outside the network
    #[arg(long)]
    internal: bool,
    /// Whether packets to the outside leave with the address of the node's uplink
    /// [default: true; false with --routed]
    #[arg(long, value_name = "true|false")]
    masquerade: Option<bool>,
    /// Destination outside that sees the container's own address all the same
    #[arg(long, value_name = "CIDR")]
    masquerade_except: Vec<IpNetwork>,
    /// Let others reach the containers' own addresses: somebody routes them to this node
    #[arg(long)]
    routed: bool,
    /// VXLAN network identifier of an overlay network [default: 4096 and the network's number]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(Overlay::LAST_VNI)))]
    vni: Option<u32>,
    /// How packets of an overlay network get to other nodes: always, or cross-subnet: in VXLAN only to nodes on another segment
    /// [default: always]
    #[arg(long, value_name = "always|cross-subnet")]
    encapsulation: Option<Encapsulation>,
    /// Bring broadcast and multicast to every container of an overlay network, on every node
    #[arg(long)]
    flood: bool,
    /// Where names of the network are answered: gateway: at the gateway's address and 127.0.0.11; intercept: whomever containers
    /// ask; sandbox: at 127.0.0.11 in sandboxes without a host-side link; off [default: gateway; sandbox of driver macvlan, off of
    /// external, host and none]
    #[arg(long, value_name = "gateway|intercept|sandbox|off")]
    dns_mode: Option<DnsMode>,
    /// Server that other names are asked of, the preferred one first [default: the node's]
    #[arg(long = "dns-upstream", value_name = "IP[:PORT]")]
    dns_upstreams: Vec<DnsUpstream>,
    /// Host interface that a macvlan network is on
    #[arg(long, value_name = "INTERFACE")]
    parent: Option<String>,
    /// How programs are attached; tcx for networks that are chained with the reference bandwidth plugin
    /// [default: clsact]
    #[arg(long, value_enum)]
    hooks: Option<HooksArgument>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HooksArgument {
    Clsact,
    Tcx,
}

impl CreateNetwork {
    /// The request. What is not said is left to ipamd.
    pub(crate) fn spec(&self) -> Result<NetworkSpec, Failure> {
        let pool = |&subnet| PoolSpec { subnet, gateway: None, dynamic_range: None, reserved: Vec::new() };
        let mut pools: Vec<PoolSpec> = self.subnets.iter().map(pool).collect();
        for &gateway in &self.gateways {
            let slot = &mut pool_around(&mut pools, "gateway", gateway.into())?.gateway;
            if let Some(other) = slot.replace(gateway) {
                return Err(twice("gateway", &other, &gateway));
            }
        }
        for &range in &self.dynamic_ranges {
            let slot = &mut pool_around(&mut pools, "dynamic-range", range)?.dynamic_range;
            if let Some(other) = slot.replace(range) {
                return Err(twice("dynamic-range", &other, &range));
            }
        }
        for &reserved in &self.reserved {
            pool_around(&mut pools, "reserved", reserved)?.reserved.push(reserved);
        }
        Ok(NetworkSpec {
            name: self.name.clone(),
            driver: self.driver,
            pools,
            mtu: self.mtu,
            internal: self.internal.then_some(true),
            masquerade: self.masquerade,
            masquerade_except: (!self.masquerade_except.is_empty()).then(|| self.masquerade_except.clone()),
            routed: self.routed.then_some(true),
            dns_mode: self.dns_mode,
            dns_upstreams: (!self.dns_upstreams.is_empty()).then(|| self.dns_upstreams.clone()),
            overlay: self.overlay(),
            parent: self.parent.clone(),
            hooks: self.hooks.map(|hooks| match hooks {
                HooksArgument::Clsact => Hooks::Clsact,
                HooksArgument::Tcx => Hooks::Tcx,
            }),
        })
    }

    fn overlay(&self) -> Option<OverlaySpec> {
        let asked = OverlaySpec {
            vni: self.vni,
            encapsulation: self.encapsulation,
            flood: self.flood.then_some(true),
        };
        (asked != OverlaySpec::default()).then_some(asked)
    }
}

/// The pool that `part` lies in; by its first address, so that ipamd says what is wrong with one that sticks out.
fn pool_around<'a>(
    pools: &'a mut [PoolSpec],
    option: &str,
    part: IpNetwork,
) -> Result<&'a mut PoolSpec, Failure> {
    let pool = pools.iter_mut().find(|pool| pool.subnet.contains(part.ip()));
    pool.ok_or_else(|| Failure::Usage(format!("--{option} {} lies in no --subnet", part.ip())))
}

fn twice(option: &str, one: &dyn std::fmt::Display, other: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("--{option} {one} and --{option} {other} are of one subnet; give it one"))
}
