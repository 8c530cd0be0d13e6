//! Rules of iptables-legacy, which nft does not see, as `iptables-legacy-save` prints them (iptables-save(8)).

use super::{blind, bypassed, note};
use crate::LegacyTables;
use ipamd_api::Finding;
use std::collections::BTreeSet;

/// What is worth to be known of these tables, on a node where VXLAN uses these UDP ports.
pub(crate) fn findings(families: &[LegacyTables], vxlan: &[u16]) -> Vec<Finding> {
    let there = families.iter().filter(|family| !family.tables.is_empty());
    there
        .flat_map(|family| match &family.saved {
            Ok(saved) => judged(saved, program(family), vxlan),
            Err(cause) => vec![unread(family, cause)],
        })
        .collect()
}

fn program(family: &LegacyTables) -> &'static str {
    if family.family == "ip6" { "ip6tables-legacy" } else { "iptables-legacy" }
}

/// The kernel has the tables, and that is all that is known.
fn unread(family: &LegacyTables, cause: &str) -> Finding {
    let program = program(family);
    let message = format!(
        "the kernel has them beside nftables', and their rules were not read: {cause}; what they drop was not looked for"
    );
    let remedy = "call netctl where iptables is installed, or see yourself with `iptables-legacy-save`";
    note(format!("tables {} of {program}", family.tables.join(", ")), message, remedy)
}

/// A rule: its table, chain and words.
struct Rule<'s> {
    table: &'s str,
    chain: &'s str,
    words: Vec<&'s str>,
}

fn judged(saved: &str, program: &str, vxlan: &[u16]) -> Vec<Finding> {
    let (mut table, mut rules, mut chains) = ("", Vec::new(), Vec::new());
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_ascii_whitespace();
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                chains.push((table, name, policy));
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = words(rule);
            if let Some((chain, words)) = words.split_first() {
                rules.push(Rule { table, chain, words: words.to_vec() });
            }
        }
    }
    let mut found = Vec::new();
    for (table, chain, policy) in chains {
        // A chain of a user's own has no policy, and is reached from others only.
        if policy == "-" {
            continue;
        }
        let reached = reachable(&rules, table, chain);
        let name = format!("chain {chain} of table {table} of {program}");
        match chain {
            "FORWARD" => {
                let drops =
                    reached.iter().filter(|rule| matches!(target(rule), Some("DROP" | "REJECT"))).count();
                let policy = policy == "DROP";
                if policy || drops > 0 {
                    found.push(bypassed(name, policy, drops));
                }
            }
            "INPUT" | "OUTPUT" => {
                let named = vxlan.iter().filter(|port| reached.iter().any(|rule| names_port(rule, **port)));
                found.extend(blind(name, &named.copied().collect::<Vec<_>>()));
            }
            _ => {}
        }
    }
    found
}

/// The words of a rule; what is quoted is one, and never a name of anything that is looked for.
fn words(rule: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, part) in rule.split('"').enumerate() {
        if at % 2 == 0 {
            found.extend(part.split_ascii_whitespace());
        } else {
            found.push("\"\"");
        }
    }
    found
}

/// The word behind one of these.
fn behind<'s>(rule: &Rule<'s>, names: &[&str]) -> Option<&'s str> {
    let at = rule.words.iter().position(|word| names.contains(word))?;
    rule.words.get(at + 1).copied()
}

fn target<'s>(rule: &Rule<'s>) -> Option<&'s str> {
    behind(rule, &["-j", "--jump", "-g", "--goto"])
}

/// Whether a rule matches a destination port: `53`, `1:100`, or a list of both.
fn names_port(rule: &Rule<'_>, port: u16) -> bool {
    let Some(ports) = behind(rule, &["--dport", "--destination-port", "--dports", "--destination-ports"])
    else {
        return false;
    };
    ports.split(',').any(|part| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        let within = || Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?);
        within().is_some_and(|range| range.contains(&port))
    })
}

/// The rules of a chain and of those that it jumps to, however they jump in circles.
fn reachable<'r, 's>(rules: &'r [Rule<'s>], table: &'s str, from: &'s str) -> Vec<&'r Rule<'s>> {
    let (mut seen, mut open, mut found) = (BTreeSet::new(), vec![from], Vec::new());
    while let Some(chain) = open.pop() {
        if !seen.insert(chain) {
            continue;
        }
        for rule in rules.iter().filter(|rule| rule.table == table && rule.chain == chain) {
            found.push(rule);
            open.extend(target(rule));
        }
    }
    found
}
