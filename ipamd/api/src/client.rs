//! A blocking client of the API: one HTTP/1.1 request per connection over a unix socket, no async runtime.

use crate::{API_VERSION, ApiError, SOCKET_NAME};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// Answers above this are refused: the largest real one, a list of 10,000 endpoints, is about 10 MB.
const MAX_ANSWER: u64 = 64 << 20;

/// Most header fields an answer may have.
const MAX_HEADERS: usize = 32;

/// Longest header of an answer.
const MAX_HEAD: usize = 1 << 16;

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

    /// GET of a stream: its lines as they come, empty ones left out. HTTP/1.0, in which an answer goes on until the connection
    /// ends.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let broken = |cause| ClientError::Broken { socket: self.socket.clone(), cause };
        let mut stream = self.open()?;
        stream.write_all(&request("GET", path, "1.0", &[])).map_err(broken)?;
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > MAX_HEAD || stream.read_until(b'\n', &mut head).map_err(broken)? == 0 {
                return Err(self.misunderstood("half a header".into()));
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&head).map_err(|e| self.misunderstood(e.to_string()))?;
        if response.code == Some(200) {
            return Ok(Lines { stream, client: self.clone() });
        }
        let mut body = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut body).map_err(broken)?;
        Err(self.refusal(response.code.unwrap_or_default(), "GET", path, &body))
    }

    fn call<A: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<A, ClientError> {
        let (status, answer) = self.exchange(method, path, body)?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&answer).map_err(|e| self.misunderstood(e.to_string()));
        }
        Err(self.refusal(status, method, path, &answer))
    }

    fn refusal(&self, status: u16, method: &str, path: &str, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ApiError>(body) {
            Ok(error) => error.into(),
            Err(_) => {
                self.misunderstood(format!("HTTP status {status} for {method} {path} without an error body"))
            }
        }
    }

    fn open(&self) -> Result<UnixStream, ClientError> {
        let unavailable = |cause| ClientError::Unavailable { socket: self.socket.clone(), cause };
        let broken = |cause| ClientError::Broken { socket: self.socket.clone(), cause };
        let stream = self.connect().map_err(unavailable)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(broken)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(broken)?;
        Ok(stream)
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
        let broken = |cause| ClientError::Broken { socket: self.socket.clone(), cause };
        let mut stream = self.open()?;
        let request = request(method, path, "1.1", body);
        // A refusal can come before the body is read whole (too large, not permitted); its text is still worth reading.
        let sent = stream.write_all(&request);
        let mut answer = Vec::new();
        let received = stream.take(MAX_ANSWER).read_to_end(&mut answer);
        if answer.is_empty() {
            let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(broken(sent.err().or(received.err()).unwrap_or_else(closed)));
        }
        self.parse(&answer)
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
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(answer) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Err(self.misunderstood("half a header".into())),
            Err(cause) => return Err(self.misunderstood(cause.to_string())),
        };
        let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse::<usize>().ok());
        let body = &answer[head..];
        match (response.code, length) {
            (Some(code), Some(length)) if length <= body.len() => Ok((code, body[..length].to_vec())),
            (_, Some(length)) => {
                Err(self.misunderstood(format!("{} of {length} bytes of the answer came", body.len())))
            }
            (_, None) => Err(self.misunderstood("no content-length in the answer".into())),
        }
    }

    fn misunderstood(&self, cause: String) -> ClientError {
        ClientError::Misunderstood { socket: self.socket.clone(), cause }
    }
}

/// The lines of a stream; see [`Client::lines`]. It ends when ipamd stops.
#[derive(Debug)]
pub struct Lines {
    stream: BufReader<UnixStream>,
    client: Client,
}

impl Iterator for Lines {
    type Item = Result<String, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim().is_empty() => {}
                Ok(_) => return Some(Ok(line)),
                Err(cause) => {
                    return Some(Err(ClientError::Broken { socket: self.client.socket.clone(), cause }));
                }
            }
        }
    }
}

fn request(method: &str, path: &str, version: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "{method} {} HTTP/{version}\r\nHost: ipamd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        encode(path),
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
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
    use std::{os::unix::net::UnixListener, thread};

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
    fn a_stream_is_read_line_by_line_until_it_ends() {
        let (dir, server) = serve("HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n{\"a\":1}\n\n{\"a\":2}\n");
        let lines: Result<Vec<_>, _> = Client::new(dir.path()).lines("/v1/drops/follow").unwrap().collect();
        assert_eq!(lines.unwrap(), ["{\"a\":1}\n", "{\"a\":2}\n"]);
        assert_eq!(server.join().unwrap(), "GET /v1/drops/follow HTTP/1.0\r\n");
        let (dir, server) =
            serve("HTTP/1.0 403 Forbidden\r\ncontent-length: 28\r\n\r\n{\"code\":114,\"msg\":\"not you\"}");
        let error = Client::new(dir.path()).lines("/v1/drops/follow").unwrap_err();
        assert!(matches!(error, ClientError::Refused(ApiError { code: 114, .. })), "{error}");
        server.join().unwrap();
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
