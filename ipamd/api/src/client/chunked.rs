//! Chunked transfer encoding (RFC 9112, section 7.1), undone as the bytes come. Pure.

/// Most bytes that a chunk's size or a trailer may take: no server writes extensions.
const MAX_LINE: usize = 1024;

/// An undone body so far.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// What has come and is not judged yet.
    pending: Vec<u8>,
    expected: Expected,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Expected {
    #[default]
    Size,
    Bytes(u64),
    /// The line end behind a chunk.
    LineEnd,
    /// Lines behind the last chunk, up to an empty one.
    Trailer,
    Nothing,
}

impl Chunks {
    /// Takes bytes as they came and appends what they carry to `body`.
    ///
    /// # Errors
    /// They are no chunks, in words.
    pub(super) fn feed(&mut self, bytes: &[u8], body: &mut Vec<u8>) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        while let Some((used, next)) = self.step(body)? {
            self.pending.drain(..used);
            self.expected = next;
        }
        Ok(())
    }

    /// Whether the last chunk has come.
    pub(super) fn ended(&self) -> bool {
        self.expected == Expected::Nothing
    }

    /// How many pending bytes say what, and what is expected behind them; `None`: more has to come first.
    fn step(&self, body: &mut Vec<u8>) -> Result<Option<(usize, Expected)>, String> {
        let pending = self.pending.as_slice();
        match self.expected {
            Expected::Size => match httparse::parse_chunk_size(pending) {
                Ok(httparse::Status::Complete((used, 0))) => Ok(Some((used, Expected::Trailer))),
                Ok(httparse::Status::Complete((used, size))) => Ok(Some((used, Expected::Bytes(size)))),
                Ok(httparse::Status::Partial) => self.short("the size of a chunk").map(|()| None),
                Err(_) => Err("a chunk without a size".to_owned()),
            },
            Expected::Bytes(0) => Ok(Some((0, Expected::LineEnd))),
            Expected::Bytes(_) if pending.is_empty() => Ok(None),
            Expected::Bytes(left) => {
                let used = usize::try_from(left).map_or(pending.len(), |left| left.min(pending.len()));
                body.extend_from_slice(&pending[..used]);
                Ok(Some((used, Expected::Bytes(left - used as u64))))
            }
            Expected::LineEnd => match pending {
                [b'\r', b'\n', ..] => Ok(Some((2, Expected::Size))),
                [] | [b'\r'] => Ok(None),
                _ => Err("a chunk that is longer than its size".to_owned()),
            },
            Expected::Trailer => match pending.iter().position(|b| *b == b'\n') {
                Some(end) if pending[..end].iter().all(|b| *b == b'\r') => {
                    Ok(Some((end + 1, Expected::Nothing)))
                }
                Some(end) => Ok(Some((end + 1, Expected::Trailer))),
                None => self.short("a trailer").map(|()| None),
            },
            Expected::Nothing => Ok(None),
        }
    }

    fn short(&self, what: &str) -> Result<(), String> {
        if self.pending.len() > MAX_LINE {
            Err(format!("{what} of more than {MAX_LINE} bytes"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn undone(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), String> {
        let (mut chunks, mut body) = (Chunks::default(), Vec::new());
        for piece in pieces {
            chunks.feed(piece, &mut body)?;
        }
        Ok((body, chunks.ended()))
    }

    #[test]
    fn chunks_are_undone() {
        for (what, sent, body, ended) in [
            ("nothing", &b""[..], &b""[..], false),
            ("one, more to come", b"3\r\nabc\r\n", b"abc", false),
            ("its line end is on the way", b"3\r\nabc\r", b"abc", false),
            ("two and the end", b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", true),
            ("half a chunk", b"5\r\nab", b"ab", false),
            ("a trailer", b"1\r\na\r\n0\r\nx: y\r\n\r\n", b"a", true),
            ("the end without its last line", b"0\r\n", b"", false),
        ] {
            assert_eq!(undone(&[sent]), Ok((body.to_vec(), ended)), "{what}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        let endless = [b'x'; MAX_LINE + 2];
        for sent in [&b"{}\n"[..], b"-1\r\n", b"3\r\nabcd\r\n", b"ffffffffffffffffff\r\n", &endless] {
            assert!(undone(&[sent]).is_err(), "{sent:?}");
        }
        assert!(undone(&[b"0\r\n", &endless]).is_err());
        assert!(undone(&[b"1;", &endless]).is_err());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_reads_end(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut sent = Vec::new();
            for chunk in &chunks {
                sent.extend(format!("{:x}\r\n", chunk.len()).bytes());
                sent.extend(chunk);
                sent.extend(b"\r\n");
            }
            sent.extend(b"0\r\n\r\n");
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len())).collect();
            ends.extend([0, sent.len()]);
            ends.sort_unstable();
            let pieces: Vec<&[u8]> = ends.windows(2).map(|w| &sent[w[0]..w[1]]).collect();
            prop_assert_eq!(undone(&pieces), Ok((chunks.concat(), true)));
        }

        #[test]
        fn no_bytes_break_it(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = undone(&pieces);
        }
    }
}
