//! The API: HTTP/1.1 and JSON on `<run-dir>/ipamd.sock`.
//!
//! Each connection is checked by its peer credentials; each request is read with a size and a time limit and then handed
//! to a thread that may block. A call that has begun is finished even when its caller goes away.

use crate::{attach::Attachments, daemon::NodeState};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipamd_api::{API_VERSION, ApiError, ErrorCode, path};
use serde::{Serialize, de::DeserializeOwned};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{net::UnixListener, net::UnixStream, sync::watch, task::JoinSet};

/// Largest request: a GC with 4,096 attachments is below 1 MiB.
const MAX_BODY: usize = 1 << 20;

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
    let service = service_fn(move |request| {
        let (node, refused) = (Arc::clone(&node), refused.clone());
        async move {
            let answer = match refused {
                Some(error) => Err(error),
                None => handle(request, node, timeout).await,
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

/// An answer: the JSON body, or the error.
type Answer = Result<Vec<u8>, ApiError>;

async fn handle(request: Request<Incoming>, node: Arc<NodeState>, timeout: Duration) -> Answer {
    let (parts, body) = request.into_parts();
    let path = decode(parts.uri.path());
    match (&parts.method, path.as_str()) {
        (&Method::POST, path::ADD) => {
            post(
                body,
                timeout,
                node,
                |r: &ipamd_api::AddRequest| call_span("add", &r.attachment),
                Attachments::add,
            )
            .await
        }
        (&Method::POST, path::DEL) => {
            post(
                body,
                timeout,
                node,
                |r: &ipamd_api::DelRequest| call_span("del", &r.attachment),
                Attachments::del,
            )
            .await
        }
        (&Method::POST, path::CHECK) => {
            let span = |r: &ipamd_api::CheckRequest| call_span("check", &r.attachment);
            post(body, timeout, node, span, |a, r| a.check(r).map(|()| Empty {})).await
        }
        (&Method::POST, path::GC) => {
            let span = |r: &ipamd_api::GcRequest| {
                tracing::info_span!("gc", network = r.network, runtime = r.runtime)
            };
            post(body, timeout, node, span, Attachments::gc).await
        }
        (&Method::POST, path::NETWORKS) => {
            let span = |r: &ipamd_api::NetworkSpec| tracing::info_span!("network-create", network = r.name);
            post(body, timeout, node, span, Attachments::create_network).await
        }
        (&Method::GET, path::STATUS) => blocking(node, |n| Ok(n.status())).await,
        (&Method::GET, path::NETWORKS) => blocking(node, |n| Ok(n.attachments.network_views())).await,
        (&Method::GET, path::ENDPOINTS) => blocking(node, |n| Ok(n.attachments.endpoints())).await,
        (method, other) => named(method.clone(), other.to_owned(), node).await,
    }
}

/// Paths that end in a name.
async fn named(method: Method, path: String, node: Arc<NodeState>) -> Answer {
    let name_after =
        |base: &str| path.strip_prefix(base)?.strip_prefix('/').filter(|n| !n.is_empty()).map(str::to_owned);
    if let Some(name) = name_after(path::NETWORK) {
        match method {
            Method::GET => {
                return blocking(node, move |n| {
                    let network = n.attachments.networks().get(&name)?;
                    Ok(n.attachments.network_view(&network))
                })
                .await;
            }
            Method::DELETE => {
                return blocking(node, move |n| n.attachments.remove_network(&name).map(|()| Empty {})).await;
            }
            _ => {}
        }
    }
    if let Some(what) = name_after(path::INSPECT)
        && method == Method::GET
    {
        return blocking(node, move |n| n.inspect(&what)).await;
    }
    let msg =
        format!("{method} {path} is not in version {API_VERSION} of the API; use binaries of one release");
    Err(ApiError::new(ErrorCode::NotFound, msg))
}

#[derive(Serialize)]
struct Empty {}

fn call_span(verb: &'static str, key: &ipamd_api::AttachmentKey) -> tracing::Span {
    tracing::info_span!("call", verb, attachment = %key)
}

async fn post<R, A, W>(
    body: Incoming,
    timeout: Duration,
    node: Arc<NodeState>,
    span: impl Fn(&R) -> tracing::Span,
    work: W,
) -> Answer
where
    R: DeserializeOwned + Send + 'static,
    A: Serialize + 'static,
    W: Fn(&Attachments, &R) -> Result<A, ApiError> + Send + 'static,
{
    let request: R = read(body, timeout).await?;
    let span = span(&request);
    blocking(node, move |n| {
        span.in_scope(|| {
            let answer = work(&n.attachments, &request);
            if let Err(error) = &answer {
                tracing::warn!(%error, "refused");
            }
            answer
        })
    })
    .await
}

async fn read<R: DeserializeOwned>(body: Incoming, timeout: Duration) -> Result<R, ApiError> {
    let decode = |msg: String| ApiError::new(ErrorCode::Decode, msg);
    let collected = tokio::time::timeout(timeout, Limited::new(body, MAX_BODY).collect()).await;
    let bytes = match collected {
        Err(_) => {
            return Err(decode(format!("the request did not come whole within {} s", timeout.as_secs())));
        }
        Ok(Err(error)) => {
            return Err(decode(format!("the request body cannot be read (limit {MAX_BODY} bytes): {error}")));
        }
        Ok(Ok(body)) => body.to_bytes(),
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| decode(format!("the request is not what this version takes: {e}")))
}

/// Runs `work` on a thread that may block; it goes on when the caller hangs up.
async fn blocking<A: Serialize + 'static>(
    node: Arc<NodeState>,
    work: impl FnOnce(&NodeState) -> Result<A, ApiError> + Send + 'static,
) -> Answer {
    let done = tokio::task::spawn_blocking(move || {
        let answer = work(&node)?;
        serde_json::to_vec(&answer).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))
    });
    done.await.unwrap_or_else(|e| {
        Err(ApiError::new(ErrorCode::Internal, format!("the call failed inside ipamd: {e}")))
    })
}

fn render(answer: Answer) -> Response<Full<Bytes>> {
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => {
            let status = error.code().map_or(500, ErrorCode::http_status);
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, serde_json::to_vec(&error).unwrap_or_default())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Undoes percent-encoding (RFC 3986, section 2.1); what is no valid sequence stays as it is.
fn decode(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let pair = tail.get(..2).filter(|_| first == b'%').and_then(|p| std::str::from_utf8(p).ok());
        match pair.and_then(|p| u8::from_str_radix(p, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
