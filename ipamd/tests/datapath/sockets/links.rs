//! Attaching: by pinned links, in place, moved, and off again.

use super::{
    agent::Cgroup,
    scene::{At, Scene, connect},
};
use ipamd::datapath::{CGROUP_HOOKS, CgroupHooks, Datapath, DatapathError};
use ipamd_api::Protocol::{Tcp, Udp};
use nix::sys::socket::AddressFamily::Inet;
use std::{fs, path::Path, sync::atomic::AtomicBool, sync::atomic::Ordering, thread};

const NONE: [&str; 0] = [];

fn missing(hooks: &CgroupHooks) -> Vec<&'static str> {
    hooks.missing().unwrap()
}

fn pins(links: &Path) -> Vec<String> {
    let entries = fs::read_dir(links).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| name.starts_with("cgroup-")).collect();
    names.sort();
    names
}

fn all_pins() -> Vec<String> {
    let mut names: Vec<_> = CGROUP_HOOKS.iter().map(|hook| format!("cgroup-{hook}")).collect();
    names.sort();
    names
}

/// Whether a socket of the node gets to the container.
fn is_led(scene: &Scene) -> bool {
    connect(scene.tcp(Inet), "127.0.0.1:7000".parse().unwrap()).is_ok()
}

/// One scene for all: to load the programs takes longer than the rest. Each leaves the hooks attached, by programs of its own.
#[test]
fn hooks_are_attached_replaced_moved_and_removed() {
    let scene = Scene::new();
    assert_eq!(missing(scene.hooks()), NONE);
    opening_again_replaces_programs_in_place(&scene);
    no_datagram_is_lost_while_programs_are_replaced(&scene);
    hooks_stay_when_the_datapath_is_dropped_and_go_when_removed(&scene);
    a_link_of_another_cgroup_is_replaced(&scene);
    a_pin_that_a_crash_left_half_made_is_no_trouble(&scene);
    what_is_no_cgroup_is_refused_with_the_next_step(&scene);
    uninstalling_takes_the_hooks_off_at_once(&scene);
}

fn opening_again_replaces_programs_in_place(scene: &Scene) {
    assert_eq!(pins(&scene.links()), all_pins());
    let again = scene.reopen();
    assert_eq!(missing(&again), NONE);
    assert_eq!(missing(scene.hooks()), CGROUP_HOOKS, "one link each: the old programs are out");
    assert_eq!(pins(&scene.links()), all_pins());
}

fn no_datagram_is_lost_while_programs_are_replaced(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, 7000, 1, 5300);
    let server = scene.udp_server(5300);
    let (client, to) = (scene.udp(Inet), "127.0.0.1:7000".parse().unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                assert_eq!(missing(&scene.reopen()), NONE);
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut rounds = 0_u32;
        while !done.load(Ordering::Relaxed) || rounds == 0 {
            rounds += 1;
            let mut word = [0; 4];
            client.send_to(&rounds.to_ne_bytes(), to).unwrap();
            let (_, from) = server.recv_from(&mut word).unwrap();
            assert_eq!(word, rounds.to_ne_bytes(), "the datagram before is lost");
            server.send_to(&word, from).unwrap();
            let (_, from) = client.recv_from(&mut word).unwrap();
            assert_eq!((from, u32::from_ne_bytes(word)), (to, rounds));
        }
        println!("{rounds} datagrams while programs were replaced twice");
    });
}

fn hooks_stay_when_the_datapath_is_dropped_and_go_when_removed(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, 7000, 1, 8080);
    let _server = scene.tcp_server(8080);
    assert!(is_led(scene), "the programs' owner was dropped before, the hooks stayed");
    let links = scene.links();
    let removed = CgroupHooks::remove(&links).unwrap();
    assert_eq!(removed.len(), CGROUP_HOOKS.len());
    assert!(!is_led(scene));
    assert!(pins(&links).is_empty());
    assert_eq!(missing(scene.hooks()), CGROUP_HOOKS);
    assert!(CgroupHooks::remove(&links).unwrap().is_empty(), "what is gone is gone");
    let again = scene.reopen();
    assert_eq!(missing(&again), NONE);
    assert!(is_led(scene));
}

fn a_link_of_another_cgroup_is_replaced(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, 7000, 1, 8080);
    let _server = scene.tcp_server(8080);
    let moved = Cgroup::new();
    let there = scene.reopen_on(moved.path()).unwrap();
    assert_eq!(missing(&there), NONE);
    assert_eq!(missing(scene.hooks()), CGROUP_HOOKS);
    assert_eq!(pins(&scene.links()), all_pins());
    assert!(!is_led(scene), "the old cgroup has no hooks any more");
    // The cgroup goes, and its links with it; the pins of dead links are in nobody's way.
    fs::remove_dir(moved.path()).unwrap();
    crate::node::eventually("the links died", || missing(&there) == CGROUP_HOOKS);
    let back = scene.reopen();
    assert_eq!(missing(&back), NONE);
    assert!(is_led(scene));
}

fn a_pin_that_a_crash_left_half_made_is_no_trouble(scene: &Scene) {
    let links = scene.links();
    // Between pinning under the new name and renaming.
    fs::rename(links.join("cgroup-bind4"), links.join("cgroup-bind4-new")).unwrap();
    let again = scene.reopen();
    assert_eq!((missing(&again), pins(&links)), (vec![], all_pins()));
}

fn what_is_no_cgroup_is_refused_with_the_next_step(scene: &Scene) {
    // It opens, and bpf(2) says EBADF.
    let error = scene.reopen_on(Path::new("/proc/self")).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DatapathError::Cgroup { .. }), "{text}");
    assert!(text.contains("/proc/self") && text.contains("set `cgroup`"), "{text}");
}

fn uninstalling_takes_the_hooks_off_at_once(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, 7000, 1, 8080);
    let _server = scene.tcp_server(8080);
    assert!(is_led(scene));
    let removed = scene.datapath.uninstall().unwrap();
    assert!(!is_led(scene));
    let hooks = removed.iter().filter(|what| what.contains("/cgroup-")).count();
    assert_eq!(hooks, CGROUP_HOOKS.len(), "{removed:?}");
    assert!(!scene.bpffs.path().join("weft").exists(), "no trace");
}
