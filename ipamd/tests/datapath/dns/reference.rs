//! A naive answerer of messages: slow, and by other means than the programs. What it does not answer, they must not.

use super::message::{A, AAAA, IN, OPT, PTR, opt, record};
use ipamd::{datapath::NameRow, dns::DomainName};
use std::net::IpAddr;

/// The longest message that is understood, and the longest name that is looked up.
const LONGEST: usize = 252;
const LONGEST_NAME: usize = 60;

/// A message read: name, type, class, and what follows.
struct Question<'a> {
    name: DomainName,
    kind: u16,
    class: u16,
    rest: &'a [u8],
    /// Where the question ends.
    end: usize,
}

/// The answer to a message of a sandbox on `network`, sent from `port`; `None`: it is not the programs' to answer.
pub(crate) fn answer(rows: &[NameRow], network: u32, port: u16, message: &[u8]) -> Option<Vec<u8>> {
    let head: [u8; 12] = message.get(..12)?.try_into().ok()?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (flags, additional) = (word(2), word(10));
    if flags & !0x0130 != 0 || (word(4), word(6), word(8)) != (1, 0, 0) || message.len() > LONGEST {
        return None;
    }
    let question = read(message)?;
    if question.class != IN {
        return None;
    }
    let edns = match additional {
        0 if question.rest.is_empty() => None,
        1 => Some(read_opt(question.rest)?),
        _ => return None,
    };
    let turn = usize::from(u16::from_le_bytes([head[0], head[1]]) ^ port.swap_bytes());
    let records = look_up(rows, network, &question, turn)?;
    let mut answer = head.to_vec();
    answer[2] = 0x84 | head[2] & 1;
    answer[3] = 0x80 | head[3] & 0x10;
    answer[7] = u8::try_from(records.len()).unwrap();
    answer.extend(&message[12..question.end]);
    answer.extend(records.concat());
    answer.extend(edns.map(|dnssec| opt(1232, [0, 0], dnssec, &[])).unwrap_or_default());
    Some(answer)
}

fn read(message: &[u8]) -> Option<Question<'_>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => labels.push(message.get(at..at + length)?),
            _ => return None,
        }
        at += length;
    }
    let tail: [u8; 4] = message.get(at..at + 4)?.try_into().ok()?;
    let [k1, k2, c1, c2] = tail;
    Some(Question {
        name: DomainName::of_labels(labels).ok()?,
        kind: u16::from_be_bytes([k1, k2]),
        class: u16::from_be_bytes([c1, c2]),
        rest: message.get(at + 4..)?,
        end: at + 4,
    })
}

/// The bit DO of the one OPT that this is.
fn read_opt(rest: &[u8]) -> Option<u16> {
    let head: [u8; 11] = rest.get(..11)?.try_into().ok()?;
    let options = usize::from(u16::from_be_bytes([head[9], head[10]]));
    let kind = u16::from_be_bytes([head[1], head[2]]);
    let plain = head[0] == 0 && kind == OPT && head[5] == 0 && head[6] == 0 && rest.len() == 11 + options;
    plain.then(|| u16::from_be_bytes([head[7] & 0x80, 0]))
}

fn look_up(rows: &[NameRow], of: u32, question: &Question<'_>, turn: usize) -> Option<Vec<Vec<u8>>> {
    if question.kind == PTR {
        let wanted = question.name.address()?;
        return rows.iter().find_map(|row| match row {
            NameRow::Pointer { network, address, ttl, target } if (*network, *address) == (of, wanted) => {
                let data = [target.wire(), &[0]].concat();
                Some(vec![record(PTR, *ttl, &data)])
            }
            _ => None,
        });
    }
    let is_family: fn(&IpAddr) -> bool = match question.kind {
        A => IpAddr::is_ipv4,
        AAAA => IpAddr::is_ipv6,
        _ => return None,
    };
    if question.name.is_root() || question.name.wire().len() > LONGEST_NAME {
        return None;
    }
    let named = |wanted: &DomainName| {
        rows.iter().find_map(|row| match row {
            NameRow::Name { network, name, ttl, addresses } if (*network, name) == (of, wanted) => {
                Some((*ttl, addresses))
            }
            _ => None,
        })
    };
    let (ttl, addresses) = named(&question.name).or_else(|| {
        let (first, rest) = question.name.split_first()?;
        let domain = NameRow::Domain { network: of, name: rest };
        rows.contains(&domain).then(|| named(&first)).flatten()
    })?;
    if addresses.is_empty() {
        return None;
    }
    let mut of_family: Vec<&IpAddr> = addresses.iter().filter(|a| is_family(a)).collect();
    if !of_family.is_empty() {
        let first = turn % of_family.len();
        of_family.rotate_left(first);
    }
    let data = |address: &&IpAddr| match address {
        IpAddr::V4(a) => record(A, ttl, &a.octets()),
        IpAddr::V6(a) => record(AAAA, ttl, &a.octets()),
    };
    Some(of_family.iter().map(data).collect())
}
