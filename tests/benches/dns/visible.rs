//! How long after an ADD its name is known on other nodes.

use crate::shared::{Figures, aim, go_on};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    io,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};
use weft_tests::{Cluster, Pod, TestNetns};

const NODES: usize = 3;

/// How long a name may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(1);

const GATEWAY: (&str, u16) = ("10.237.0.1", 53);

/// Adds so many containers on one node; on each of the others one asks for their names.
pub(crate) fn visible(names: usize) -> Result<()> {
    let nodes = u8::try_from(NODES)?;
    let cluster = Cluster::builder("bench").nodes(nodes).etcd(3).start()?;
    cluster[0].ask("network create bench --driver overlay --subnet 10.237.0.0/16")?;
    let askers: Vec<Pod> = (1..NODES)
        .map(|node| Pod::add(&cluster[node], &format!("asker-{node}"), &netconf("asker")))
        .collect::<Result<_>>()?;
    let mut took = Figures::default();
    let mut pods = Vec::new();
    for n in 0..names {
        go_on()?;
        let name = format!("name-{n}");
        pods.push(Pod::add(&cluster[0], &format!("container-{n}"), &netconf(&name))?);
        let added = Instant::now();
        let known: Vec<Result<Duration>> = thread::scope(|scope| {
            let asking = askers.iter().map(|asker| scope.spawn(|| until_known(asker, &name, added)));
            let asking: Vec<_> = asking.collect();
            asking
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
                .collect()
        });
        for known in known {
            let known = known.with_context(|| cluster.evidence())?;
            took.push(known.as_secs_f64() * 1e3);
        }
    }
    println!(
        "\na name known on {} other nodes of {NODES}, ms after its ADD was answered, {names} names",
        NODES - 1
    );
    println!("  p50, p90, p99 {}, longest {:.2}", took.columns(), took.percentile(100));
    let late = took.percentile(99);
    aim("p99 of a name known on another node, ms, aim 100 at most", late, late <= 100.0);
    Ok(())
}

fn netconf(name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "weft", "driver": "overlay",
        "capabilities": {"aliases": true}, "runtimeConfig": {"aliases": [name]},
    })
}

/// Asks until the name has an address, and says how long that took.
fn until_known(asker: &TestNetns, name: &str, since: Instant) -> Result<Duration> {
    let question = question(&format!("{name}.bench"));
    asker.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(GATEWAY)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut answer = [0; 512];
        loop {
            ensure!(since.elapsed() < PATIENCE, "{name} is not known after {PATIENCE:?}");
            socket.send(&question)?;
            match socket.recv(&mut answer) {
                // NOERROR with an answer (RFC 1035, section 4.1.1).
                Ok(length) if length > 12 && answer[3] & 15 == 0 && answer[7] > 0 => {
                    return Ok(since.elapsed());
                }
                Ok(_) => thread::sleep(PAUSE),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    })?
}

/// A question for IPv4 addresses.
pub(crate) fn question(name: &str) -> Vec<u8> {
    // Recursion desired; one question.
    let mut wire = vec![0x5a, 0x5a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        wire.push(u8::try_from(label.len()).unwrap_or_default());
        wire.extend(label.bytes());
    }
    wire.extend([0, 0, 1, 0, 1]);
    wire
}
