//! What `history` is told.

use clap::Args;
use ipamd_api::{CallOutcome, CallView};

/// Which calls; what is not said matches all.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Print calls as they are answered, a line each, until interrupted; those before are not shown
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only those for this container: ID or a start of it, or name of the pod
    #[arg(long, value_name = "CONTAINER")]
    container: Option<String>,
    /// Only those for this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Only those that were answered with an error
    #[arg(long)]
    failed: bool,
}

impl History {
    /// Whether a call is asked for.
    pub(crate) fn wants(&self, call: &CallView) -> bool {
        let is_called =
            |pod: &str, name: &str| pod == name || pod.rsplit_once('/').is_some_and(|(_, bare)| bare == name);
        let is_of = |name: &String| {
            call.attachment.container_id.starts_with(name.as_str())
                || call.pod.as_deref().is_some_and(|pod| is_called(pod, name))
        };
        self.container.as_ref().is_none_or(is_of)
            && self.network.as_ref().is_none_or(|network| *network == call.network)
            && (!self.failed || call.outcome == CallOutcome::Failed)
    }
}
