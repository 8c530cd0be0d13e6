//! Keys that people or other programs have edited into nonsense: each is told of and skipped, and stops nothing else.

use super::world::{World, builder, netconf};
use anyhow::{Context, Result};

/// Keys under the prefix and what they become.
const NONSENSE: [(&str, &str); 10] = [
    ("networks/nonsense", "no JSON"),
    ("networks/newer", r#"{"version": 99, "id": 7, "name": "newer"}"#),
    ("networks/odd", r#"{"version": 1}"#),
    ("nodes/nonsense", "\u{1}\u{2}"),
    ("nodes/newer", r#"{"version": 99}"#),
    ("blocks/blue/no-block", "{}"),
    ("blocks/nowhere/10.9.0.0_26", r#"{"version": 1, "node": "nobody", "incarnation": 1}"#),
    ("addresses/blue/10.70.200.200", "[]"),
    ("alive/nonsense", ""),
    ("traces/garbage-0/garbage-1/1", r#"{"version": 1, "question": []}"#),
];

#[test]
fn nonsense_is_told_of_and_stops_nothing() -> Result<()> {
    let mut world = World::populated(builder("garbage"))?;
    for (key, value) in NONSENSE {
        world.cluster.etcd()?.ctl(0, &["put", &format!("/weft/v1/{key}"), value])?;
    }
    for node in [0, 1] {
        world.says(node, "status", "networks/nonsense")?;
        world.says(node, "doctor", "networks/nonsense")?;
    }
    world.says(0, "status", "traces/garbage-0")?;
    for round in 0..2 {
        for node in [0, 1] {
            world.add(node, "blue").with_context(|| format!("round {round}"))?;
        }
        world.create(&format!("late{round}"), &format!("--subnet 10.{}.0.0/16", 80 + round))?;
        for node in [0, 1] {
            let added = world.insist(node, &netconf(&format!("late{round}")))?;
            world.live.push(added);
        }
        world.converge()?;
        world.judge()?;
        // The second round is one of nodes that have found it there.
        for node in [0, 1] {
            world.cluster[node].restart().context("with nonsense in the store")?;
        }
    }
    for (key, _) in NONSENSE {
        world.cluster.etcd()?.ctl(0, &["del", &format!("/weft/v1/{key}")])?;
    }
    world.judge()
}
