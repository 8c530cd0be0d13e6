//! Names of containers, beside the keys that answers of the API have.

use ipamd_api::{AttachmentKey, EndpointView, label};
use std::collections::HashMap;

/// Names that runtimes gave, by attachment.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<AttachmentKey, String>);

impl Names {
    /// Those of these endpoints.
    pub(crate) fn new(endpoints: &[EndpointView]) -> Self {
        let named =
            endpoints.iter().filter_map(|e| Some((e.attachment.clone(), label::pod(&e.options.labels)?)));
        Self(named.collect())
    }

    /// The name, if the runtime gave one.
    pub(crate) fn get(&self, key: &AttachmentKey) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The same as a cell of a table.
    pub(crate) fn of(&self, key: Option<&AttachmentKey>) -> String {
        super::or_dash(key.and_then(|key| self.get(key)))
    }
}
