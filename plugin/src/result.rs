//! The result of an ADD in each version's form (specification, section "ADD Success").
//!
//! Versions differ in this: up to 0.4.0 an address has a `version`, "4" or "6"; from 1.1.0 on interfaces have `mtu`,
//! `socketPath` and `pciID`, and routes more than `dst` and `gw`.

use crate::{error, prev_result::PrevResult, version::SpecVersion};
use ipamd_api::{AddResponse, Dns, Interface, IpConfig, Route};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The result, with `prev` in front if Weft is not the first of its chain. `asked`: the resolver's settings that somebody asked Weft for;
/// they stand over those of earlier plugins, and these over the name servers that Weft gives unasked.
pub(crate) fn render(version: SpecVersion, prev: PrevResult, asked: &Dns, added: &AddResponse) -> Vec<u8> {
    // Indices into the list of interfaces start behind those of the earlier plugins.
    let shift = prev.interfaces.len();
    let with = |earlier: Vec<Map<String, Value>>, own: Vec<Map<String, Value>>| [earlier, own].concat();
    print(
        version,
        PrevResult {
            interfaces: with(prev.interfaces, added.interfaces.iter().map(interface).collect()),
            ips: with(prev.ips, added.ips.iter().map(|ip| address(ip, shift)).collect()),
            routes: with(prev.routes, added.routes.iter().map(route).collect()),
            dns: over(asked, over(&prev.dns, added.dns.clone())),
        },
    )
}

/// A result in the form of a version.
pub(crate) fn print(version: SpecVersion, result: PrevResult) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Success {
        cni_version: &'static str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        interfaces: Vec<Map<String, Value>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ips: Vec<Map<String, Value>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        routes: Vec<Map<String, Value>>,
        dns: Dns,
    }
    let in_form = |mut all: Vec<Map<String, Value>>, form: fn(SpecVersion, &mut _)| {
        all.iter_mut().for_each(|element| form(version, element));
        all
    };
    let PrevResult { interfaces, ips, routes, dns } = result;
    error::to_json(&Success {
        cni_version: version.as_str(),
        interfaces: in_form(interfaces, form_interface),
        ips: in_form(ips, form_address),
        routes: in_form(routes, form_route),
        dns,
    })
}

fn interface(interface: &Interface) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("name".into(), json!(interface.name));
    map.insert("mac".into(), json!(interface.mac));
    map.insert("mtu".into(), json!(interface.mtu));
    if let Some(sandbox) = &interface.sandbox {
        map.insert("sandbox".into(), json!(sandbox));
    }
    map
}

fn address(ip: &IpConfig, shift: usize) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("address".into(), json!(ip.address));
    map.insert("interface".into(), json!(ip.interface + shift));
    if let Some(gateway) = ip.gateway {
        map.insert("gateway".into(), json!(gateway));
    }
    map
}

fn route(route: &Route) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("dst".into(), json!(route.dst));
    if let Some(gw) = route.gw {
        map.insert("gw".into(), json!(gw));
    }
    map
}

fn form_interface(version: SpecVersion, interface: &mut Map<String, Value>) {
    if version < SpecVersion::V1_1_0 {
        interface.retain(|key, _| !matches!(key.as_str(), "mtu" | "socketPath" | "pciID"));
    }
}

fn form_address(version: SpecVersion, ip: &mut Map<String, Value>) {
    ip.remove("version");
    if version <= SpecVersion::V0_4_0 {
        let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
        ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
    }
}

fn form_route(version: SpecVersion, route: &mut Map<String, Value>) {
    if version < SpecVersion::V1_1_0 {
        route.retain(|key, _| matches!(key.as_str(), "dst" | "gw"));
    }
}

/// What is set in `upper` stands over what is in `lower`, field by field.
pub(crate) fn over(upper: &Dns, lower: Dns) -> Dns {
    let list = |upper: &Vec<String>, lower| if upper.is_empty() { lower } else { upper.clone() };
    Dns {
        nameservers: list(&upper.nameservers, lower.nameservers),
        domain: upper.domain.clone().or(lower.domain),
        search: list(&upper.search, lower.search),
        options: list(&upper.options, lower.options),
    }
}
