//! `history`: the last ADDs and DELs.

use super::{Asker, follow::Followed};
use crate::{
    cli::History,
    exit::Failure,
    output::Answer,
    render::{self, Names, Page},
};
use ipamd_api::{AttachmentKey, CallView, path};
use serde::Deserialize as _;
use serde_json::Value;

impl Asker<'_> {
    pub(super) fn history(&self, asked: &History) -> Result<Answer, Failure> {
        let raw: Vec<Value> = self.client.get(path::HISTORY)?;
        let (mut kept, mut calls) = (Vec::new(), Vec::new());
        for value in raw {
            let call = CallView::deserialize(&value).map_err(|cause| self.misunderstood(&cause))?;
            if asked.wants(&call) {
                kept.push(value);
                calls.push(call);
            }
        }
        self.output.answer(&Value::Array(kept), |page| render::history::list(page, &calls)).map(Answer::done)
    }
}

/// Calls as they are answered.
impl Followed for &History {
    type View = CallView;
    const PATH: &'static str = path::HISTORY_FOLLOW;
    const WHAT: &'static str = "calls";

    fn attachment(_: &CallView) -> Option<&AttachmentKey> {
        // A call says itself what its container is called; endpoints are asked for nothing.
        None
    }

    fn is_wanted(&self, view: &CallView, _: impl Fn(&str) -> bool) -> bool {
        self.wants(view)
    }

    fn draw(page: &mut Page<'_>, view: &CallView, _: &Names) {
        render::history::call(page, view);
    }
}
