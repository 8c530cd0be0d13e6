//! Names while ipamd is not there, and after.

use crate::scene::{LOCAL, bridge, expect, gateways, pod};
use anyhow::{Context, Result};
use weft_tests::{Node, Table};

#[test]
fn names_are_answered_while_ipamd_is_away() -> Result<()> {
    let mut node = Node::start_new("away")?;
    let (one, other) = (pod(&node, 91, &["one"])?, pod(&node, 91, &["other"])?);
    let [v4, v6] = gateways(91);
    node.kill()?;
    let known = |table: &mut Table, when: &str| {
        for server in [v4.as_str(), v6.as_str(), LOCAL] {
            let rows = [
                ("other A".to_owned(), other.ipv4().map(|ip| ip.to_string())),
                ("other AAAA".to_owned(), other.ipv6().map(|ip| ip.to_string())),
                ("other.net-91 A".to_owned(), other.ipv4().map(|ip| ip.to_string())),
                (
                    format!("-x {}", other.ipv4().map_or_else(|_| String::new(), |ip| ip.to_string())),
                    Ok("other.net-91.".into()),
                ),
            ];
            for (question, expected) in rows {
                table.row(format!("{when}: {server} {question}"), || {
                    expect(&one, server, &question, "NOERROR", &[expected?])
                });
            }
        }
    };
    let mut table = Table::default();
    known(&mut table, "killed");
    node.start()?;
    known(&mut table, "started again");
    table.judge(|| node.evidence())?;
    other.del(&node, &bridge("net-91", 91, &["other"]))?;
    expect(&one, &v4, "other.net-91 A", "NXDOMAIN", &[]).with_context(|| node.evidence())
}

#[test]
fn a_del_while_ipamd_is_away_takes_the_name_with_the_next_start() -> Result<()> {
    let mut node = Node::start_new("late")?;
    let (one, other) = (pod(&node, 92, &["one"])?, pod(&node, 92, &["other"])?);
    node.kill()?;
    other.del(&node, &bridge("net-92", 92, &["other"]))?;
    node.start()?;
    let [v4, _] = gateways(92);
    expect(&one, &v4, "other.net-92 A", "NXDOMAIN", &[]).with_context(|| node.evidence())
}
