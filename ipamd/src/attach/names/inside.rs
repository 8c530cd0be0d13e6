//! The resolver inside of sandboxes that no program stands before: there before their ADD is answered, and after a restart; gone before
//! their DEL is, for a socket keeps a network namespace alive.
//!
//! Invariant: an endpoint is in `open` exactly while somebody listens for it. What could not be opened costs no ADD, as with rows;
//! the sweep tries it again. Lock: [`Inside`] before `known`, held over the call, so that of two that settle an endpoint the later
//! one sees what the former did.

use super::Attachments;
use crate::dns::Sandboxes;
use ipamd_api::EndpointId;
use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, Weak},
};

/// Who answers inside of sandboxes, and for whom.
#[derive(Default)]
pub(super) struct Inside {
    /// Weak, for the resolver asks the attachments.
    resolver: Option<Weak<dyn Sandboxes>>,
    open: BTreeSet<EndpointId>,
    /// Of whom was said that nobody listens.
    said: BTreeSet<EndpointId>,
}

impl Attachments {
    /// From now on `resolver` answers inside of sandboxes; at once in those that are there.
    pub fn answer_in_sandboxes(&self, resolver: &Arc<dyn Sandboxes>) {
        let mut inside = self.names.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.resolver = Some(Arc::downgrade(resolver));
        drop(inside);
        self.settle_sandboxes();
    }

    /// Tries again where nobody listens and somebody should.
    pub(super) fn settle_sandboxes(&self) {
        let wanted: Vec<EndpointId> = {
            let known = self.names.known();
            known.locals.iter().filter(|(_, local)| local.inside.is_some()).map(|(id, _)| *id).collect()
        };
        for id in wanted {
            self.settle_sandbox(id);
        }
    }

    /// Lets an endpoint be answered inside of its sandbox, or no longer, by what is known of it now.
    pub(super) fn settle_sandbox(&self, id: EndpointId) {
        let mut inside = self.names.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(resolver) = inside.resolver.as_ref().and_then(Weak::upgrade) else { return };
        let wanted = self.names.known().locals.get(&id).and_then(|local| local.inside.clone());
        match wanted {
            Some(_) if inside.open.contains(&id) => {}
            Some(sandbox) => match resolver.answer_in(id, &sandbox) {
                Ok(()) => {
                    inside.open.insert(id);
                    inside.said.remove(&id);
                }
                // Not with each sweep.
                Err(error) if !inside.said.insert(id) => {
                    tracing::debug!(endpoint = %id, %error, "a container still gets no answer at 127.0.0.11");
                }
                Err(error) => {
                    tracing::warn!(endpoint = %id, %error, "a container gets no answer at 127.0.0.11; the sweep tries again");
                }
            },
            None => {
                inside.said.remove(&id);
                if inside.open.remove(&id) {
                    resolver.leave(id);
                }
            }
        }
    }
}
