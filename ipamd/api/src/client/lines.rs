//! A stream of lines from the API: the body of an answer that goes on until one side ends it.

use super::{Client, ClientError, Head, chunked::Chunks};
use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

/// Longest line, and longest head of an answer.
const MAX_LINE: usize = 1 << 20;

/// Lines that ipamd sends, as they come; see [`Client::lines`]. As an iterator it waits for each, and ends when ipamd ends the stream.
/// Whoever has other things to wait for polls the descriptor, takes [`Lines::more`] and then what is [`Lines::buffered`]. Dropping
/// it ends the stream.
#[derive(Debug)]
pub struct Lines {
    client: Client,
    stream: UnixStream,
    chunks: Chunks,
    /// What has come and was not taken yet.
    body: Vec<u8>,
}

impl Iterator for Lines {
    type Item = Result<String, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.buffered() {
                Ok(None) => match self.more() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                },
                line => return line.transpose(),
            }
        }
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Client {
    /// GET of a stream of lines. The client's limit holds for the beginning of the answer, not for what follows.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let (mut stream, sent) = self.send("GET", path, &[])?;
        let mut answer = Vec::new();
        let head = loop {
            if let Some(head) = Head::of(&answer).map_err(|e| self.misunderstood(e))? {
                break head;
            }
            if answer.len() > MAX_LINE {
                return Err(self.misunderstood("a header without an end".into()));
            }
            match read(&mut stream, &mut answer) {
                Ok(0) if answer.is_empty() => {
                    let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(self.broken(sent.err().unwrap_or(closed)));
                }
                Ok(0) => return Err(self.misunderstood("half a header".into())),
                Ok(_) => {}
                Err(cause) => return Err(self.broken(cause)),
            }
        };
        if !(200..300).contains(&head.status) {
            stream.take(super::MAX_ANSWER).read_to_end(&mut answer).map_err(|e| self.broken(e))?;
            let (status, body) = self.parse(&answer)?;
            return Err(self.refusal(status, "GET", path, &body));
        }
        if !head.chunked {
            return Err(self.misunderstood("an answer in one piece where a stream was asked for".into()));
        }
        stream.set_read_timeout(None).map_err(|e| self.broken(e))?;
        let mut lines = Lines { client: self.clone(), stream, chunks: Chunks::default(), body: Vec::new() };
        lines.accept(&answer[head.size..])?;
        Ok(lines)
    }
}

impl Lines {
    /// The next line that has come whole, without its end. Empty ones, which only say that ipamd is there, are left out.
    ///
    /// # Errors
    /// It is no text.
    pub fn buffered(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            let Some(end) = self.body.iter().position(|b| *b == b'\n') else { return Ok(None) };
            let mut line: Vec<u8> = self.body.drain(..=end).collect();
            line.pop();
            if !line.is_empty() {
                let line = String::from_utf8(line);
                return line.map(Some).map_err(|e| self.client.misunderstood(e.to_string()));
            }
        }
    }

    /// Waits for more; false when ipamd has ended the stream.
    ///
    /// # Errors
    /// The connection broke, or what came is no stream of lines.
    pub fn more(&mut self) -> Result<bool, ClientError> {
        if self.chunks.ended() {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        match read(&mut self.stream, &mut bytes) {
            Ok(0) => Err(self.client.broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => self.accept(&bytes).map(|()| true),
            Err(cause) => Err(self.client.broken(cause)),
        }
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let fed = self.chunks.feed(bytes, &mut self.body);
        fed.map_err(|cause| self.client.misunderstood(cause))?;
        let begun = self.body.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        if self.body.len() - begun > MAX_LINE {
            return Err(self.client.misunderstood(format!("a line of more than {MAX_LINE} bytes")));
        }
        Ok(())
    }
}

/// Appends what one read brings; 0 at the end.
fn read(stream: &mut UnixStream, to: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
            Ok(count) => {
                to.extend_from_slice(&buffer[..count]);
                return Ok(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApiError, SOCKET_NAME};
    use std::{io::Write, os::unix::net::UnixListener, thread};

    /// A server that answers one request with `pieces`, each when the one before was read.
    fn serve(pieces: &'static [&'static str]) -> (tempfile::TempDir, thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let handle = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(super::read(&mut stream, &mut request).unwrap() > 0);
            }
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
            }
        });
        (dir, handle)
    }

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn lines_come_whole_however_they_are_sent() {
        let (dir, server) = serve(&[
            "HTTP/1.1 200 OK\r\ncontent-type: x\r\ntransfer-",
            "encoding: chunked\r\n\r\n4\r\n{\"a\"\r\n",
            "1\r\n\n\r\n9\r\n:1}\n\n{}\n{\r\n2\r\n}\n\r\n0\r\n\r\n",
        ]);
        let mut stream = Client::new(dir.path()).lines("/v1/drops/follow").unwrap();
        let lines: Vec<String> = stream.by_ref().map(Result::unwrap).collect();
        assert_eq!(lines, ["{\"a\"", ":1}", "{}", "{}"]);
        assert!(stream.next().is_none());
        server.join().unwrap();
    }

    #[test]
    fn a_stream_that_breaks_off_is_told_from_one_that_ends() {
        let (dir, server) = serve(&[CHUNKED, "3\r\n{}\n\r\n"]);
        let mut lines = Client::new(dir.path()).lines("/v1/drops/follow").unwrap();
        server.join().unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "{}");
        let broken = lines.next().unwrap().unwrap_err();
        assert!(matches!(broken, ClientError::Broken { .. }), "{broken}");
    }

    #[test]
    fn a_refusal_and_an_answer_in_one_piece_are_no_streams() {
        let (dir, server) = serve(&[
            "HTTP/1.1 404 Not Found\r\ncontent-length: 28\r\n\r\n",
            "{\"code\":115,\"msg\":\"no such\"}",
        ]);
        let error = Client::new(dir.path()).lines("/v1/drops/follow").unwrap_err();
        server.join().unwrap();
        assert!(matches!(error, ClientError::Refused(ApiError { code: 115, .. })), "{error}");
        for pieces in [&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"][..], &["HTTP/1.1 200 OK\r\nx"]] {
            let (dir, server) = serve(pieces);
            let error = Client::new(dir.path()).lines("/v1/drops/follow").unwrap_err();
            server.join().unwrap();
            assert!(matches!(error, ClientError::Misunderstood { .. }), "{error}");
        }
        let nobody = tempfile::tempdir().unwrap();
        let error = Client::new(nobody.path()).lines("/v1/drops/follow").unwrap_err();
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    }
}
