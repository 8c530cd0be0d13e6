//! Containers of a runtime, which only have what the runtime writes into their `resolv.conf`.

use crate::scene::LOCAL;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use weft_tests::{Node, Table, plugins, podman::Podman};

/// podman's CNI backend hands over the container's name and its aliases.
#[test]
fn containers_of_podman_find_each_other() -> Result<()> {
    let node = Node::builder("podman").hooks_everywhere().start()?;
    let dir = tempfile::tempdir().context("making a folder")?;
    let plugins = plugins::folder(&dir.path().join("plugins"))?;
    let networks = dir.path().join("net.d");
    fs::create_dir(&networks)?;
    let plugin = json!({
        "type": "weft", "runDir": node.run_dir(), "pools": [{"subnet": "10.97.0.0/24"}, {"subnet": "fd00:97::/64"}],
        "capabilities": {"ips": true, "mac": true, "portMappings": true, "aliases": true},
    });
    let conflist = json!({"cniVersion": "1.0.0", "name": "shop", "plugins": [plugin]});
    fs::write(networks.join("shop.conflist"), conflist.to_string())?;
    let podman = Podman::new_in(node.netns(), &dir.path().join("podman"), &plugins, &networks, "shop")?;
    for (name, more) in
        [("web", vec![]), ("db", vec!["--network-alias", "store"]), ("local", vec!["--dns", LOCAL])]
    {
        let line = [
            &["run", "--detach", "--name", name, "--network", "shop"][..],
            &more,
            &[weft_tests::podman::IMAGE],
        ];
        podman.run(line.concat())?;
    }
    let db = podman.addresses("db", "shop")?;
    let mut table = Table::default();
    for from in ["web", "local"] {
        for name in ["db", "store", "db.shop"] {
            table.row(format!("{from} looks for {name}"), || {
                let said = podman.exec(from, &["nslookup", name])?;
                ensure!(said.contains(&db.ipv4) && said.contains(&db.ipv6), "{said}");
                Ok(())
            });
        }
    }
    table.judge(|| node.evidence())
}
