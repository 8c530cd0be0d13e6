//! Metrics over TCP, for those who cannot read a unix socket: at the addresses of `metrics_listen` and nowhere else.
//!
//! It serves `/metrics` and nothing of the API. An address that cannot be had stops nothing: it is tried again until it can.

use super::stopped;
use crate::{daemon::NodeState, metrics::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE as CONTENT_TYPE_FIELD, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipamd_api::path;
use socket2::{Domain, Protocol, Socket, Type};
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

/// How often an address is tried that cannot be had.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a connection may last, whatever is done with it: one who reads too slowly gives his place to others.
const LONGEST: Duration = Duration::from_secs(60);

/// Connections of one address that are served at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 256;

/// Serves an address until `stop` turns true; `timeout` is for a request to come whole, and for a connection to be idle.
pub async fn serve_metrics(
    address: SocketAddr,
    node: Arc<NodeState>,
    timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let served = stop.clone();
    tokio::select! {
        () = serve(address, node, timeout, served) => {}
        () = stopped(&mut stop) => {}
    }
}

async fn serve(address: SocketAddr, node: Arc<NodeState>, timeout: Duration, stop: watch::Receiver<bool>) {
    let mut said = false;
    let listener = loop {
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) if said => tracing::debug!(%address, %error, "metrics cannot be served there"),
            Err(error) => {
                tracing::error!(%address, %error, "metrics cannot be served there: free the port, or change `metrics_listen`; trying again");
                said = true;
            }
        }
        tokio::time::sleep(AGAIN).await;
    };
    tracing::info!(%address, "metrics are served");
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (node, stop) = (Arc::clone(&node), stop.clone());
                tokio::spawn(async move {
                    connection(stream, node, timeout, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection of a scrape");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Listens at exactly this address: `[::]` does not mean IPv4, too. An address that a device gets later can be listened at before.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    // After a restart the port of before may still be closing.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn connection(
    stream: TcpStream,
    node: Arc<NodeState>,
    timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Infallible>(answer(&request, node).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = tokio::time::timeout(LONGEST, connection) => ended.unwrap_or(Ok(())),
        () = stopped(&mut stop) => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of a scrape ended early");
    }
}

async fn answer(request: &Request<Incoming>, node: Arc<NodeState>) -> Response<Full<Bytes>> {
    let text = |status, text: &str| plain(status, "text/plain; charset=utf-8", Bytes::from(text.to_owned()));
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, path::METRICS) => {
            match node.metrics.exposition(Arc::clone(&node)).await {
                Ok(metrics) => plain(StatusCode::OK, CONTENT_TYPE, metrics),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.msg),
            }
        }
        (_, path::METRICS) => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        _ => text(StatusCode::NOT_FOUND, "only /metrics is served here; ipamd's API is on its unix socket\n"),
    }
}

fn plain(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE_FIELD, HeaderValue::from_static(kind));
    response
}
