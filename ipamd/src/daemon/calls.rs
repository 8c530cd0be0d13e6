//! ADD and DEL as the API serves them: timed, recorded, answered.

use super::NodeState;
use crate::calls::{Call, Stopwatch};
use ipamd_api::{
    AddRequest, AddResponse, AllocateRequest, AllocateResponse, ApiError, CallVerb, CallView, DelRequest,
    DelResponse, label,
};
use std::time::Instant;

impl NodeState {
    /// CNI ADD of a request that began to come at `begun`.
    ///
    /// # Errors
    /// See [`crate::attach::Attachments::add`].
    pub fn add(&self, begun: Instant, request: &AddRequest) -> Result<AddResponse, ApiError> {
        let watch = Stopwatch::since(begun);
        let answer = self.attachments.add_timed(request, &watch);
        let call = Call {
            verb: CallVerb::Add,
            attachment: request.attachment.clone(),
            network: request.network.name.clone(),
            runtime: request.runtime.clone(),
            pod: label::pod(&request.options.labels),
            result: answer.as_ref().map(|added| Some(added.endpoint)).map_err(Clone::clone),
            replayed: false,
        };
        self.record(call, &watch);
        answer
    }

    /// CNI ADD of an IPAM plugin, likewise.
    ///
    /// # Errors
    /// See [`crate::attach::Attachments::allocate_external`].
    pub fn allocate(&self, begun: Instant, request: &AllocateRequest) -> Result<AllocateResponse, ApiError> {
        let watch = Stopwatch::since(begun);
        let answer = self.attachments.allocate_external_timed(request, &watch);
        let call = Call {
            verb: CallVerb::Add,
            attachment: request.attachment.clone(),
            network: request.network.name.clone(),
            runtime: request.runtime.clone(),
            pod: label::pod(&request.labels),
            result: answer.as_ref().map(|added| Some(added.endpoint)).map_err(Clone::clone),
            replayed: false,
        };
        self.record(call, &watch);
        answer
    }

    /// CNI DEL, likewise.
    ///
    /// # Errors
    /// See [`crate::attach::Attachments::del`].
    pub fn del(&self, begun: Instant, request: &DelRequest) -> Result<DelResponse, ApiError> {
        let watch = Stopwatch::since(begun);
        // Afterwards nobody knows any more whose it was.
        let known = self.attachments.endpoint_of(&request.attachment);
        let answer = self.attachments.del_timed(request, &watch);
        let call = Call::of_del(request, known.as_ref(), &answer);
        self.record(call, &watch);
        answer
    }

    /// The last ADDs and DELs, oldest first.
    pub fn history(&self) -> Vec<CallView> {
        self.calls.last().iter().map(|call| CallView::clone(call)).collect()
    }

    fn record(&self, call: Call, watch: &Stopwatch) {
        let (took, times) = watch.stop();
        self.calls.record(call, took, times);
    }
}
