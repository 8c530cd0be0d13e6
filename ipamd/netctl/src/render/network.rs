//! Networks: the list, one line, and everything about one.

use super::{Page, Table, differences, endpoint, joined, or_dash, pool, time};
use ipamd_api::{Difference, Driver, EndpointView, Network, NetworkView, PoolUse};

/// A row for each network.
pub(crate) fn list(page: &mut Page<'_>, views: &[NetworkView]) {
    let mut table = Table::with_header(&[
        "NAME",
        "ID",
        "DRIVER",
        "SUBNET",
        "GATEWAY",
        "MTU",
        "INTERNAL",
        "ENDPOINTS",
        "USED",
        "AGE",
    ]);
    for view in views {
        let network = &view.network;
        table.row([
            network.name.clone(),
            network.id.to_string(),
            network.driver.to_string(),
            joined(network.pools.iter().map(|p| p.subnet)),
            joined(network.pools.iter().map(|p| p.gateway)),
            mtu(network),
            yes_no(network.internal).to_owned(),
            view.endpoints.to_string(),
            joined(view.pool_use.iter().map(used)),
            time::age(network.created_at, page.now()),
        ]);
    }
    page.block(&table);
}

/// MTU of a network; that of an overlay which asked for none is each node's affair.
fn mtu(network: &Network) -> String {
    if network.mtu == 0 { "by the underlay".to_owned() } else { network.mtu.to_string() }
}

/// What `network create` answers.
pub(crate) fn one_line(page: &mut Page<'_>, view: &NetworkView) {
    let network = &view.network;
    let mut line = format!("network {}: id {}, driver {}", network.name, network.id, network.driver);
    if let Some(bridge) = &view.bridge {
        line += &format!(", bridge {bridge}");
    }
    for pool in &network.pools {
        line += &format!(", {} (gateway {})", pool.subnet, pool.gateway);
    }
    page.line(&line);
}

/// Everything about one network, with its endpoints on this node.
pub(crate) fn inspection(
    page: &mut Page<'_>,
    view: &NetworkView,
    endpoints: &[EndpointView],
    different: &[Difference],
) {
    let network = &view.network;
    let mut fields = Table::fields();
    fields.field("Network", &network.name);
    fields.field("ID", network.id);
    fields.field("Driver", network.driver);
    fields.field("Bridge", or_dash(view.bridge.as_ref()));
    if view.bridge.is_some() {
        fields.field("Gateway MAC", network.gateway_mac());
    }
    if let Some(parent) = &network.parent {
        fields.field("Parent", parent);
    }
    if network.driver == Driver::External {
        fields.field("Wired", "by other plugins");
    } else {
        fields.field("MTU", mtu(network));
        fields.field("Internal", yes_no(network.internal));
    }
    if network.driver == Driver::Bridge {
        let masquerade = yes_no(network.masquerade);
        match network.masquerade_except.as_slice() {
            [] => fields.field("Masquerade", masquerade),
            except => fields.field("Masquerade", format!("{masquerade}, except to {}", joined(except))),
        }
        fields.field("Routed", yes_no(network.routed));
    }
    if network.driver != Driver::External {
        fields.field("Hooks", network.hooks);
    }
    if network.driver.has_addresses() {
        let others = match network.dns_upstreams.as_slice() {
            [] => String::new(),
            upstreams => format!(", others from {}", joined(upstreams)),
        };
        fields.field("Names", format!("{}{others}", network.dns()));
    }
    fields.field("Created", time::when(network.created_at, page.now()));
    page.block(&fields);

    if !network.pools.is_empty() {
        page.title("Pools");
        let mut pools =
            Table::with_header(&["SUBNET", "GATEWAY", "DYNAMIC", "RESERVED", "USED", "COOLING", "BLOCKS"]);
        for pool in &network.pools {
            let of_pool = view.pool_use.iter().find(|u| u.subnet == pool.subnet);
            pools.row([
                pool.subnet.to_string(),
                pool.gateway.to_string(),
                pool.dynamic_range.to_string(),
                joined(&pool.reserved),
                or_dash(of_pool.map(used)),
                or_dash(of_pool.map(|u| u.cooling)),
                joined(of_pool.map_or(&[][..], |u| &u.blocks)),
            ]);
        }
        page.block(&pools);
    }
    if network.pools.iter().any(|pool| !pool.static_addresses.is_empty()) {
        page.title("Static addresses");
        page.block(&pool::static_addresses(network.pools.iter().flat_map(|pool| &pool.static_addresses)));
    }

    page.title("Endpoints on this node");
    if endpoints.is_empty() {
        page.line("none");
    } else {
        endpoint::list(page, endpoints, false);
    }
    if !different.is_empty() {
        differences(page, different);
    }
}

fn used(of_pool: &PoolUse) -> String {
    match of_pool.usable {
        u64::MAX => of_pool.used.to_string(),
        usable => format!("{}/{usable}", of_pool.used),
    }
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
