//! Questions over connections (RFC 7766): many at once on one, answered in the order in which answers come.
//!
//! Invariant: a question is read only when there is room for its answer, so a client that reads no answers asks no more questions.

use super::{
    core::{Client, Core, Handled, ReplyTo},
    listeners::Place,
    log::{Transport, count},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

/// How long a connection may say nothing, take for one question, or for one answer (RFC 7766, section 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Questions of one connection that are under way.
const PIPELINE: usize = 64;

/// Longest question.
const LENGTH: usize = 4096;

/// How long no connection is accepted after that failed: there are no files left.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the task is ended; they end with it.
pub(super) async fn serve(core: Arc<Core>, place: Place, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(?place, %error, "questions over TCP cannot be waited for");
            return;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place_taken) = core.connect(place, peer.ip()) else {
                    // Closed at once: the client asks again, over UDP or later.
                    count(&core.counters.connections_refused);
                    continue;
                };
                let core = Arc::clone(&core);
                connections.spawn(async move {
                    let client = Client { place, source: peer.ip(), transport: Transport::Tcp };
                    if let Err(error) = converse(&core, client, stream).await {
                        tracing::debug!(%peer, %error, "a connection ended early");
                    }
                    drop(place_taken);
                });
            }
            Err(error) => {
                tracing::warn!(?place, %error, "no connection can be accepted; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(core: &Arc<Core>, client: Client, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let (sender, replies) = mpsc::channel(PIPELINE);
    let (read, wrote) = tokio::join!(listen(core, client, reader, sender), speak(writer, replies));
    read.and(wrote)
}

/// Reads questions until there is none for a while. The sender goes with it: when the last answer is given, the other half ends.
async fn listen(
    core: &Arc<Core>,
    client: Client,
    mut reader: OwnedReadHalf,
    sender: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = vec![0; LENGTH];
    loop {
        let Ok(room) = sender.clone().reserve_owned().await else { return Ok(()) };
        let Ok(read) = timeout(IDLE, read_message(&mut reader, &mut buffer)).await else { return Ok(()) };
        let Some(length) = read? else { return Ok(()) };
        match core.handle(buffer.get(..length).unwrap_or_default(), client) {
            Handled::Reply(reply) => drop(room.send(reply)),
            Handled::Silence => return Ok(()),
            Handled::Forward(job) => {
                if let Some(reply) = core.forward(*job, ReplyTo::Tcp(room)) {
                    // Refused at once: its room went with the refusal.
                    let _ = sender.send(reply).await;
                }
            }
        }
    }
}

/// A message behind its length (RFC 1035, section 4.2.2); `None`: there is no other.
async fn read_message(reader: &mut OwnedReadHalf, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let length = match reader.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(place) = buffer.get_mut(..length) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a question longer than any question"));
    };
    reader.read_exact(place).await?;
    Ok(Some(length))
}

async fn speak(mut writer: OwnedWriteHalf, mut replies: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(reply) = replies.recv().await {
        match timeout(IDLE, writer.write_all(&framed(&reply))).await {
            Ok(written) => written?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}

/// A message behind its length, in one piece.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes());
    framed.extend(message);
    framed
}

/// Asks an upstream over a connection of its own; the answer is returned as it came.
pub(super) async fn exchange(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&framed(query)).await?;
    let length = usize::from(stream.read_u16().await?);
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
