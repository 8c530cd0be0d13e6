//! Messages built by hand, so that every field can be wrong on purpose.

pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const PTR: u16 = 12;
pub(crate) const OPT: u16 = 41;
pub(crate) const IN: u16 = 1;

/// Recursion desired.
pub(crate) const RD: u16 = 0x0100;
/// Authentic data, checking disabled.
pub(crate) const AD: u16 = 0x0020;
pub(crate) const CD: u16 = 0x0010;

/// A question, before it is bytes.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// Of questions, answers, authorities and additional records.
    pub(crate) counts: [u16; 4],
    /// The question's name, the root's zero included.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// What follows the question.
    pub(crate) rest: Vec<u8>,
}

/// A plain question.
pub(crate) fn query(name: &str, kind: u16) -> Query {
    Query { id: 0x1234, flags: RD, counts: [1, 0, 0, 0], name: wire(name), kind, class: IN, rest: Vec::new() }
}

impl Query {
    /// The same with EDNS.
    pub(crate) fn edns(self, version: u8, flags: u16, options: &[u8]) -> Self {
        let counts = [1, 0, 0, 1];
        Self { counts, rest: opt(4096, [0, version], flags, options), ..self }
    }

    /// On the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let [a, b, c, d] = self.counts;
        let head = [self.id, self.flags, a, b, c, d].map(u16::to_be_bytes).concat();
        let tail = [self.kind, self.class].map(u16::to_be_bytes).concat();
        [head, self.name.clone(), tail, self.rest.clone()].concat()
    }
}

/// A name in wire form, letters as they are.
pub(crate) fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> =
        labels.flat_map(|l| [&[u8::try_from(l.len()).unwrap()], l.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

/// An OPT (RFC 6891): size, extended code and version, flags, options.
pub(crate) fn opt(size: u16, [code, version]: [u8; 2], flags: u16, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(OPT.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend([code, version]);
    bytes.extend(flags.to_be_bytes());
    bytes.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    bytes.extend(options);
    bytes
}

/// A record whose name is the question's.
pub(crate) fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc0, 12];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(IN.to_be_bytes());
    bytes.extend(ttl.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}
