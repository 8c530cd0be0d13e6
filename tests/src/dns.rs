//! A name server inside a namespace that knows one answer, for `dig`.

use crate::{TestNetns, poll::wait_to_read};
use anyhow::{Context, Result};
use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What every name is.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// Answers on both protocols until it is dropped.
#[derive(Debug)]
pub struct NameServer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Listens at `address` inside a namespace.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(netns: &TestNetns, address: SocketAddr) -> Result<Self> {
        let bound =
            netns.run(|| Ok::<_, io::Error>((TcpListener::bind(address)?, UdpSocket::bind(address)?)))?;
        let (tcp, udp) = bound.with_context(|| format!("a name server cannot listen at {address}"))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (of_datagrams, of_streams) = (Arc::clone(&stop), Arc::clone(&stop));
        let datagrams = thread::spawn(move || {
            let mut query = [0; 1500];
            while !of_datagrams.load(Ordering::Relaxed) {
                if let Ok((length, client)) = udp.recv_from(&mut query)
                    && let Some(answer) = answer(&query[..length])
                {
                    // What does not arrive shows at the client.
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        let streams = thread::spawn(move || {
            while !of_streams.load(Ordering::Relaxed) {
                if wait_to_read(&tcp, LOOK)
                    && let Ok((stream, _)) = tcp.accept()
                {
                    // As above.
                    drop(serve(stream));
                }
            }
        });
        Ok(Self { stop, threads: vec![datagrams, streams] })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it has been printed; the test judges by what its clients got.
            let _ = thread.join();
        }
    }
}

/// One question by TCP, where a length goes before each message (RFC 1035, 4.2.2).
fn serve(mut stream: std::net::TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut query)?;
    let Some(answer) = answer(&query) else { return Ok(()) };
    let length = u16::try_from(answer.len()).unwrap_or_default();
    stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat())
}

/// The question, and one address for it.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let question = query.get(HEADER..)?;
    // Type and class follow the root label.
    let end = question.iter().position(|byte| *byte == 0)? + 5;
    let mut answer = query.get(..2)?.to_vec();
    // A response, recursion desired and available; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question.get(..end)?);
    // The name of the question, type A, class IN, a minute, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ANSWER.octets());
    Some(answer)
}
