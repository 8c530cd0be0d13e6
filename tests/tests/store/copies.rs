//! Disks that are copied, with all that a node keeps on its own: a copy is another node, and gives no address of the first one's.

use crate::nodes::{add, block_on, settings};
use ipamd::{daemon::simulated::SimulatedNode, settings::Settings};
use std::{collections::BTreeSet, fs, path::Path};
use weft_tests::etcd::Etcd;

/// Settings of a node on a machine of its own.
fn on_machine(etcd: &Etcd, dir: &Path, name: &str, machine: &str) -> Settings {
    let file = dir.join(format!("{machine}.uuid"));
    fs::write(&file, machine).unwrap();
    Settings { machine_id_file: file, ..settings(etcd, dir, name) }
}

async fn boot(settings: Settings, boot: &str, underlay: &str) -> SimulatedNode {
    SimulatedNode::start(settings, boot, underlay.parse().unwrap(), true).await.unwrap()
}

fn copy(from: &Settings, to: &Settings) {
    fs::create_dir_all(&to.state_dir).unwrap();
    for entry in fs::read_dir(&from.state_dir).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.state_dir.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_copy_of_a_disk_gives_nothing_of_the_first_ones() {
    let (mut etcd, dir) = (Etcd::start_new().unwrap(), tempfile::tempdir().unwrap());
    let one = on_machine(&etcd, dir.path(), "n1", "one");
    // Under another name, and under the same one.
    let renamed = on_machine(&etcd, dir.path(), "n2", "two");
    let mut same = on_machine(&etcd, dir.path(), "copy", "three");
    same.node_name.clone_from(&one.node_name);
    block_on(async {
        let first = boot(one.clone(), "boot-1", "192.0.2.1/24").await;
        first.await_member().await;
        let (_, kept) = add(&first, "kept", &[]).await.unwrap();
        first.stop().await;
        copy(&one, &renamed);
        copy(&one, &same);

        let second = boot(renamed, "boot-2", "192.0.2.2/24").await;
        second.await_member().await;
        let mut given = BTreeSet::from([kept]);
        for n in 0..20 {
            let (_, address) = add(&second, &format!("c{n}"), &[]).await.unwrap();
            assert!(given.insert(address), "{address} was given twice");
        }
        let third = boot(same.clone(), "boot-3", "192.0.2.3/24").await;
        let refused = add(&third, "c", &[]).await.unwrap_err().to_string();
        assert!(refused.contains("n1") && refused.contains("another machine's"), "{refused}");
        third.stop().await;

        // Nor does it without the store, by what the first one knew.
        etcd.kill_all().unwrap();
        let third = boot(same, "boot-4", "192.0.2.3/24").await;
        add(&third, "c", &[]).await.unwrap_err();
        third.stop().await;
        etcd.restart_all().unwrap();

        let first = boot(one, "boot-1", "192.0.2.1/24").await;
        first.await_member().await;
        for n in 0..20 {
            let (_, address) = add(&first, &format!("d{n}"), &[]).await.unwrap();
            assert!(given.insert(address), "{address} was given twice");
        }
        first.stop().await;
        second.stop().await;
    });
}
