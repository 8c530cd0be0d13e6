//! `drops --follow` and `dns log --follow`: what happens, as it comes, a line each.
//!
//! Unlike other answers these are written line by line. They end, well, when the operator interrupts them or the reader of standard
//! output goes away, which is noticed though nothing happens any more.

use super::Asker;
use crate::{
    Exit, Surroundings,
    cli::Drops,
    exit::Failure,
    output::Output,
    render::{self, Names, Page},
};
use ipamd_api::{AttachmentKey, DnsQuestionView, DropReasonView, DropView, EndpointView, Lines, path};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::HashSet,
    io::{self, Write},
    os::fd::AsFd,
};

/// What is followed.
pub(super) trait Followed {
    /// One of them.
    type View: DeserializeOwned;
    /// Where ipamd tells of them.
    const PATH: &'static str;
    /// What they are, in a message.
    const WHAT: &'static str;

    /// The endpoint that it is about.
    fn attachment(view: &Self::View) -> Option<&AttachmentKey>;

    /// Whether it is asked for; `is_of` says whether its endpoint is a container's.
    fn is_wanted(&self, view: &Self::View, is_of: impl Fn(&str) -> bool) -> bool;

    /// Puts it on the page.
    fn draw(page: &mut Page<'_>, view: &Self::View, names: &Names);
}

/// Dropped packets.
pub(super) struct Dropped<'a> {
    reason: Option<String>,
    container: Option<&'a str>,
}

/// Dropped packets of a reason that there is.
pub(super) fn drops<'a>(asker: &Asker<'_>, asked: &'a Drops) -> Result<Dropped<'a>, Failure> {
    let reason = asked.reason.as_deref().map(|reason| known_reason(asker, reason)).transpose()?;
    Ok(Dropped { reason, container: asked.container.as_deref() })
}

impl Followed for Dropped<'_> {
    type View = DropView;
    const PATH: &'static str = path::DROPS_FOLLOW;
    const WHAT: &'static str = "drops";

    fn attachment(view: &DropView) -> Option<&AttachmentKey> {
        view.attachment.as_ref()
    }

    fn is_wanted(&self, view: &DropView, is_of: impl Fn(&str) -> bool) -> bool {
        self.reason.as_ref().is_none_or(|reason| view.reason == *reason) && self.container.is_none_or(is_of)
    }

    fn draw(page: &mut Page<'_>, view: &DropView, names: &Names) {
        render::drops::packet(page, view, names);
    }
}

/// Questions for names.
pub(super) struct Questions<'a> {
    pub(super) container: Option<&'a str>,
}

impl Followed for Questions<'_> {
    type View = DnsQuestionView;
    const PATH: &'static str = path::DNS_FOLLOW;
    const WHAT: &'static str = "questions";

    fn attachment(view: &DnsQuestionView) -> Option<&AttachmentKey> {
        view.attachment.as_ref()
    }

    fn is_wanted(&self, _: &DnsQuestionView, is_of: impl Fn(&str) -> bool) -> bool {
        self.container.is_none_or(is_of)
    }

    fn draw(page: &mut Page<'_>, view: &DnsQuestionView, names: &Names) {
        render::dns::question(page, view, names);
    }
}

/// Prints until there is an end.
pub(super) fn run<F: Followed>(
    asker: &Asker<'_>,
    followed: &F,
    around: &Surroundings<'_>,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let interrupt = (around.interrupt)()
        .map_err(|cause| Failure::Local(format!("interrupts cannot be waited for: {cause}")))?;
    let mut printer = Printer { asker, output: asker.output, followed, known: Known::default() };
    printer.known.refresh(asker)?;
    let mut lines = asker.client.lines(F::PATH)?;
    loop {
        let written = printer.print(&mut lines, out)?;
        match written.and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            Err(cause) => {
                let msg = format!("the answer cannot be written to standard output: {cause}");
                return Err(Failure::Local(msg));
            }
        }
        let mut waited_for = vec![
            PollFd::new(lines.as_fd(), PollFlags::POLLIN),
            PollFd::new(interrupt.as_fd(), PollFlags::POLLIN),
        ];
        // A pipe without a reader is in error; nothing else is asked of it.
        waited_for.extend(around.reader.map(|reader| PollFd::new(reader, PollFlags::empty())));
        match poll(&mut waited_for, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(cause) => return Err(Failure::Local(format!("{} cannot be waited for: {cause}", F::WHAT))),
        }
        let happened: Vec<bool> = waited_for.iter().map(|fd| fd.any().unwrap_or_default()).collect();
        if happened[1..].contains(&true) {
            return Ok(Exit::Done);
        }
        if happened[0] && !lines.more()? {
            return Err(Failure::Local(format!(
                "ipamd has ended the stream of {}: it stops or restarts; call again",
                F::WHAT
            )));
        }
    }
}

/// The name of a reason that was given by name or number.
fn known_reason(asker: &Asker<'_>, asked: &str) -> Result<String, Failure> {
    let reasons: Vec<DropReasonView> = asker.client.get(path::DROPS)?;
    let found = reasons.iter().find(|r| r.name == asked || r.reason.to_string() == asked);
    found.map(|r| r.name.clone()).ok_or_else(|| {
        let names: Vec<&str> = reasons.iter().map(|r| r.name.as_str()).collect();
        Failure::Local(format!("{asked:?} is no reason to drop a packet; reasons are: {}", names.join(", ")))
    })
}

struct Printer<'a, F> {
    asker: &'a Asker<'a>,
    output: &'a Output,
    followed: &'a F,
    known: Known,
}

impl<F: Followed> Printer<'_, F> {
    /// Writes the lines that have come, as far as they are wanted. The inner error is that of writing.
    fn print(&mut self, lines: &mut Lines, out: &mut dyn Write) -> Result<io::Result<()>, Failure> {
        while let Some(line) = lines.buffered()? {
            let raw: Value = serde_json::from_str(&line).map_err(|e| self.asker.misunderstood(&e))?;
            let view: F::View = self.asker.typed(&raw)?;
            if let Some(key) = F::attachment(&view) {
                self.known.meet(self.asker, key)?;
            }
            if !self.is_wanted(&view) {
                continue;
            }
            let text = self.output.line(&raw, |page| F::draw(page, &view, &self.known.names))?;
            if let Err(cause) = out.write_all(text.as_bytes()) {
                return Ok(Err(cause));
            }
        }
        Ok(Ok(()))
    }

    fn is_wanted(&self, view: &F::View) -> bool {
        let key = F::attachment(view);
        self.followed.is_wanted(view, |container| {
            key.is_some_and(|key| {
                key.container_id.starts_with(container) || self.known.is_called(key, container)
            })
        })
    }
}

/// Endpoints as ipamd had them when one was met that was not known yet.
#[derive(Default)]
pub(super) struct Known {
    met: HashSet<AttachmentKey>,
    names: Names,
    pub(super) endpoints: Vec<EndpointView>,
}

impl Known {
    pub(super) fn refresh(&mut self, asker: &Asker<'_>) -> Result<(), Failure> {
        self.endpoints = asker.client.get(path::ENDPOINTS)?;
        self.names = Names::new(&self.endpoints);
        self.met.extend(self.endpoints.iter().map(|e| e.attachment.clone()));
        Ok(())
    }

    /// Asks for names again when there is a new endpoint; once, though it have none.
    pub(super) fn meet(&mut self, asker: &Asker<'_>, key: &AttachmentKey) -> Result<(), Failure> {
        if self.met.insert(key.clone()) { self.refresh(asker) } else { Ok(()) }
    }

    /// Whether the runtime calls it so: with its namespace or without.
    fn is_called(&self, key: &AttachmentKey, name: &str) -> bool {
        let called = self.names.get(key);
        called.is_some_and(|c| c == name || c.rsplit_once('/').is_some_and(|(_, pod)| pod == name))
    }
}
