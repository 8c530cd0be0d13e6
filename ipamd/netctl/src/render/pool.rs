//! Pools: the list, and who has which part of one.

use super::{Page, Style, Table, joined, or_dash};
use ipamd_api::{BlockView, ClaimKind, PoolView};
use std::net::IpAddr;

/// A row for each pool.
pub(crate) fn list(page: &mut Page<'_>, views: &[PoolView]) {
    let mut table = Table::with_header(&[
        "NETWORK",
        "SUBNET",
        "USABLE",
        "BLOCKS",
        "NODES",
        "LENT",
        "CLAIMS",
        "USED HERE",
        "FREE HERE",
    ]);
    for view in views {
        table.row([
            view.network.clone(),
            view.here.subnet.to_string(),
            count(view.here.usable),
            format!("{}/{}", view.owned, count(view.block_count)),
            view.nodes.len().to_string(),
            view.nodes.iter().map(|n| n.lent).fold(0, u64::saturating_add).to_string(),
            view.claims.len().to_string(),
            view.here.used.to_string(),
            view.free.to_string(),
        ]);
    }
    page.block(&table);
    if let Some(away) = views.iter().find_map(|view| view.away.as_ref()) {
        page.styled_line(&format!("only this node's part is known: {away}"), Style::Warning);
    }
}

/// Everything about one pool.
pub(crate) fn one(page: &mut Page<'_>, view: &PoolView) {
    let mut fields = Table::fields();
    fields.field("Pool", view.here.subnet);
    fields.field("Network", &view.network);
    fields.field("Dynamic", view.dynamic_range);
    fields.field("Usable", count(view.here.usable));
    fields.field("Blocks", format!("{} of {} have an owner", view.owned, count(view.block_count)));
    fields
        .field("Here", format!("{} used, {} cooling, {} free", view.here.used, view.here.cooling, view.free));
    page.block(&fields);
    if let Some(away) = &view.away {
        page.styled_line(&format!("only this node's part is known: {away}"), Style::Warning);
    }
    if !view.nodes.is_empty() {
        page.title("Nodes");
        let mut nodes = Table::with_header(&["NODE", "BLOCKS", "CAPACITY", "LENT", "STATIC", "BORROWED"]);
        for node in &view.nodes {
            nodes.row([
                node.node.clone(),
                node.blocks.to_string(),
                count(node.capacity),
                node.lent.to_string(),
                node.asked_for.to_string(),
                node.borrowed.to_string(),
            ]);
        }
        page.block(&nodes);
    }
    if !view.owned_blocks.is_empty() {
        page.title("Blocks");
        let mut blocks = Table::with_header(&["BLOCK", "NODE", "CAPACITY", "USED", "LENT"]);
        for block in &view.owned_blocks {
            blocks.row([
                block.block.to_string(),
                owner(block.node.as_deref()),
                count(block.capacity),
                used(block),
                joined(&block.lent),
            ]);
        }
        page.block(&blocks);
    }
    if !view.claims.is_empty() {
        page.title("Claimed addresses");
        let mut claims = Table::with_header(&["ADDRESS", "NODE", "WHY"]);
        for claim in &view.claims {
            let why = claim.kind.map(|kind| match kind {
                ClaimKind::Static => "asked for",
                ClaimKind::Borrowed => "borrowed",
            });
            claims.row([claim.address.to_string(), owner(claim.node.as_deref()), or_dash(why)]);
        }
        page.block(&claims);
    }
    if !view.static_addresses.is_empty() {
        page.title("Static addresses");
        page.block(&static_addresses(view.static_addresses.iter()));
    }
}

/// Addresses, and whom each is kept for.
pub(crate) fn static_addresses<'a>(kept: impl Iterator<Item = (&'a String, &'a IpAddr)>) -> Table {
    let mut table = Table::with_header(&["ADDRESS", "KEPT FOR"]);
    for (name, address) in kept {
        table.row([address.to_string(), name.clone()]);
    }
    table
}

/// Use is known of the asked node's own blocks alone.
fn used(block: &BlockView) -> String {
    or_dash(block.used)
}

fn owner(node: Option<&str>) -> String {
    node.unwrap_or("(unreadable)").to_owned()
}

fn count(n: u64) -> String {
    if n == u64::MAX { "2^64 or more".to_owned() } else { n.to_string() }
}
