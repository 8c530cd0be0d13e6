//! kill -9 of ipamd at every step of putting its programs and maps in the place of an earlier ipamd's, under open connections.

use super::scene::{Attached, Pod};
use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use ebpf_common::{CONN_ORIGINAL, Conn, MAX_ENDPOINTS, Tuple};
use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use weft_tests::{
    Connection, Node, TestNetns, Uplink,
    dial::Dial,
    echo::{Echo, Protocol},
    inventory, poll_until,
    stops::{IPAMD_MIGRATION, IPAMD_UPGRADE, VARIABLE, expect_death},
};

const PATIENCE: Duration = Duration::from_secs(20);
const HOST_PORT: u16 = 18_090;

/// Makes a debug build of ipamd load programs of a later release: they have a map more, and maps of other shapes.
const NEXT: (&str, &str) = ("WEFT_NEXT_OBJECT", "1");

/// What ipamd is started with to be of this release, and of a later one.
const RELEASES: [&[(&str, &str)]; 2] = [&[], &[NEXT]];

fn listen(netns: &TestNetns, address: &str) -> Result<TcpListener> {
    Ok(netns.run(|| TcpListener::bind(address))??)
}

/// A node with a container and open connections.
struct Upgrade {
    // In the order in which they have to go.
    connections: [Connection; 3],
    pod: Pod,
    attached: Attached,
    uplink: Uplink,
    node: Node,
}

impl Upgrade {
    fn begin(name: &str) -> Result<Self> {
        let settings = "cool_down = 0\nsweep_interval = 3600\nflow_sweep_interval = 1";
        let node = Node::builder(name).settings(settings).start()?;
        let uplink = Uplink::new(&node)?;
        let mut pod = Pod::new("served")?.publishing(HOST_PORT);
        let attached = pod.add(&node)?;
        let inside = listen(&pod.sandbox, "0.0.0.0:80")?;
        let outside = listen(&uplink, "0.0.0.0:90")?;
        let abroad = format!("{}:90", Uplink::OUTSIDE4).parse()?;
        let direct = SocketAddr::new(attached.ipv4(), 80);
        let connections = [
            Connection::open("from outside to a published port", &uplink, published()?, &inside)?,
            Connection::open("from a container to the outside", &pod.sandbox, abroad, &outside)?,
            Connection::open("from the node to a container", node.netns(), direct, &inside)?,
        ];
        Ok(Self { connections, pod, attached, uplink, node })
    }

    fn all_speak(&self, when: &str) -> Result<()> {
        self.connections.iter().try_for_each(Connection::speak).with_context(|| when.to_owned())
    }

    /// ipamd is killed and starts as one of a release, which dies at a point.
    fn die(&mut self, release: &[(&str, &str)], point: &str) -> Result<()> {
        self.node.kill()?;
        self.node.spawn(&[release, &[(VARIABLE, point)]].concat())?;
        expect_death(&mut self.node)?;
        self.all_speak("half upgraded")
    }

    /// Starts ipamd as one of a release; everything is of that release then, and as it should be.
    fn start(&mut self, release: &[(&str, &str)]) -> Result<()> {
        self.node.start_with(release)?;
        self.all_speak("upgraded")?;
        shapes_are(&self.node.bpf_dir().join("v1"), release.contains(&NEXT))?;
        self.pod.check(&self.node)?;
        inventory::assert_holds(&self.node, &[self.attached.endpoint])
    }

    /// What counts against the container's quota is what there is.
    fn assert_counted(&self) -> Result<()> {
        let dir = self.node.bpf_dir().join("v1");
        let id = self.attached.endpoint.get();
        let mut counts = (0, 0);
        let counted = poll_until(PATIENCE, "flows to be counted right", || {
            let read = || -> Result<_> {
                let opened: HashMap<_, u64, u64> = pinned(&dir, "FLOWS_OPENED")?;
                let closed: HashMap<_, u64, u64> = pinned(&dir, "FLOWS_CLOSED")?;
                let flows: HashMap<_, Tuple, Conn> = pinned(&dir, "FLOWS")?;
                let conns = flows.iter().filter_map(|entry| Some(entry.ok()?.1));
                let living = conns.filter(|c| c.endpoint == id && c.flags & CONN_ORIGINAL != 0).count();
                Ok((opened.get(&id, 0)? - closed.get(&id, 0)?, living as u64))
            };
            read().is_ok_and(|read| {
                counts = read;
                // The published one and the masqueraded one.
                counts.0 == counts.1 && counts.1 >= 2
            })
        });
        counted.with_context(|| format!("counted and living: {counts:?}"))
    }

    fn end(mut self) -> Result<()> {
        self.pod.del(&self.node)?;
        inventory::assert_clean(&self.node)
    }
}

fn published() -> Result<SocketAddr> {
    Ok(format!("{}:{HOST_PORT}", Uplink::NODE4).parse()?)
}

fn pinned<M: TryFrom<Map, Error = aya::maps::MapError>>(dir: &Path, name: &str) -> Result<M> {
    let map = MapData::from_pin(dir.join(name)).and_then(Map::from_map_data).and_then(M::try_from);
    map.with_context(|| name.to_owned())
}

/// Every map has the shape that a release wants, and nothing is left of another.
fn shapes_are(dir: &Path, is_next: bool) -> Result<()> {
    let info = |name: &str| MapInfo::from_pin(dir.join(name)).with_context(|| name.to_owned());
    let found = (
        info("STACK_FLOWS")?.value_size(),
        info("FLOWS_OPENED")?.max_entries(),
        info("FLOWS")?.map_flags(),
        info("NEW_FLOWS")?.map_flags(),
    );
    // As in ebpf/src/next.rs; the flags are BPF_F_ZERO_SEED and BPF_F_NO_PREALLOC.
    let wanted = if is_next { (32, 2 * MAX_ENDPOINTS, 65, 64) } else { (24, MAX_ENDPOINTS, 1, 0) };
    ensure!(found == wanted, "maps have the shapes {found:?} instead of {wanted:?}");
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        ensure!(!name.contains("-new"), "{name} is left");
    }
    Ok(())
}

#[test]
fn ipamd_killed_within_an_upgrade_loses_no_connection() -> Result<()> {
    upgrade("kill-upgrade", &[])
}

#[test]
fn ipamd_killed_within_an_upgrade_to_a_later_release_and_back_loses_no_connection() -> Result<()> {
    upgrade("kill-next", &[NEXT])
}

fn upgrade(name: &str, release: &[(&str, &str)]) -> Result<()> {
    let mut scene = Upgrade::begin(name)?;
    scene.all_speak("at first")?;
    for point in IPAMD_UPGRADE {
        scene.die(release, point).and_then(|()| scene.start(release)).context(point)?;
    }
    scene.node.kill()?;
    scene.start(&[]).context("the first release again")?;
    scene.end()
}

#[test]
fn ipamd_killed_while_maps_change_their_shape_loses_no_connection() -> Result<()> {
    let mut scene = Upgrade::begin("kill-shapes")?;
    for point in IPAMD_MIGRATION {
        // To the later release and back; and to it in vain, because after the crash somebody starts the earlier one.
        for (number, (dies, lives)) in [(1, 1), (0, 0), (1, 0)].into_iter().enumerate() {
            let mut round = || -> Result<()> {
                scene.die(RELEASES[dies], point)?;
                scene.start(RELEASES[lives])?;
                scene.assert_counted()
            };
            round().with_context(|| format!("{point}, way {number}"))?;
        }
    }
    scene.end()
}

/// Programs of two releases run for some milliseconds, each with flows of its own: who opens a connection just then may have to try
/// again, once. What was open goes on.
#[test]
fn connections_are_served_while_maps_change_their_shape() -> Result<()> {
    const SWAPS: usize = 6;
    let mut scene = Upgrade::begin("load-shapes")?;
    let any = |port| SocketAddr::from(([0; 4], port));
    let _servers =
        [Echo::start(&scene.uplink, "outside", any(90))?, Echo::start(&scene.pod.sandbox, "pod", any(80))?];
    let abroad = Dial::new(Protocol::Tcp, format!("{}:90", Uplink::OUTSIDE4).parse()?);
    let inside = Dial::new(Protocol::Tcp, published()?);
    let stop = AtomicBool::new(false);
    let client = |from: &TestNetns, dial: Dial| -> (usize, usize) {
        let (mut served, mut refused) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            *if dial.is_answered(from) { &mut served } else { &mut refused } += 1;
        }
        (served, refused)
    };
    let Upgrade { node, pod, uplink, connections, .. } = &mut scene;
    thread::scope(|scope| {
        let clients = [scope.spawn(|| client(&pod.sandbox, abroad)), scope.spawn(|| client(uplink, inside))];
        let talk = scope.spawn(|| -> Result<usize> {
            let mut said = 0;
            while !stop.load(Ordering::Relaxed) {
                connections.iter().try_for_each(Connection::speak)?;
                said += 1;
            }
            Ok(said)
        });
        let mut swaps = || -> Result<()> {
            for number in 0..SWAPS {
                node.kill()?;
                node.start_with(RELEASES[(number + 1) % 2]).with_context(|| format!("swap {number}"))?;
            }
            Ok(())
        };
        let swapped = swaps();
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a client panicked");
        for client in clients {
            let (served, refused) = client.join().map_err(panicked)?;
            println!("{served} connections through {SWAPS} swaps, {refused} broken at birth");
            ensure!(refused <= SWAPS && served > 10 * SWAPS, "{served} connections, and {refused} broken");
        }
        println!("open connections spoke {} times meanwhile", talk.join().map_err(panicked)??);
        swapped
    })?;
    scene.all_speak("after all")?;
    scene.assert_counted()?;
    scene.end()
}
