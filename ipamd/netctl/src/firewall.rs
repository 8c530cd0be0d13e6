//! Pure: rules of the host's firewall that Weft's paths pass by, out of what `nft -j list ruleset` prints (libnftables-json(5)).
//!
//! Containers' packets go from one device to another without the host's stack, so chains at the `forward` hook do not see most of them,
//! and those at `input` and `output` see no VXLAN that passes the VXLAN device by. Who wrote a rule there to keep containers apart should
//! know. What iptables-nft wrote is in the same list.

use ipamd_api::{Finding, Severity};
use serde_json::Value;
use std::collections::BTreeSet;

/// UDP port of VXLAN, unless it was set otherwise.
const VXLAN: u64 = 4789;

/// A chain: family, table, name.
type Chain = (String, String, String);

/// What is worth to be known of a ruleset.
pub(crate) fn findings(ruleset: &str) -> Vec<Finding> {
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
            "input" | "output" if rules.iter().any(|rule| names_port(rule, VXLAN)) => {
                let message = format!(
                    "has rules for UDP port {VXLAN}, and sees no VXLAN that passes the VXLAN device by"
                );
                let remedy = "`overlay_shortcut = \"off\"` in ipamd's settings shows it all outer packets, at the price of speed";
                found.push(note(name, message, remedy));
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

/// Whether a rule matches a destination port, alone or in a set.
fn names_port(rule: &Value, port: u64) -> bool {
    let is = |value: &Value| value.as_u64() == Some(port);
    statements(rule).filter_map(|s| s.get("match")).any(|m| {
        m["left"]["payload"]["field"] == "dport"
            && (is(&m["right"]) || m["right"]["set"].as_array().is_some_and(|set| set.iter().any(is)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ruleset(items: &Value) -> String {
        json!({"nftables": items}).to_string()
    }

    fn chain(name: &str, hook: Option<&str>, policy: &str) -> Value {
        let mut chain = json!({"family": "ip", "table": "filter", "name": name});
        if let Some(hook) = hook {
            chain["hook"] = hook.into();
            chain["policy"] = policy.into();
        }
        json!({"chain": chain})
    }

    fn rule(chain: &str, expr: &Value) -> Value {
        json!({"rule": {"family": "ip", "table": "filter", "chain": chain, "expr": expr}})
    }

    #[test]
    fn chains_that_drop_forwarded_packets_are_named() {
        let text = ruleset(&json!([
            {"metainfo": {"json_schema_version": 1}},
            chain("FORWARD", Some("forward"), "drop"),
            chain("DOCKER", None, ""),
            rule("FORWARD", &json!([{"jump": {"target": "DOCKER"}}])),
            rule("DOCKER", &json!([{"match": {}}, {"drop": null}])),
            rule("DOCKER", &json!([{"goto": {"target": "FORWARD"}}])),
            chain("quiet", Some("forward"), "accept"),
        ]));
        let found = findings(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].object, "chain FORWARD of table ip filter");
        assert!(found[0].message.starts_with("drops by its policy and has 1 rule that drops; "), "{found:?}");
        assert_eq!(found[0].severity, Severity::Note);
    }

    #[test]
    fn rules_for_vxlan_are_named_where_they_do_not_see_it() {
        let port = |right: Value| json!([{"match": {"left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": right}}, {"drop": null}]);
        let with = |hook: &str, right: Value| {
            ruleset(&json!([chain("c", Some(hook), "accept"), rule("c", &port(right))]))
        };
        assert!(findings(&with("input", json!(4789)))[0].remedy.contains("overlay_shortcut"));
        assert_eq!(findings(&with("output", json!({"set": [53, 4789]}))).len(), 1);
        assert_eq!(findings(&with("input", json!(22))), []);
        assert_eq!(findings(&with("prerouting", json!(4789))), []);
    }

    #[test]
    fn nothing_comes_of_nothing_and_nonsense_is_told() {
        assert_eq!(findings(&ruleset(&json!([]))), []);
        assert_eq!(findings("{}"), []);
        assert!(findings("no JSON")[0].message.contains("were not looked for"));
    }
}
