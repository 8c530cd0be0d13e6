//! New connections per second: connect, a byte there, a byte back, close; again and again.
//!
//! Client and server are this benchmark's executable started anew, so that each is a process in a namespace of its own, as
//! the other instruments are. The server closes first, so the client's ports are free at once and do not run out. A
//! connection that fails ends the run with an error: nothing is counted that was not whole.

use crate::shared::instruments::{Servers, output};
use anyhow::{Context, Result, bail, ensure};
use std::{
    env,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};
use weft_tests::NetnsHandle;

/// Where the server listens.
pub(crate) const PORT: u16 = 7007;

/// The first argument that makes this process the server.
const SERVE: &str = "--serve-connections";
/// The first argument that makes this process the client; address and seconds follow.
const DIAL: &str = "--dial-connections";

/// Threads that dial at once. One would measure latency; these few keep both processors busy.
const DIALLERS: usize = 4;
/// Threads that accept.
const SERVERS: usize = 2;

/// How long one connection may take before it counts as failed. A SYN that is lost costs a second already.
const PATIENCE: Duration = Duration::from_secs(5);

/// Plays the server or the client if this process was started as one.
pub(crate) fn play() -> Option<Result<()>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.first()?.as_str() {
        SERVE => Some(serve()),
        DIAL => Some(dial(&arguments[1..])),
        _ => None,
    }
}

/// Starts the server among others.
pub(crate) fn start_server(servers: &mut Servers, place: &NetnsHandle) -> Result<()> {
    servers.add(place, &format!("{} {SERVE}", executable()?), PORT)
}

/// Connections per second to `address` and `port`.
pub(crate) fn measure(client: &NetnsHandle, address: &str, port: u16, seconds: usize) -> Result<f64> {
    let said = output(client, &format!("{} {DIAL} {address}:{port} {seconds}", executable()?))?;
    said.trim().parse().with_context(|| format!("no rate in what the client printed: {said}"))
}

fn executable() -> Result<String> {
    let path = env::current_exe().context("finding this executable")?;
    let path = path.to_str().context("this executable's path is no text")?;
    ensure!(!path.contains(' '), "{path}: a path with spaces cannot be run here");
    Ok(path.to_owned())
}

fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listening")?;
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    // The client says what went wrong with its connection.
                    let _ = stream.and_then(answer);
                }
            });
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

fn dial(arguments: &[String]) -> Result<()> {
    let [address, seconds] = arguments else { bail!("usage: {DIAL} ADDRESS:PORT SECONDS") };
    let address: SocketAddr = address.parse().context("the address to dial")?;
    let seconds = Duration::from_secs(seconds.parse().context("the number of seconds")?);
    let start = Instant::now();
    let work = || {
        let mut connections = 0_u32;
        while start.elapsed() < seconds {
            exchange(address).with_context(|| format!("connection {connections} of a thread"))?;
            connections += 1;
        }
        Ok::<_, anyhow::Error>(connections)
    };
    let counts = thread::scope(|scope| {
        let running: Vec<_> = (0..DIALLERS).map(|_| scope.spawn(work)).collect();
        let counts = running.into_iter().map(|thread| match thread.join() {
            Ok(counted) => counted,
            Err(_) => bail!("a thread panicked"),
        });
        counts.collect::<Result<Vec<_>>>()
    })?;
    println!("{:.1}", f64::from(counts.iter().sum::<u32>()) / start.elapsed().as_secs_f64());
    Ok(())
}

fn exchange(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x").context("sending")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receiving")?;
    ensure!(answer == b"x", "{} bytes came back", answer.len());
    Ok(())
}
