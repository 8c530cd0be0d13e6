//! Answers and their way into HTTP: a JSON body, a stream of lines, or an error with its status.

use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    body::{Body as HttpBody, Bytes, Frame},
    header::{CONTENT_TYPE, HeaderValue},
};
use ipamd_api::{ApiError, ErrorCode};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// What a call answers.
pub(super) enum Reply {
    /// A JSON body.
    Whole(Vec<u8>),
    /// Text that is no JSON, and its type.
    Text(Bytes, &'static str),
    /// Lines as they come; the stream ends with its sender.
    Lines(mpsc::Receiver<Bytes>),
}

/// A reply, or the error.
pub(super) type Answer = Result<Reply, ApiError>;

/// Body of a response.
pub(super) type Body = Either<Full<Bytes>, Lines>;

/// A body that goes on while there are lines.
pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// The response of an answer.
pub(super) fn render(answer: Answer) -> Response<Body> {
    let (status, body) = match answer {
        Ok(Reply::Whole(body)) => (StatusCode::OK, body),
        Ok(Reply::Text(text, kind)) => return typed(Body::Left(Full::new(text)), kind),
        Ok(Reply::Lines(lines)) => return typed(Body::Right(Lines(lines)), "application/jsonl"),
        Err(error) => {
            let status = error.code().map_or(500, ErrorCode::http_status);
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, serde_json::to_vec(&error).unwrap_or_default())
        }
    };
    let mut response = typed(Body::Left(Full::new(Bytes::from(body))), "application/json");
    *response.status_mut() = status;
    response
}

fn typed(body: Body, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
