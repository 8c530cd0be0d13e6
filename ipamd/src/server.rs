//! The API: HTTP/1.1 and JSON on `<run-dir>/ipamd.sock`.
//!
//! Each connection is checked by its peer credentials; each request is read with a size and a time limit and then handed
//! to a thread that may block. A call that has begun is finished even when its caller goes away; a stream ends with its caller.

mod answer;
mod routes;
mod scrape;

pub use scrape::serve_metrics;

use crate::daemon::NodeState;
use answer::render;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipamd_api::{ApiError, ErrorCode};
use routes::handle;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{net::UnixListener, net::UnixStream, sync::watch, task::JoinSet};

/// Longest wait for running calls at a stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Who may call, and how patient the server is.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Users beside root and ipamd's own.
    pub uids: Vec<u32>,
    /// Limit for reading a request.
    pub timeout: Duration,
}

/// Serves until `stop` turns true, then waits for running calls.
pub async fn serve(
    listener: UnixListener,
    node: Arc<NodeState>,
    options: ServerOptions,
    mut stop: watch::Receiver<bool>,
) {
    let options = Arc::new(options);
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (node, options, stop) = (Arc::clone(&node), Arc::clone(&options), stop.clone());
                    calls.spawn(connection(stream, node, options, stop));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others finish and free some.
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = calls.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    let drained =
        tokio::time::timeout(STOP_PATIENCE, async { while calls.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(
            calls = calls.len(),
            "stopping with calls still running; the next start finishes or undoes them"
        );
    }
}

/// Waits until the daemon stops. The watch's guard must not live across an await, so it does not leave this function.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and so is the daemon.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: UnixStream,
    node: Arc<NodeState>,
    options: Arc<ServerOptions>,
    mut stop: watch::Receiver<bool>,
) {
    let refused = check_peer(&stream, &options).err();
    let timeout = options.timeout;
    let stopping = stop.clone();
    let service = service_fn(move |request| {
        let (node, refused, stop) = (Arc::clone(&node), refused.clone(), stopping.clone());
        async move {
            let answer = match refused {
                Some(error) => Err(error),
                None => handle(request, node, timeout, stop).await,
            };
            Ok::<_, Infallible>(render(answer))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        // A request that came whole is served, though its caller has hung up meanwhile: the DEL that follows finds what it made.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

fn check_peer(stream: &UnixStream, options: &ServerOptions) -> Result<(), ApiError> {
    let not_permitted = |msg: String| ApiError::new(ErrorCode::NotPermitted, msg);
    let peer =
        stream.peer_cred().map_err(|e| not_permitted(format!("the kernel does not say who calls: {e}")))?;
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid() == 0 || peer.uid() == own || options.uids.contains(&peer.uid()) {
        return Ok(());
    }
    Err(not_permitted(format!(
        "user {} may not call ipamd; call as root, or add the user to `api_uids`",
        peer.uid()
    )))
}
