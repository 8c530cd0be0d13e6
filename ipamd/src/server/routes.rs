//! Which call a request means, and the reading of its body.

use super::answer::{Answer, Reply};
use crate::{
    attach::Attachments,
    daemon::{NodeState, question_view},
    metrics,
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
};
use ipamd_api::{API_VERSION, ApiError, ErrorCode, FlowFilter, path};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, mpsc, watch};

/// Largest request: a GC with 4,096 attachments is below 1 MiB.
const MAX_BODY: usize = 1 << 20;

/// How often a stream without news says that it is still there. By that ipamd notices that its caller is not.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Lines of a stream that wait for a slow caller.
const STREAM_ROOM: usize = 64;

/// Serves one request.
pub(super) async fn handle(
    request: Request<Incoming>,
    node: Arc<NodeState>,
    timeout: Duration,
    stop: watch::Receiver<bool>,
) -> Answer {
    let (parts, body) = request.into_parts();
    let path = decode(parts.uri.path());
    match (&parts.method, path.as_str()) {
        (&Method::POST, path::ADD) => {
            let span = |r: &ipamd_api::AddRequest| call_span("add", &r.attachment);
            timed(body, timeout, node, span, NodeState::add).await
        }
        (&Method::POST, path::ALLOCATE) => {
            let span = |r: &ipamd_api::AllocateRequest| call_span("allocate", &r.attachment);
            timed(body, timeout, node, span, NodeState::allocate).await
        }
        (&Method::POST, path::DEL) => {
            let span = |r: &ipamd_api::DelRequest| call_span("del", &r.attachment);
            timed(body, timeout, node, span, NodeState::del).await
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
        (&Method::POST, path::PUBLISH) => {
            let span =
                |r: &ipamd_api::PublishRequest| tracing::info_span!("publish", container = r.container);
            post(body, timeout, node, span, Attachments::publish).await
        }
        (&Method::POST, path::UNPUBLISH) => {
            let span =
                |r: &ipamd_api::UnpublishRequest| tracing::info_span!("unpublish", container = r.container);
            post(body, timeout, node, span, |a, r| a.unpublish(r).map(|()| Empty {})).await
        }
        (&Method::POST, path::NAMES) => {
            let span = |r: &ipamd_api::AddNameRequest| {
                tracing::info_span!("name-add", network = r.network, name = r.name)
            };
            post(body, timeout, node, span, Attachments::add_name).await
        }
        (&Method::POST, path::REMOVE_NAME) => {
            let span = |r: &ipamd_api::RemoveNameRequest| {
                tracing::info_span!("name-rm", network = r.network, name = r.name)
            };
            post(body, timeout, node, span, |a, r| a.remove_name(r).map(|()| Empty {})).await
        }
        (&Method::POST, path::APPLY) => {
            let span = |r: &ipamd_api::ApplyRequest| {
                tracing::info_span!(
                    "apply",
                    documents = r.documents.len(),
                    remove = r.remove,
                    dry_run = r.dry_run
                )
            };
            post(body, timeout, node, span, Attachments::apply_documents).await
        }
        (&Method::POST, path::FLOWS) => {
            let span = |_: &FlowFilter| tracing::info_span!("flows");
            post(body, timeout, node, span, Attachments::flows).await
        }
        (&Method::POST, path::FLUSH) => {
            let span = |_: &FlowFilter| tracing::info_span!("flush");
            post(body, timeout, node, span, Attachments::flush_flows).await
        }
        (&Method::POST, path::TRACE) => {
            let span = |r: &ipamd_api::TraceRequest| tracing::info_span!("trace", from = r.from, to = r.to);
            timed(body, timeout, node, span, |node, _, request| node.trace(request)).await
        }
        (&Method::POST, path::UNINSTALL) => {
            let request: ipamd_api::UninstallRequest = read(body, timeout).await?;
            blocking(node, move |n| n.uninstall(request)).await
        }
        (&Method::POST, path::DRAIN_NODE) => {
            let request: ipamd_api::DrainRequest = read(body, timeout).await?;
            blocking(node, move |n| n.drain_node(request)).await
        }
        (&Method::POST, path::REMOVE_NODE) => {
            let request: ipamd_api::RemoveNodeRequest = read(body, timeout).await?;
            blocking(node, move |n| n.remove_node(request)).await
        }
        (&Method::GET, path::NODES) => blocking(node, NodeState::node_views).await,
        (&Method::GET, path::DOCTOR) => blocking(node, |n| Ok(n.doctor())).await,
        (&Method::GET, path::PUBLISH) => blocking(node, |n| Ok(n.attachments.published())).await,
        (&Method::GET, path::TRAFFIC) => blocking(node, |n| n.attachments.traffic()).await,
        (&Method::GET, path::DROPS) => blocking(node, NodeState::drops).await,
        (&Method::GET, path::DROPS_FOLLOW) => Ok(follow_drops(&node, stop)),
        (&Method::GET, path::HISTORY) => blocking(node, |n| Ok(n.history())).await,
        (&Method::GET, path::HISTORY_FOLLOW) => Ok(follow_calls(&node, stop)),
        (&Method::GET, path::DNS_STATS) => blocking(node, NodeState::dns_stats).await,
        (&Method::GET, path::DNS_FOLLOW) => Ok(follow_questions(&node, stop)),
        (&Method::POST, path::DNS_QUERY) => {
            let request: ipamd_api::DnsQueryRequest = read(body, timeout).await?;
            blocking(node, move |n| n.dns_query(&request)).await
        }
        (&Method::POST, path::DNS_FLUSH) => {
            blocking(node, |n| {
                n.dns.flush();
                Ok(Empty {})
            })
            .await
        }
        (&Method::GET, path::NAMES) => blocking(node, |n| n.attachments.name_views(None)).await,
        (&Method::GET, path::METRICS) => {
            let text = node.metrics.exposition(Arc::clone(&node)).await?;
            Ok(Reply::Text(text, metrics::CONTENT_TYPE))
        }
        (&Method::GET, path::STATUS) => blocking(node, |n| Ok(n.status())).await,
        (&Method::GET, path::NETWORKS) => blocking(node, |n| Ok(n.attachments.network_views())).await,
        (&Method::GET, path::POOLS) => blocking(node, |n| Ok(n.attachments.pools())).await,
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
    if let Some(name) = name_after(path::POOLS)
        && method == Method::GET
    {
        return blocking(node, move |n| n.attachments.pools_of(&name)).await;
    }
    if let Some(name) = name_after(path::NAMES)
        && method == Method::GET
    {
        return blocking(node, move |n| n.attachments.name_views(Some(&name))).await;
    }
    if let Some(name) = name_after(path::NODES)
        && method == Method::GET
    {
        return blocking(node, move |n| n.node_view(&name)).await;
    }
    if let Some(what) = name_after(path::INSPECT)
        && method == Method::GET
    {
        if let Some(name) = what.strip_prefix("node/").map(str::to_owned) {
            return blocking(node, move |n| n.inspect_node(&name)).await;
        }
        return blocking(node, move |n| n.inspect(&what)).await;
    }
    let msg =
        format!("{method} {path} is not in version {API_VERSION} of the API; use binaries of one release");
    Err(ApiError::new(ErrorCode::NotFound, msg))
}

/// Sampled drops as lines.
fn follow_drops(node: &NodeState, stop: watch::Receiver<bool>) -> Reply {
    lines(node.drop_feed.follow(), stop, serde_json::to_vec)
}

/// Calls as they are answered, as lines.
fn follow_calls(node: &NodeState, stop: watch::Receiver<bool>) -> Reply {
    lines(node.calls.follow(), stop, serde_json::to_vec)
}

/// Questions that the resolver answered, as lines.
fn follow_questions(node: &Arc<NodeState>, stop: watch::Receiver<bool>) -> Reply {
    let asked = Arc::clone(node);
    lines(node.dns.follow(), stop, move |answered| {
        let attachment = answered.asker.and_then(|endpoint| asked.attachments.attachment_of(endpoint));
        serde_json::to_vec(&question_view(answered, attachment))
    })
}

/// What is told, as lines, until the caller hangs up or ipamd stops.
fn lines<T: Send + Sync + 'static>(
    mut told: broadcast::Receiver<Arc<T>>,
    mut stop: watch::Receiver<bool>,
    line_of: impl Fn(&T) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Reply {
    let (sender, lines) = mpsc::channel(STREAM_ROOM);
    tokio::spawn(async move {
        loop {
            let line = tokio::select! {
                one = told.recv() => match one {
                    Ok(one) => line_of(&one).unwrap_or_default(),
                    // Too slow: what was missed is gone, what comes is shown.
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = tokio::time::sleep(HEARTBEAT) => Vec::new(),
                _ = stop.wait_for(|stop| *stop) => return,
                () = sender.closed() => return,
            };
            let line = Bytes::from([line, b"\n".to_vec()].concat());
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    Reply::Lines(lines)
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
    timed(body, timeout, node, span, move |node, _, request| work(&node.attachments, request)).await
}

/// The same of calls that want to know when their request began to come.
async fn timed<R, A, W>(
    body: Incoming,
    timeout: Duration,
    node: Arc<NodeState>,
    span: impl Fn(&R) -> tracing::Span,
    work: W,
) -> Answer
where
    R: DeserializeOwned + Send + 'static,
    A: Serialize + 'static,
    W: Fn(&NodeState, Instant, &R) -> Result<A, ApiError> + Send + 'static,
{
    let begun = Instant::now();
    let request: R = read(body, timeout).await?;
    let span = span(&request);
    blocking(node, move |n| {
        span.in_scope(|| {
            let answer = work(n, begun, &request);
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
        let body = serde_json::to_vec(&answer);
        body.map(Reply::Whole).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))
    });
    done.await.unwrap_or_else(|e| {
        Err(ApiError::new(ErrorCode::Internal, format!("the call failed inside ipamd: {e}")))
    })
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
