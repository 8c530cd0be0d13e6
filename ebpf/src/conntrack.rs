//! Connection tracking: finding the flow of a packet, noting that it went by, making new flows.
//!
//! A flow is two entries (`ebpf_common::Conn`). While it is unanswered both are in `NEW_FLOWS`, where a flood evicts the oldest; its
//! first answer (of TCP: what the opener says to it) moves both to `FLOWS`, if the endpoint's quota allows. A packet writes its own entry only. What runs on two CPUs
//! at once loses a count at worst: which entry exists is decided by the map's own `BPF_NOEXIST`.

use crate::{
    clock::{REFRESH_NS, now},
    maps::{FLOWS, FLOWS_CLOSED, FLOWS_OPENED, NEW_FLOWS},
    nat::config,
    scratch::Scratch,
};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use core::{mem, ptr};
use ebpf_common::{
    CONN_FROM_POD, CONN_HOST, CONN_LOCAL, CONN_ORIGINAL, CONN_RESOLVER, Conn, SEEN_DATA, SEEN_FIN, SEEN_RST,
    SEEN_SYN, TCP, TCP_SYN, Tuple, is_syn, note, reopens,
};

/// Who asks for a flow: packets from the endpoint whose generation is given.
pub(crate) const SIDE_POD: u32 = 1;
/// Packets from any endpoint.
pub(crate) const SIDE_PODS: u32 = 2;
/// Packets that come to the node from outside.
pub(crate) const SIDE_OUTSIDE: u32 = 3;
/// Packets of the host that leave.
pub(crate) const SIDE_HOST: u32 = 4;

/// No flow.
pub(crate) const MISS: i32 = 0;
/// The packet belongs to a flow; what it becomes is in the scratch entry.
pub(crate) const HIT: i32 = 1;

/// The other entry of a flow is another flow's.
const LOST: u32 = 1 << 31;

/// The entry with this key, and whether it is still waiting for an answer.
#[inline(always)]
pub(crate) fn find(key: &Tuple) -> Option<(&'static mut Conn, bool)> {
    let (entry, is_new) = match FLOWS.get_ptr_mut(key) {
        Some(entry) => (entry, false),
        None => (NEW_FLOWS.get_ptr_mut(key)?, true),
    };
    // SAFETY: an entry is freed after a grace period, or (in the LRU) becomes another flow's: then one packet is counted for the
    // wrong flow. Programs on other CPUs write the same plain integers, of which any value is valid.
    Some((unsafe { &mut *entry }, is_new))
}

/// Whether the entry is one for packets that this side sees. An endpoint never uses an entry of another one, nor the outside
/// one of an endpoint's: a tuple can be made up.
#[inline(always)]
fn fits(conn: &Conn, side: u32, who: u64) -> bool {
    let host = conn.flags & (CONN_HOST | CONN_ORIGINAL) == CONN_HOST | CONN_ORIGINAL;
    match side {
        SIDE_POD => conn.flags & CONN_FROM_POD != 0 && sender(conn) == who,
        SIDE_PODS => conn.flags & CONN_FROM_POD != 0,
        SIDE_OUTSIDE => conn.flags & CONN_FROM_POD == 0 && !host,
        _ => host,
    }
}

/// Whether an endpoint of this generation is still there; zero is the host, or somebody outside. Entries outlive their endpoint until
/// the next sweep, and its address or port may be another's by then.
#[inline(always)]
pub(crate) fn is_alive(endpoint: u64) -> bool {
    // SAFETY: only its presence counts.
    endpoint == 0 || unsafe { FLOWS_OPENED.get(endpoint) }.is_some()
}

/// Generation of the endpoint that sends the packets of an entry.
#[inline(always)]
pub(crate) fn sender(conn: &Conn) -> u64 {
    if conn.flags & (CONN_LOCAL | CONN_ORIGINAL) == CONN_LOCAL | CONN_ORIGINAL {
        conn.opener
    } else {
        conn.endpoint
    }
}

/// Takes over what an entry says.
#[inline(always)]
fn take(s: &mut Scratch, conn: &Conn) {
    s.to = copy(&conn.to);
    s.flags = conn.flags;
    s.endpoint = conn.endpoint;
    s.opener = conn.opener;
}

/// The same tuple, by words: LLVM makes a call to `memmove` of a copy from one map to another, which goes byte by byte.
#[inline(always)]
fn copy(tuple: &Tuple) -> Tuple {
    let words = ptr::from_ref(tuple).cast::<u64>();
    // SAFETY: a tuple is five words, aligned as such, and any bits are one.
    unsafe {
        mem::transmute::<[u64; 5], Tuple>([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
            words.add(4).read_volatile(),
        ])
    }
}

/// Finds the flow of the packet (`s.key`) and notes that it went by: [`HIT`] or [`MISS`].
#[inline(never)]
pub(crate) fn track(s: &mut Scratch, side: u32, who: u64, bytes: u32) -> i32 {
    let Some((conn, is_new)) = find(&s.key) else {
        s.has_entry = false;
        return MISS;
    };
    let original = conn.flags & CONN_ORIGINAL != 0;
    // Both sides may ping each other with one identifier; a request is no answer.
    if !fits(conn, side, who) || s.echo_request().is_some_and(|request| request != original) {
        return MISS;
    }
    take(s, conn);
    let mut answered = !original;
    if is_new && original {
        match other_half(s) {
            LOST => return MISS,
            seen => answered = seen & (SEEN_SYN | SEEN_DATA) != 0 && seen & SEEN_RST == 0,
        }
    }
    let flags = s.transport.tcp_flags;
    let now = now();
    if s.key.protocol == TCP && is_syn(flags) {
        reopen(s, conn, now);
    }
    let seen = note(conn.seen, s.key.protocol, flags);
    if seen != conn.seen {
        conn.seen = seen;
    }
    if now.wrapping_sub(conn.last_seen) > REFRESH_NS {
        conn.last_seen = now;
    }
    conn.packets += 1;
    conn.bytes += u64::from(bytes);
    // Of TCP, the opener's word after the answer counts: a SYN from a made-up address is answered as well.
    if is_new && answered && (s.key.protocol != TCP || (original && flags & TCP_SYN == 0)) {
        promote(s, conn);
    }
    HIT
}

/// Finds the flow of the packet that an ICMP error quotes, and makes the quote's opposite the scratch entry's key. Nothing is
/// noted: an error keeps no flow alive.
#[inline(never)]
pub(crate) fn track_quoted(s: &mut Scratch, side: u32, who: u64) -> i32 {
    let quoted = &s.quoted.tuple;
    // An error goes to the one whose packet it quotes, or is not about it.
    if quoted.source != s.key.destination {
        return MISS;
    }
    let key = quoted.reversed();
    let Some((conn, _)) = find(&key) else {
        return MISS;
    };
    if !fits(conn, side, who) {
        return MISS;
    }
    take(s, conn);
    s.key = key;
    s.is_quote = true;
    HIT
}

/// What the flow's other entry has seen, or [`LOST`]. The LRU may have evicted it alone; then it is made again, with the same
/// ports if nobody has taken them.
#[inline(never)]
fn other_half(s: &mut Scratch) -> u32 {
    s.reply = s.to.reversed();
    // Where its other one is, unless another CPU moves them just now.
    let other = NEW_FLOWS.get_ptr_mut(&s.reply).or_else(|| FLOWS.get_ptr_mut(&s.reply));
    if let Some(other) = other {
        // SAFETY: as in `find`.
        let other = unsafe { &*other };
        return if answers(other, s) { other.seen } else { LOST };
    }
    s.prepare_reply(now());
    match NEW_FLOWS.insert(&s.reply, &s.conn, BPF_NOEXIST.into()) {
        Ok(()) => 0,
        Err(_) => LOST,
    }
}

/// Whether an entry is that of the answers to `s.key`.
#[inline(always)]
fn answers(other: &Conn, s: &Scratch) -> bool {
    let (to, key) = (&other.to, &s.key);
    to.source == key.destination
        && to.destination == key.source
        && to.source_port == key.destination_port
        && to.destination_port == key.source_port
}

/// A SYN on the tuple of a connection that is over begins another one.
#[inline(never)]
fn reopen(s: &Scratch, conn: &mut Conn, now: u64) {
    let Some((other, _)) = find(&s.to.reversed()) else {
        return;
    };
    let over = other.seen & (SEEN_FIN | SEEN_RST) != 0;
    if over || reopens(conn.seen, TCP, TCP_SYN) {
        for entry in [conn, other] {
            entry.seen = 0;
            entry.created = now;
            entry.last_seen = now;
            entry.packets = 0;
            entry.bytes = 0;
        }
    }
}

/// Moves an answered flow to `FLOWS`: `conn` is the packet's entry. Beyond the quota, and when the table is full, it stays where
/// a flood can evict it.
#[inline(never)]
fn promote(s: &Scratch, conn: &Conn) {
    // A question is soon over; a sandbox that asks much would use its quota up by it.
    if s.flags & CONN_RESOLVER != 0 {
        return;
    }
    if s.flags & CONN_HOST != 0 {
        transfer(s, conn);
        return;
    }
    let Some(opened) = FLOWS_OPENED.get_ptr_mut(s.endpoint) else {
        return;
    };
    // SAFETY: entries live until the endpoint is gone; ipamd adds to the value as a whole.
    let closed = unsafe { FLOWS_CLOSED.get(s.endpoint) }.copied().unwrap_or(0);
    let quota = config().map_or(0, |c| c.flow_quota);
    // SAFETY: an aligned u64 that the programs change by atomic addition only. A flow may be removed before it is counted.
    if unsafe { opened.read_volatile() }.saturating_sub(closed) >= u64::from(quota) {
        return;
    }
    if transfer(s, conn) {
        increment(opened);
    }
}

/// Moves both entries; true if this run did.
#[inline(never)]
fn transfer(s: &Scratch, conn: &Conn) -> bool {
    let other = s.to.reversed();
    // SAFETY: the value is copied at once.
    let Some(original) = (unsafe { NEW_FLOWS.get(&other) }) else {
        return false;
    };
    // Whoever makes this entry moves the flow; an answer on another CPU comes too late.
    if FLOWS.insert(&other, original, BPF_NOEXIST.into()).is_err() {
        return false;
    }
    if FLOWS.insert(&s.key, conn, BPF_ANY.into()).is_err() {
        let _ = FLOWS.remove(&other);
        return false;
    }
    let _ = NEW_FLOWS.remove(&s.key);
    let _ = NEW_FLOWS.remove(&other);
    true
}

/// Adds one, atomically.
#[inline(always)]
fn increment(counter: *mut u64) {
    // The core library has no atomic addition for a target that need not have compare-and-swap.
    #[cfg(target_arch = "bpf")]
    // SAFETY: an aligned u64 of a map's value.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1u64);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above. For lints only: these programs run nowhere else.
    unsafe {
        *counter += 1;
    }
}

/// Makes the entry of the answers (`s.reply`), if nobody has it: true. The caller has made sure that nobody else of the node uses
/// the tuple.
#[inline(never)]
pub(crate) fn claim_reply(s: &mut Scratch) -> bool {
    s.prepare_reply(now());
    // Who is answered has the same flow if the answers are led to the same: from another CPU, or by its half that outlived the
    // other, or that of a predecessor at this address.
    if NEW_FLOWS.insert(&s.reply, &s.conn, BPF_NOEXIST.into()).is_err() {
        // SAFETY: read at once.
        let Some(other) = (unsafe { NEW_FLOWS.get(&s.reply) }) else {
            return false;
        };
        if !answers(other, s) || NEW_FLOWS.insert(&s.reply, &s.conn, BPF_ANY.into()).is_err() {
            return false;
        }
    }
    // Afterwards, so that a flow that was being answered meanwhile is seen, which is in this table then.
    // SAFETY: as above.
    match unsafe { FLOWS.get(&s.reply) } {
        None => true,
        Some(other) if answers(other, s) => {
            let _ = FLOWS.remove(&s.reply);
            true
        }
        Some(_) => {
            let _ = NEW_FLOWS.remove(&s.reply);
            false
        }
    }
}

/// Whether another flow has the answers (`s.reply`) as it looks: a claim that fails makes the LRU forget somebody.
#[inline(always)]
pub(crate) fn is_claimed(s: &Scratch) -> bool {
    find(&s.reply).is_some_and(|(other, _)| !answers(other, s))
}

/// Makes the entry of the opener's direction; the answers' is there.
#[inline(never)]
pub(crate) fn claim_original(s: &mut Scratch, bytes: u32) -> bool {
    s.prepare(now());
    s.conn.packets = 1;
    s.conn.bytes = u64::from(bytes);
    s.conn.to = s.to.by_words();
    s.conn.flags = s.flags;
    s.conn.seen = note(0, s.key.protocol, s.transport.tcp_flags);
    // What is left of an earlier flow with this tuple (its answers have lost their entry) would be found first.
    if s.has_entry {
        let _ = FLOWS.remove(&s.key);
    }
    NEW_FLOWS.insert(&s.key, &s.conn, BPF_ANY.into()).is_ok()
}

impl Scratch {
    /// Fills in what both entries of a flow begin with. Field by field: as a whole it would be made on the stack.
    #[inline(always)]
    fn prepare(&mut self, now: u64) {
        self.conn.endpoint = self.endpoint;
        self.conn.opener = self.opener;
        self.conn.created = now;
        self.conn.last_seen = now;
    }

    /// Fills in the entry of the answers.
    #[inline(always)]
    fn prepare_reply(&mut self, now: u64) {
        let flags = self.flags & !CONN_ORIGINAL;
        self.prepare(now);
        self.conn.packets = 0;
        self.conn.bytes = 0;
        self.conn.to = self.key.reversed();
        // Answers come from the other side, unless both are endpoints or none is.
        self.conn.flags = if flags & (CONN_LOCAL | CONN_HOST) == 0 { flags ^ CONN_FROM_POD } else { flags };
        self.conn.seen = 0;
    }
}
