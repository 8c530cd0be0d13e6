//! A blocking client of the API: one HTTP/1.1 request per connection over a unix socket, no async runtime.

mod chunked;
mod lines;

pub use lines::Lines;

use crate::{API_VERSION, ApiError, SOCKET_NAME};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// Answers above this are refused: the largest real one, a list of 10,000 endpoints, is about 10 MB.
const MAX_ANSWER: u64 = 64 << 20;

/// Most header fields an answer may have.
const MAX_HEADERS: usize = 32;

/// Where ipamd listens, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Why a call had no answer, or the error that was the answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: ipamd is not running.
    #[error("ipamd does not answer at {socket}: {cause}; start ipamd, or pass the run directory it uses")]
    Unavailable {
        /// The socket.
        socket: PathBuf,
        /// What connecting said.
        cause: io::Error,
    },
    /// The connection broke or timed out after it was made.
    #[error("ipamd at {socket} took the call but did not answer it: {cause}; look at its log")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What reading or writing said.
        cause: io::Error,
    },
    /// The answer is not what this client understands.
    #[error(
        "ipamd at {socket} answered what this client (API version {API_VERSION}) does not understand: {cause}; use binaries of one release"
    )]
    Misunderstood {
        /// The socket.
        socket: PathBuf,
        /// What was wrong.
        cause: String,
    },
    /// ipamd answered with an error.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl Client {
    /// A client of the ipamd whose run directory is `run_dir`. A call may take 60 s.
    pub fn new(run_dir: &Path) -> Self {
        Self { socket: run_dir.join(SOCKET_NAME), timeout: Duration::from_secs(60) }
    }

    /// The same with another limit for each read and write.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The socket it talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.call("GET", path, &[])
    }

    /// DELETE.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.call("DELETE", path, &[])
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<B: Serialize, A: DeserializeOwned>(&self, path: &str, body: &B) -> Result<A, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.misunderstood(e.to_string()))?;
        self.call("POST", path, &body)
    }

    fn call<A: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<A, ClientError> {
        let (status, answer) = self.exchange(method, path, body)?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, method, path, &answer));
        }
        serde_json::from_slice(&answer).map_err(|e| self.misunderstood(e.to_string()))
    }

    /// The error that an answer with a status of refusal is.
    fn refusal(&self, status: u16, method: &str, path: &str, body: &[u8]) -> ClientError {
        serde_json::from_slice::<ApiError>(body).map_or_else(
            |_| self.misunderstood(format!("HTTP status {status} for {method} {path} without an error body")),
            ClientError::from,
        )
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
        let (stream, sent) = self.send(method, path, body)?;
        let mut answer = Vec::new();
        let received = stream.take(MAX_ANSWER).read_to_end(&mut answer);
        if answer.is_empty() {
            let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(self.broken(sent.err().or(received.err()).unwrap_or_else(closed)));
        }
        self.parse(&answer)
    }

    /// Connects and sends a request. A refusal can come before the body is read whole (too large, not permitted); its text is still
    /// worth reading, so what sending said comes beside the connection.
    fn send(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(UnixStream, io::Result<()>), ClientError> {
        let unavailable = |cause| ClientError::Unavailable { socket: self.socket.clone(), cause };
        let mut stream = self.connect().map_err(unavailable)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(|e| self.broken(e))?;
        stream.set_write_timeout(Some(self.timeout)).map_err(|e| self.broken(e))?;
        let mut request = format!(
            "{method} {} HTTP/1.1\r\nHost: ipamd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            encode(path),
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let sent = stream.write_all(&request);
        Ok((stream, sent))
    }

    /// Connects within the limit. A plain connect waits for ever once a daemon that hangs has its backlog full; the
    /// send timeout bounds that wait (`unix_stream_connect` in net/unix/af_unix.c) and ends it with EAGAIN.
    fn connect(&self) -> io::Result<UnixStream> {
        let unconnected = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let seconds = self.timeout.as_secs().try_into().unwrap_or(i64::MAX);
        let limit = TimeVal::new(seconds, self.timeout.subsec_micros().into());
        setsockopt(&unconnected, sockopt::SendTimeout, &limit)?;
        connect(unconnected.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        Ok(unconnected.into())
    }

    fn parse(&self, answer: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
        let Some(head) = Head::of(answer).map_err(|e| self.misunderstood(e))? else {
            return Err(self.misunderstood("half a header".into()));
        };
        let body = &answer[head.size..];
        match head.content_length {
            Some(length) if length <= body.len() => Ok((head.status, body[..length].to_vec())),
            Some(length) => {
                Err(self.misunderstood(format!("{} of {length} bytes of the answer came", body.len())))
            }
            None => Err(self.misunderstood("no content-length in the answer".into())),
        }
    }

    fn broken(&self, cause: io::Error) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), cause }
    }

    fn misunderstood(&self, cause: String) -> ClientError {
        ClientError::Misunderstood { socket: self.socket.clone(), cause }
    }
}

/// What the beginning of an answer says about the rest.
struct Head {
    /// Bytes of it; the body follows.
    size: usize,
    status: u16,
    content_length: Option<usize>,
    chunked: bool,
}

impl Head {
    /// `None`: there is more of it to come.
    fn of(answer: &[u8]) -> Result<Option<Self>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(size) = response.parse(answer).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let value = |name: &str| {
            let header = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
            Some(std::str::from_utf8(header.value).ok()?.trim())
        };
        Ok(Some(Self {
            size,
            status: response.code.unwrap_or_default(),
            content_length: value("content-length").and_then(|v| v.parse().ok()),
            chunked: value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")),
        }))
    }
}

/// Percent-encodes what may not stand in a request target (RFC 3986, section 2.1); `/` stays.
fn encode(path: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b':' => {
                out.push(byte.into());
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::BufRead, os::unix::net::UnixListener, thread};

    /// A server that answers one request with `answer` and returns the request line.
    fn serve(answer: &'static str) -> (tempfile::TempDir, thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let handle = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            std::io::BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            line
        });
        (dir, handle)
    }

    #[test]
    fn a_refusal_is_the_error_of_the_daemon() {
        let (dir, server) = serve(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 42\r\n\r\n{\"code\":107,\"msg\":\"no network n\",\"x\":1234}",
        );
        let error = Client::new(dir.path()).get::<serde_json::Value>("/v1/networks/a b").unwrap_err();
        assert!(matches!(error, ClientError::Refused(ApiError { code: 107, .. })), "{error}");
        assert_eq!(server.join().unwrap(), "GET /v1/networks/a%20b HTTP/1.1\r\n");
    }

    #[test]
    fn a_daemon_that_hangs_with_a_full_backlog_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        let client = Client::new(dir.path()).with_timeout(Duration::from_millis(50));
        let error = client.get::<serde_json::Value>("/v1/status").unwrap_err();
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    }

    #[test]
    fn nobody_there_and_half_an_answer_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let error = Client::new(dir.path()).get::<serde_json::Value>("/v1/status").unwrap_err();
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
        for half in [
            "HTTP/1.1 200 OK\r\ncontent-le",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\n\r\n{}",
        ] {
            let (dir, server) = serve(half);
            let error = Client::new(dir.path()).get::<serde_json::Value>("/v1/status").unwrap_err();
            assert!(matches!(error, ClientError::Misunderstood { .. }), "{error}");
            server.join().unwrap();
        }
    }
}
