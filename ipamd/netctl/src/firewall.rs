//! Pure: rules of the host's firewall that Weft's paths pass by, out of what `nft -j list ruleset` prints (libnftables-json(5)).
//!
//! Containers' packets go from one device to another without the host's stack, so chains at the `forward` hook do not see most of them,
//! and those at `input` and `output` see no VXLAN that passes the VXLAN device by. Who wrote a rule there to keep containers apart should
//! know. What iptables-nft wrote is in the same list.

use ipamd_api::{Finding, Severity};
use serde_json::Value;
use std::collections::BTreeSet;

mod legacy;
#[cfg(test)]
mod tests;

pub(crate) use legacy::findings as legacy_findings;

/// A chain: family, table, name.
type Chain = (String, String, String);

/// UDP port of VXLAN, unless it was set otherwise (RFC 7348, section 5): for an ipamd that does not say which are used.
const VXLAN: u16 = 4789;

/// The ports to look for, of those that ipamd has named.
pub(crate) fn vxlan_ports(named: &[u16]) -> Vec<u16> {
    if named.is_empty() { vec![VXLAN] } else { named.to_vec() }
}

/// What is worth to be known of a ruleset, on a node where VXLAN uses these UDP ports.
pub(crate) fn findings(ruleset: &str, vxlan: &[u16]) -> Vec<Finding> {
    let parsed: Value = match serde_json::from_str(ruleset) {
        Ok(parsed) => parsed,
        Err(cause) => return vec![unseen(&format!("`nft -j list ruleset` prints no JSON: {cause}"))],
    };
    let items: Vec<&Value> = parsed["nftables"].as_array().into_iter().flatten().collect();
    let mut found = Vec::new();
    for chain in items.iter().filter_map(|item| item.get("chain")) {
        let Some(hook) = chain["hook"].as_str() else { continue };
        let rules = reachable(&items, key(chain, "name"));
        let drops = rules.iter().filter(|rule| has_verdict(rule, &["drop", "reject"])).count();
        let policy = chain["policy"].as_str() == Some("drop");
        let name = object(chain);
        match hook {
            "forward" if policy || drops > 0 => found.push(bypassed(name, policy, drops)),
            "input" | "output" => {
                let named = vxlan.iter().filter(|port| rules.iter().any(|rule| names_port(rule, **port)));
                found.extend(blind(name, &named.copied().collect::<Vec<_>>()));
            }
            _ => {}
        }
    }
    found
}

/// The rules could not be looked at.
pub(crate) fn unseen(cause: &str) -> Finding {
    let message = format!("rules of others that Weft's paths pass by were not looked for: {cause}");
    note("firewall of the host".to_owned(), message, "install nftables' `nft`, or call netctl where it is")
}

fn bypassed(name: String, policy: bool, drops: usize) -> Finding {
    let rules = match drops {
        0 => String::new(),
        1 => "1 rule that drops".to_owned(),
        many => format!("{many} rules that drop"),
    };
    let has = match (policy, drops) {
        (true, 0) => "drops by its policy".to_owned(),
        (true, _) => format!("drops by its policy and has {rules}"),
        (false, _) => format!("has {rules}"),
    };
    let message = format!(
        "{has}; packets between containers, to the outside and to published ports do not pass it, what the stack forwards does"
    );
    let remedy = "keep containers apart by networks, `--internal`, `--allow-from` and `publish_allow`; where it keeps out what the stack forwards, let the pools through";
    note(name, message, remedy)
}

/// Rules for these ports of VXLAN, if there are any, see none of it.
fn blind(name: String, ports: &[u16]) -> Option<Finding> {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let message = format!(
        "has rules for UDP port {}, and sees no VXLAN that passes the VXLAN device by",
        ports.join(" and ")
    );
    let remedy =
        "`overlay_shortcut = \"off\"` in ipamd's settings shows it all outer packets, at the price of speed";
    (!ports.is_empty()).then(|| note(name, message, remedy))
}

fn note(object: String, message: String, remedy: &str) -> Finding {
    let remedy = remedy.to_owned();
    Finding { check: "firewall".to_owned(), severity: Severity::Note, object, message, remedy }
}

fn object(chain: &Value) -> String {
    let text = |field: &str| chain[field].as_str().unwrap_or("?");
    format!("chain {} of table {} {}", text("name"), text("family"), text("table"))
}

fn key(item: &Value, name: &str) -> Chain {
    let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
    (text("family"), text("table"), text(name))
}

/// The rules of a chain and of those that it jumps to, however they jump in circles.
fn reachable<'v>(items: &[&'v Value], from: Chain) -> Vec<&'v Value> {
    let (mut seen, mut open, mut rules) = (BTreeSet::new(), vec![from], Vec::new());
    while let Some(chain) = open.pop() {
        if !seen.insert(chain.clone()) {
            continue;
        }
        for rule in
            items.iter().filter_map(|item| item.get("rule")).filter(|rule| key(rule, "chain") == chain)
        {
            rules.push(rule);
            for target in statements(rule).filter_map(|s| s.get("jump").or_else(|| s.get("goto"))) {
                let name = target["target"].as_str().unwrap_or_default().to_owned();
                open.push((chain.0.clone(), chain.1.clone(), name));
            }
        }
    }
    rules
}

fn statements(rule: &Value) -> impl Iterator<Item = &Value> {
    rule["expr"].as_array().into_iter().flatten()
}

fn has_verdict(rule: &Value, verdicts: &[&str]) -> bool {
    statements(rule).any(|s| verdicts.iter().any(|verdict| s.get(verdict).is_some()))
}

/// Whether a rule matches a destination port: alone, in a range, or in a set of both.
fn names_port(rule: &Value, port: u16) -> bool {
    let number = |value: &Value| value.as_u64();
    let is = |value: &Value| {
        let range = value["range"].as_array().and_then(|range| match range.as_slice() {
            [first, last] => Some(number(first)?..=number(last)?),
            _ => None,
        });
        number(value) == Some(port.into()) || range.is_some_and(|range| range.contains(&port.into()))
    };
    statements(rule).filter_map(|s| s.get("match")).any(|m| {
        m["left"]["payload"]["field"] == "dport"
            && (is(&m["right"]) || m["right"]["set"].as_array().is_some_and(|set| set.iter().any(is)))
    })
}
