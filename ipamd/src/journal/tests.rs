//! The journal on real file systems, full and read-only ones included (a tmpfs in a mount namespace of the test's own thread).

use super::{evidence::*, *};
use ipamd_api::{
    AddressOrigin, AttachmentKey, DelRequest, Driver, EndpointOptions, Evidence, HeldAddress, Hooks, MacAddr,
    Phase, RELEASED_DIR, ReleaseRecord, netns::SandboxIdentity,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::time::{Duration, Instant};

fn record(number: u64) -> Record {
    let endpoint = EndpointId::new(number).unwrap();
    Record {
        version: RECORD_VERSION,
        endpoint,
        attachment: AttachmentKey { container_id: format!("c{number}"), ifname: "eth0".into() },
        network: NetworkPart {
            id: 1,
            name: "web".into(),
            driver: Driver::Bridge,
            hooks: Hooks::Clsact,
            internal: false,
            masquerade: true,
            routed: false,
            bridge_ifindex: 3,
            gateway_mac: MacAddr([2, 0x57, 10, 0, 0, 1]),
            node_addresses: vec![],
            dns_mode: ipamd_api::DnsMode::Gateway,
            parent: None,
        },
        runtime: "containerd".into(),
        boot_id: "b".into(),
        phase: Phase::Live,
        sandbox: SandboxIdentity { path: "/run/netns/a".into(), dev: 4, inode: 5, cookie: 6 },
        addresses: vec![HeldAddress {
            address: "10.0.0.2/24".parse().unwrap(),
            gateway: "10.0.0.1".parse().unwrap(),
            origin: AddressOrigin::Dynamic,
            block: Some("10.0.0.0/26".parse().unwrap()),
        }],
        mac: Some(MacAddr([2, 0x57, 10, 0, 0, 2])),
        mtu: 1500,
        routes: vec![],
        host_ifindex: Some(7),
        sandbox_ifindex: Some(2),
        options: EndpointOptions::default(),
        published: vec![],
        created_at: number,
        freed_at: Some(Duration::from_millis(1500)),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        list(dir).unwrap().iter().map(|p| file_name(p).unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Runs `work` on a small tmpfs that only its thread sees, and that ends with it.
fn on_tmpfs(work: impl FnOnce(&Path) + Send) {
    on_tmpfs_of("64k", work);
}

fn on_tmpfs_of(size: &str, work: impl FnOnce(&Path) + Send) {
    let options = format!("size={size}");
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root: it mounts a tmpfs");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        work(dir.path());
    };
    std::thread::scope(|s| s.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn fill(dir: &Path) {
    let mut file = fs::File::create(dir.join("filler")).unwrap();
    loop {
        match file.write(&[0; 4096]) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::StorageFull => return,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn records_come_back_as_they_were_written() {
    let run = tempfile::tempdir().unwrap();
    let journal = Journal::open(run.path()).unwrap();
    let mode = fs::metadata(run.path().join("journal")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let (a, mut b) = (record(2), record(1));
    journal.write(&a).unwrap();
    journal.write(&b).unwrap();
    b.phase = Phase::Deleting;
    journal.write(&b).unwrap();
    let replay = Journal::open(run.path()).unwrap().replay().unwrap();
    assert_eq!(replay.records, [b.clone(), a]);
    assert!(replay.set_aside.is_empty());
    journal.remove(b.endpoint).unwrap();
    journal.remove(b.endpoint).unwrap();
    assert_eq!(names(&run.path().join("journal")), ["000000000002.json"]);
}

#[test]
fn a_folder_that_others_can_read_is_closed() {
    let run = tempfile::tempdir().unwrap();
    let dir = run.path().join("journal");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    Journal::open(run.path()).unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn what_cannot_be_understood_is_set_aside_and_reported() {
    let run = tempfile::tempdir().unwrap();
    let journal = Journal::open(run.path()).unwrap();
    journal.write(&record(1)).unwrap();
    let dir = run.path().join("journal");
    let whole = serde_json::to_string(&record(3)).unwrap();
    let newer = whole.replacen("\"version\":1", "\"version\":99,\"shape\":\"new\"", 1);
    for (name, body) in [
        ("000000000002.json", ""),
        ("000000000003.json", &whole[..whole.len() - 9]),
        ("000000000004.json", newer.as_str()),
        ("000000000005.json", whole.as_str()),
        ("000000000006.json", "[]"),
        ("notes.txt", "not ours"),
    ] {
        fs::write(dir.join(name), body).unwrap();
    }
    fs::create_dir(dir.join("000000000007.json")).unwrap();
    // An earlier one of the same name is not overwritten.
    fs::write(dir.join("000000000002.json.broken"), "earlier").unwrap();
    let replay = journal.replay().unwrap();
    assert_eq!(replay.records, [record(1)]);
    assert_eq!(replay.set_aside_before, [dir.join("000000000002.json.broken")]);
    let mut reasons: Vec<(&str, &str)> =
        replay.set_aside.iter().map(|s| (file_name(&s.path).unwrap(), s.reason.as_str())).collect();
    reasons.sort_unstable();
    for ((name, reason), (expected_name, part)) in reasons.iter().zip([
        ("000000000002.json.2.broken", "no journal record: EOF"),
        ("000000000003.json.broken", "no journal record: EOF"),
        ("000000000004.json.broken", "version 99, written by a newer ipamd"),
        ("000000000005.json.broken", "the record of 000000000003"),
        ("000000000006.json.broken", "no journal record"),
        ("000000000007.json.broken", "a directory"),
    ]) {
        assert_eq!(*name, expected_name);
        assert!(reason.contains(part), "{name}: {reason}");
    }
    assert_eq!(reasons.len(), 6);
    assert_eq!(fs::read_to_string(dir.join("000000000002.json.broken")).unwrap(), "earlier");
    assert_eq!(fs::read_to_string(dir.join("000000000004.json.broken")).unwrap(), newer);
    let again = journal.replay().unwrap();
    assert_eq!((again.set_aside.len(), again.set_aside_before.len()), (0, 7));
}

#[test]
fn what_a_killed_write_left_is_cleared() {
    let run = tempfile::tempdir().unwrap();
    Journal::open(run.path()).unwrap().write(&record(1)).unwrap();
    let dir = run.path().join("journal");
    fs::write(dir.join(".000000000001.0.tmp"), "{\"ver").unwrap();
    let journal = Journal::open(run.path()).unwrap();
    assert_eq!(names(&dir), ["000000000001.json"]);
    assert_eq!(journal.replay().unwrap().records, [record(1)]);
}

#[test]
fn a_full_run_directory_is_named_and_keeps_the_earlier_record() {
    on_tmpfs(|run| {
        let journal = Journal::open(run).unwrap();
        journal.write(&record(1)).unwrap();
        fill(run);
        let mut changed = record(1);
        changed.phase = Phase::Deleting;
        for record in [changed, record(2)] {
            let error = journal.write(&record).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&journal.path(record.endpoint).display().to_string()), "{text}");
            assert!(text.ends_with("free space in the run directory"), "{text}");
            assert_eq!(ipamd_api::ApiError::from(&error).code, 113);
        }
        assert_eq!(names(&run.join("journal")), ["000000000001.json"]);
        assert_eq!(journal.replay().unwrap().records, [record(1)]);
        journal.remove(record(1).endpoint).unwrap();
    });
}

#[test]
fn a_read_only_run_directory_is_named_and_can_be_replayed() {
    on_tmpfs(|run| {
        let journal = Journal::open(run).unwrap();
        journal.write(&record(1)).unwrap();
        let none = None::<&str>;
        mount(none, run, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        for error in [journal.write(&record(2)).unwrap_err(), journal.remove(record(1).endpoint).unwrap_err()]
        {
            assert!(error.to_string().ends_with("mount the run directory writable"), "{error}");
        }
        assert_eq!(journal.replay().unwrap().records, [record(1)]);
    });
}

#[test]
fn a_thousand_records_are_replayed_in_well_under_a_second() {
    on_tmpfs_of("16m", |run| {
        let journal = Journal::open(run).unwrap();
        let started = Instant::now();
        for number in 1..=1000 {
            journal.write(&record(number)).unwrap();
        }
        let written = started.elapsed();
        let started = Instant::now();
        let replay = Journal::open(run).unwrap().replay().unwrap();
        println!("1,000 records: written in {written:?}, replayed in {:?}", started.elapsed());
        assert_eq!(replay.records.len(), 1000);
        assert!(started.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn one_ipamd_per_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let held = lock(&run).unwrap();
    let error = lock(&run).unwrap_err();
    let (path, pid) = (run.join("ipamd.lock"), std::process::id());
    assert!(matches!(&error, JournalError::Locked { pid: Some(p), .. } if *p == pid));
    let text = format!(
        "{} is locked by another ipamd (process {pid}): stop it, or give this ipamd another --run-dir",
        path.display()
    );
    assert_eq!(error.to_string(), text);
    drop(held);
    lock(&run).unwrap();
}

#[test]
fn release_records_are_read_in_order_and_removed_once() {
    let run = tempfile::tempdir().unwrap();
    assert!(read_released(run.path()).unwrap().records.is_empty());
    let request = |n: u64| DelRequest {
        attachment: record(n).attachment,
        network: "web".into(),
        evidence: Evidence { endpoint: EndpointId::new(n), cookie: None },
    };
    ReleaseRecord::write(run.path(), request(1)).unwrap();
    ReleaseRecord::write(run.path(), request(2)).unwrap();
    let dir = run.path().join(RELEASED_DIR);
    // Digits compare as numbers, not as text.
    let early = ReleaseRecord { request: request(3), released_at: 0 };
    fs::write(dir.join("999-1.json"), serde_json::to_vec(&early).unwrap()).unwrap();
    fs::write(dir.join("5-1.json"), "{\"request\":").unwrap();
    fs::write(dir.join(".7-1"), "").unwrap();
    let found = read_released(run.path()).unwrap();
    let order: Vec<_> = found.records.iter().map(|r| r.record.request.clone()).collect();
    assert_eq!(order, [request(3), request(1), request(2)]);
    assert_eq!(found.set_aside.len(), 1);
    assert_eq!(found.set_aside[0].path, dir.join("5-1.json.broken"));
    for released in &found.records {
        released.remove().unwrap();
        released.remove().unwrap();
    }
    // A record being written is left alone.
    assert_eq!(names(&dir), [".7-1", "5-1.json.broken"]);
}

#[test]
fn the_boot_id_is_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot_id");
    fs::write(&path, "7f0c2f7e-0000-4000-8000-000000000001\n").unwrap();
    assert_eq!(boot_id(&path).unwrap(), "7f0c2f7e-0000-4000-8000-000000000001");
    for bad in ["", "\n", "a b"] {
        fs::write(&path, bad).unwrap();
        assert!(boot_id(&path).unwrap_err().to_string().contains("is no boot ID"), "{bad:?}");
    }
    assert_eq!(boot_id(Path::new(BOOT_ID_PATH)).unwrap().len(), 36);
}

#[test]
fn the_strongest_evidence_decides_alone() {
    let of = |container: &str, network: &str, endpoint: Option<u64>, cookie: Option<u64>| DelRequest {
        attachment: AttachmentKey { container_id: container.into(), ifname: "eth0".into() },
        network: network.into(),
        evidence: Evidence { endpoint: endpoint.and_then(EndpointId::new), cookie },
    };
    for (what, request, expected) in [
        ("generation", of("c1", "web", Some(1), None), Match::Yes),
        ("generation beats cookie", of("c1", "web", Some(1), Some(99)), Match::Yes),
        ("older generation", of("c1", "web", Some(9), None), Match::No(Mismatch::Generation)),
        (
            "older generation, same sandbox",
            of("c1", "web", Some(9), Some(6)),
            Match::No(Mismatch::Generation),
        ),
        ("cookie", of("c1", "web", None, Some(6)), Match::Yes),
        ("another sandbox", of("c1", "web", None, Some(7)), Match::No(Mismatch::Cookie)),
        ("nothing", of("c1", "web", None, None), Match::Unknown),
        ("another network", of("c1", "db", Some(1), Some(6)), Match::No(Mismatch::Network)),
        ("another container", of("c2", "web", Some(1), Some(6)), Match::No(Mismatch::Attachment)),
    ] {
        assert_eq!(matches(&record(1), &request), expected, "{what}");
    }
    let mut other_ifname = of("c1", "web", Some(1), None);
    other_ifname.attachment.ifname = "eth1".into();
    assert_eq!(matches(&record(1), &other_ifname), Match::No(Mismatch::Attachment));
}
