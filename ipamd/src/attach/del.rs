//! CNI DEL and GC, and the removal of endpoints behind the answer.

use super::{Attachments, Doomed, now, plan};
use crate::{
    calls::Stopwatch,
    journal::{
        Record,
        evidence::{Match, matches},
    },
    stop::stop_point,
};
use ipamd_api::{ApiError, CallPhase, DelRequest, DelResponse, EndpointId, GcRequest, GcResponse, Phase};
use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

impl Attachments {
    /// Frees the attachment if the request means the generation that exists. What is unknown succeeds.
    ///
    /// The links are removed behind the answer; until then their addresses are not free.
    ///
    /// # Errors
    /// The attachment is busy for too long, or its sandbox cannot be looked at.
    pub fn del(&self, request: &DelRequest) -> Result<DelResponse, ApiError> {
        self.del_timed(request, &Stopwatch::start())
    }

    /// The same; `watch` is told of the phases.
    ///
    /// # Errors
    /// As [`Self::del`].
    pub fn del_timed(&self, request: &DelRequest, watch: &Stopwatch) -> Result<DelResponse, ApiError> {
        let pass = self.enter(&request.attachment)?;
        let Some(record) = self.find(&request.attachment) else {
            tracing::info!("nothing to delete");
            return Ok(DelResponse { freed: None });
        };
        let had_ports = !record.published.is_empty();
        let id = record.endpoint;
        let meant = match matches(&record, request) {
            Match::Yes => true,
            Match::No(reason) => {
                tracing::warn!(endpoint = %id, %reason, "a DEL of another generation frees nothing");
                false
            }
            // The DEL itself is one witness; the sandbox has to be the second.
            Match::Unknown => self.is_gone_or_empty(&record)?,
        };
        if meant {
            self.end(record, watch);
        }
        drop(pass);
        if meant && had_ports {
            let _datapath = watch.phase(CallPhase::Datapath);
            self.inherit_ports(Some(&request.attachment.container_id));
        }
        stop_point("ipamd.del.forgotten");
        Ok(DelResponse { freed: meant.then_some(id) })
    }

    /// Frees what the runtime no longer has and what is dead besides.
    ///
    /// # Errors
    /// A sandbox cannot be looked at.
    pub fn gc(&self, request: &GcRequest) -> Result<GcResponse, ApiError> {
        let mut answer = GcResponse { freed: Vec::new(), kept: Vec::new() };
        let Some(valid) = &request.valid else {
            answer.freed = self.sweep()?;
            return Ok(answer);
        };
        let concerned = |r: &Record| {
            r.phase == Phase::Live
                && request.network.as_ref().is_none_or(|n| *n == r.network.name)
                // Two configurations may share a network, and each one's list has only its own attachments.
                && (request.network.is_none() || request.configuration == r.options.configuration)
                && request.runtime.as_ref().is_none_or(|n| *n == r.runtime)
                && !valid.contains(&r.attachment)
        };
        for record in self.snapshot(concerned) {
            let key = record.attachment.clone();
            let _pass = self.enter(&key)?;
            // The runtime's list is one witness; the sandbox has to be the second. The record may have changed meanwhile.
            let still = self.find(&key).is_some_and(|r| r.endpoint == record.endpoint);
            if still && self.is_gone_or_empty(&record)? {
                tracing::info!(attachment = %key, endpoint = %record.endpoint, "collected: the runtime no longer has it");
                self.doom(record);
                answer.freed.push(key);
            } else if still {
                answer.kept.push(key);
            }
        }
        if !answer.freed.is_empty() {
            self.inherit_ports(None);
        }
        Ok(answer)
    }

    /// Whether both witnesses say that the sandbox is gone: its path, and the link that dies with it (or, without such a
    /// link, the absence of any process in it).
    pub(super) fn is_gone(&self, record: &Record) -> Result<bool, ApiError> {
        let witnesses = self.kernel.witnesses(&plan::endpoint_wiring(record), &record.sandbox)?;
        if witnesses.path == crate::kernel::SandboxObserved::Same {
            return Ok(false);
        }
        match witnesses.host_link {
            Some(there) => Ok(!there),
            None => Ok(!self.kernel.has_processes(&record.sandbox)?),
        }
    }

    /// Whether the sandbox is gone or nobody is in it. Only together with another witness (a DEL, a GC list) does this free.
    pub(super) fn is_gone_or_empty(&self, record: &Record) -> Result<bool, ApiError> {
        Ok(self.is_gone(record)? || !self.kernel.has_processes(&record.sandbox)?)
    }

    /// Starts the end of an endpoint that no DEL waits for.
    pub(super) fn doom(&self, record: Record) {
        self.end(record, &Stopwatch::start());
    }

    /// Starts the end of an endpoint: journal, published ports, the rest of the datapath, then the reaper.
    fn end(&self, mut record: Record, watch: &Stopwatch) {
        let id = record.endpoint;
        record.phase = Phase::Deleting;
        let journaled = {
            let _journal = watch.phase(CallPhase::Journal);
            self.journal.write(&record)
        };
        let _datapath = watch.phase(CallPhase::Datapath);
        if let Err(error) = journaled {
            // A full run directory must not block a DEL; should ipamd crash now, the next sweep finds the sandbox gone.
            tracing::error!(endpoint = %id, %error, "could not journal the deletion; deleting all the same");
        }
        // A copy that said `live` would bring the endpoint back, should the journal be lost before the links are gone.
        if let Err(error) = self.keep_copy(&record) {
            tracing::warn!(endpoint = %id, %error, "the pinned copy of the record does not know of the deletion");
        }
        stop_point("ipamd.del.journaled");
        self.withdraw(&record);
        stop_point("ipamd.del.unpublished");
        self.forget(&record);
        self.remember(&record);
        self.queue(id);
    }

    pub(super) fn forget(&self, record: &Record) {
        let Some(reference) = plan::endpoint_ref(record) else { return };
        if let Err(error) = self.datapath.forget(&reference) {
            tracing::error!(endpoint = %record.endpoint, %error, "datapath entries stay until the next sweep");
        }
    }

    pub(super) fn queue(&self, id: EndpointId) {
        if self.doomed.send(id).is_err() {
            tracing::debug!(endpoint = %id, "the reaper has ended; the next start removes the endpoint");
        }
    }

    /// Removes the links of doomed endpoints in one pass of the kernel, then frees each.
    pub(super) fn finish_removals(&self, records: Vec<Record>) {
        let wirings: Vec<_> = records.iter().map(|r| (plan::endpoint_wiring(r), r.sandbox.clone())).collect();
        let begun = Instant::now();
        let removed = self.kernel.remove_many(&wirings);
        if let (Some(tell), Ok(count)) = (self.removals.get(), u32::try_from(wirings.len()))
            && count > 0
        {
            let each = begun.elapsed() / count;
            (0..count).for_each(|_| tell(each));
        }
        for (record, removed) in records.into_iter().zip(removed) {
            match removed {
                Ok(()) => self.free(record),
                Err(error) => {
                    tracing::error!(endpoint = %record.endpoint, %error, "could not remove the links; the next sweep tries again");
                }
            }
        }
    }

    /// Frees the addresses of an endpoint whose links are gone into their cool-down, and forgets it.
    fn free(&self, mut record: Record) {
        let id = record.endpoint;
        stop_point("ipamd.del.removed");
        // Before the journal forgets: a copy that outlived the record would bring the endpoint back at a later start.
        if let Err(error) = self.datapath.remove_record(id) {
            tracing::warn!(endpoint = %id, %error, "a copy of the record stays in the pinned map until the next start");
        }
        stop_point("ipamd.del.uncopied");
        let freed_at = now();
        record.phase = Phase::Freed;
        record.freed_at = Some(freed_at);
        let tombstone = !record.addresses.is_empty();
        let journaled = if tombstone { self.journal.write(&record) } else { self.journal.remove(id) };
        if let Err(error) = journaled {
            tracing::warn!(endpoint = %id, %error, "the cool-down of its addresses will not outlive a restart");
            // Unlinking works where writing does not (a full file system); what stays is found dead at the next start.
            let _ = self.journal.remove(id);
        }
        stop_point("ipamd.del.freed");
        let mut state = self.state();
        state.allocator.release(id, freed_at);
        state.drop_record(&record);
        if tombstone {
            state.tombstones.push_back((freed_at, id));
        }
        drop(state);
        self.tidy_claims();
        self.removed.notify_all();
        tracing::info!(attachment = %record.attachment, endpoint = %id, "removed");
    }

    /// Removes doomed endpoints until `stopping` says so and the queue is empty. Runs on a thread of its own.
    pub fn reap(self: &Arc<Self>, queue: &Doomed, stopping: impl Fn() -> bool) {
        loop {
            match queue.0.recv_timeout(Duration::from_millis(200)) {
                Ok(first) => {
                    let ids: BTreeSet<EndpointId> =
                        std::iter::once(first).chain(queue.0.try_iter()).collect();
                    self.finish_removals(
                        self.snapshot(|r| r.phase == Phase::Deleting && ids.contains(&r.endpoint)),
                    );
                }
                Err(RecvTimeoutError::Timeout) if stopping() => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
