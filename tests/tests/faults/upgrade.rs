//! kill -9 of ipamd at every step of putting its programs in the place of an earlier ipamd's, under open connections.

use super::scene::{self, Pod};
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};
use weft_tests::{
    TestNetns, Uplink, inventory, poll_until,
    stops::{IPAMD_UPGRADE, VARIABLE, expect_death},
};

const PATIENCE: Duration = Duration::from_secs(20);
const HOST_PORT: u16 = 18_090;

/// Both ends of an open connection.
struct Connection {
    ends: [TcpStream; 2],
}

impl Connection {
    /// From one namespace to where `listener` listens, dialled at `address`.
    fn open(from: &TestNetns, address: SocketAddr, listener: &TcpListener) -> Result<Self> {
        let dial = || from.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)));
        let mut client = None;
        poll_until(PATIENCE, "a connection", || {
            client = dial().ok().and_then(std::result::Result::ok);
            client.is_some()
        })?;
        let (server, _) = listener.accept()?;
        let ends = [client.context("a connection")?, server];
        for end in &ends {
            end.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { ends })
    }

    /// Says something in each direction and hears it.
    fn speak(&self) -> Result<()> {
        let [client, server] = &self.ends;
        for (mut from, mut to) in [(client, server), (server, client)] {
            from.write_all(&[7; 4096])?;
            let mut heard = [0; 4096];
            to.read_exact(&mut heard)?;
            ensure!(heard == [7; 4096], "something else was heard than was said");
        }
        Ok(())
    }
}

fn listen(netns: &TestNetns, address: &str) -> Result<TcpListener> {
    Ok(netns.run(|| TcpListener::bind(address))??)
}

/// Makes a debug build of ipamd load programs of a later release: they have a map more.
const NEXT: (&str, &str) = ("WEFT_NEXT_OBJECT", "1");

#[test]
fn ipamd_killed_within_an_upgrade_loses_no_connection() -> Result<()> {
    upgrade("kill-upgrade", &[])
}

#[test]
fn ipamd_killed_within_an_upgrade_to_a_later_release_and_back_loses_no_connection() -> Result<()> {
    upgrade("kill-next", &[NEXT])
}

fn upgrade(name: &str, release: &[(&str, &str)]) -> Result<()> {
    let mut node = scene::node(name).start()?;
    let uplink = Uplink::new(&node)?;
    let mut pod = Pod::new("served")?.publishing(HOST_PORT);
    let attached = pod.add(&node)?;

    let inside = listen(&pod.sandbox, "0.0.0.0:80")?;
    let outside = listen(&uplink, "0.0.0.0:90")?;
    let published = format!("{}:{HOST_PORT}", Uplink::NODE4).parse()?;
    let abroad = format!("{}:90", Uplink::OUTSIDE4).parse()?;
    let connections = [
        ("from outside to a published port", Connection::open(&uplink, published, &inside)?),
        ("from a container to the outside", Connection::open(&pod.sandbox, abroad, &outside)?),
    ];
    let all_speak = |when: &str| -> Result<()> {
        for (what, connection) in &connections {
            connection.speak().with_context(|| format!("{what}, {when}"))?;
        }
        Ok(())
    };
    all_speak("at first")?;
    for point in IPAMD_UPGRADE {
        let mut round = || -> Result<()> {
            node.kill()?;
            node.spawn(&[release, &[(VARIABLE, point)]].concat())?;
            expect_death(&mut node)?;
            all_speak("half upgraded")?;
            node.start_with(release)?;
            all_speak("upgraded")?;
            let has_its_map = node.bpf_dir().join("v1/NEXT").exists();
            ensure!(has_its_map == release.contains(&NEXT), "other programs were loaded than were asked for");
            pod.check(&node)?;
            inventory::assert_holds(&node, &[attached.endpoint])
        };
        round().context(point)?;
    }
    node.kill()?;
    node.start()?;
    all_speak("with the programs of the first release again")?;
    pod.del(&node)?;
    inventory::assert_clean(&node)
}
