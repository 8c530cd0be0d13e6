//! The node as the API shows it.

use super::{nodes::Nodes, traces::TraceBounds};
use crate::{
    attach::Attachments,
    calls::Calls,
    clock::{BootClock, Clock as _},
    datapath::FlowSweep,
    dns::DnsServer,
    drops::{self, DropFeed},
    metrics::Metrics,
};
use ipamd_api::{
    API_VERSION, ApiError, DropReasonView, ErrorCode, Health, Inspection, PartStatus, Status,
    UninstallRequest, Uninstalled,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// What the API serves.
pub struct NodeState {
    /// The attachments.
    pub attachments: Arc<Attachments>,
    /// The node among the others.
    pub nodes: Nodes,
    /// The resolver.
    pub dns: Arc<DnsServer>,
    /// What became of ADDs and DELs.
    pub calls: Arc<Calls>,
    /// What scrapes share.
    pub metrics: Metrics,
    pub(super) node: String,
    boot_id: String,
    started: Duration,
    /// What the last sweep of flows found, and how long it took.
    swept: Mutex<Option<Swept>>,
    /// Sampled drops.
    pub drop_feed: DropFeed,
    pub(super) trace_bounds: TraceBounds,
    /// Notified when ipamd is to end, because Weft was uninstalled.
    pub uninstalled: Notify,
}

type Swept = Result<(FlowSweep, Duration), String>;

impl NodeState {
    /// A node that starts now.
    pub fn new(
        attachments: Arc<Attachments>,
        nodes: Nodes,
        dns: Arc<DnsServer>,
        calls: Arc<Calls>,
        metrics: Metrics,
        node: String,
        boot_id: String,
    ) -> Self {
        Self {
            attachments,
            nodes,
            dns,
            calls,
            metrics,
            node,
            boot_id,
            started: BootClock.now(),
            swept: Mutex::default(),
            drop_feed: DropFeed::default(),
            trace_bounds: TraceBounds::default(),
            uninstalled: Notify::new(),
        }
    }

    /// Removes flows that have expired, and remembers what that was like.
    pub fn sweep_flows(&self) {
        let begun = Instant::now();
        let swept = match self.attachments.datapath().sweep_flows() {
            Ok(swept) => Ok((swept, begun.elapsed())),
            Err(error) => {
                tracing::error!(%error, "flows that have expired stay; the next sweep tries again");
                Err(error.to_string())
            }
        };
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = Some(swept);
    }

    /// Every reason of drops with its count.
    ///
    /// # Errors
    /// The datapath refuses.
    pub fn drops(&self) -> Result<Vec<DropReasonView>, ApiError> {
        Ok(drops::reasons(&self.attachments.datapath().drops()?))
    }

    /// Removes Weft from the node; ipamd ends after it.
    ///
    /// # Errors
    /// See [`Attachments::uninstall`].
    pub fn uninstall(&self, request: UninstallRequest) -> Result<Uninstalled, ApiError> {
        let mut done = self.attachments.uninstall(request.force)?;
        self.nodes.leave(&mut done);
        tracing::warn!(removed = ?done.removed, left = ?done.left, "uninstalled");
        self.uninstalled.notify_one();
        Ok(done)
    }

    fn conntrack_status(&self) -> PartStatus {
        let capacity = self.attachments.datapath().flow_capacity();
        let (health, message) = match &*self.swept.lock().unwrap_or_else(PoisonError::into_inner) {
            None => (Health::Ok, format!("not swept yet, room for {capacity} flows")),
            Some(Err(error)) => (Health::Degraded, error.clone()),
            Some(Ok((swept, took))) => {
                let full = swept.living.saturating_mul(10) >= capacity.saturating_mul(9);
                let hint = if full {
                    "; nearly full: raise `tracked_flows`, or see `netctl conntrack ls`"
                } else {
                    ""
                };
                let message =
                    format!("{} of {capacity} flows, swept in {} ms{hint}", swept.living, took.as_millis());
                (if full { Health::Degraded } else { Health::Ok }, message)
            }
        };
        PartStatus { part: "conntrack".into(), health, message }
    }

    fn uplink_status(&self) -> PartStatus {
        let host = self.attachments.host();
        let with_address = host.uplinks.iter().filter(|u| u.ipv4.is_some() || u.ipv6.is_some());
        let names: Vec<&str> = with_address.map(|u| u.name.as_str()).collect();
        let message = if names.is_empty() {
            "none with an address: sandboxes reach nothing outside".to_owned()
        } else {
            names.join(", ")
        };
        PartStatus { part: "uplinks".into(), health: Health::Ok, message }
    }

    fn socket_status(&self) -> PartStatus {
        let (health, message) = match self.attachments.datapath().missing_socket_hooks() {
            Ok(missing) if missing.is_empty() => (Health::Ok, "hooks attached".to_owned()),
            Ok(missing) => {
                let which = missing.join(", ");
                let msg = format!(
                    "not attached: {which}; the node itself does not reach published ports by its own addresses: restart ipamd"
                );
                (Health::Degraded, msg)
            }
            Err(error) => (Health::Degraded, error.to_string()),
        };
        PartStatus { part: "sockets".into(), health, message }
    }

    /// State of the node.
    pub fn status(&self) -> Status {
        let attachments = &self.attachments;
        let mut parts = vec![
            self.store_status(),
            self.membership_status(),
            attachments.addresses_status(),
            attachments.journal_status(),
        ];
        let drops = attachments.datapath().drops();
        parts.push(match &drops {
            Ok(_) => PartStatus {
                part: "datapath".into(),
                health: Health::Ok,
                message: "programs and maps pinned".into(),
            },
            Err(error) => {
                PartStatus { part: "datapath".into(), health: Health::Degraded, message: error.to_string() }
            }
        });
        parts.push(self.conntrack_status());
        parts.push(self.uplink_status());
        parts.push(self.socket_status());
        parts.extend(attachments.overlay_status());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_version: API_VERSION,
            node: self.node.clone(),
            boot_id: self.boot_id.clone(),
            pid: std::process::id(),
            uptime_seconds: BootClock.now().saturating_sub(self.started).as_secs(),
            ready: parts.iter().all(|p| p.health != Health::Failed),
            parts,
            networks: attachments.networks().all().len(),
            endpoints: attachments.len(),
            drops: drops.unwrap_or_default(),
        }
    }

    /// Whatever is known under this name; the node under its own, or under `node`.
    ///
    /// # Errors
    /// Nothing is known under it.
    pub fn inspect(&self, what: &str) -> Result<Inspection, ApiError> {
        if what == self.node || what == "node" {
            return Ok(Inspection::Node {
                status: self.status(),
                networks: self.attachments.network_views(),
            });
        }
        let found = self.attachments.inspect(what);
        match &found {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                // Another node, perhaps; if the store does not say, nothing here has the name.
                self.inspect_node(what).or(found)
            }
            _ => found,
        }
    }
}
