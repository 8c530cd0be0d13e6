//! From settings and opened edges to the attachments of a node: the same for the daemon and for nodes that are simulated.
//!
//! Owns no thread. The store comes before the edges: what is wrong with its settings is said before anything is touched.

use super::{membership::keep_to_this_machine, store};
use crate::{
    attach::{AttachOptions, Attachments, Doomed, NameOptions, OverlayOptions},
    cluster::{Cache, Cluster},
    datapath::{Datapath, NodeSettings},
    journal::{self, Journal},
    kernel::Kernel,
    network::NetworkDefaults,
    networks::{self, Networks},
    settings::{Settings, StoreKind},
    store::{MeasuredStore, StoreTimes},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::runtime::Handle;

/// How long an ADD waits for other nodes to lend it an address: they answer within milliseconds or are away.
const LOAN_PATIENCE: Duration = Duration::from_secs(3);

/// The cluster's side of a node.
pub(super) struct ClusterSide {
    pub(super) cluster: Cluster,
    pub(super) networks: Networks,
    pub(super) store_times: Arc<StoreTimes>,
    node: String,
    boot_id: String,
}

impl ClusterSide {
    /// Opens the store, and reads what was kept of it.
    pub(super) fn open(
        settings: &Settings,
        runtime: Handle,
        node: String,
        boot_id: String,
    ) -> anyhow::Result<Self> {
        // What this boot began goes on, whatever the firmware is called by now; and a node by itself cannot be taken for another.
        if settings.store == StoreKind::Etcd
            && !journal::is_there(&settings.run_dir)
            && let Some(aside) = keep_to_this_machine(&settings.state_dir, &settings.machine_id_file)?
        {
            tracing::warn!(aside = %aside.display(), "the state directory is of another machine, of whose disk this one's may be a copy: this is a new node, and what the other had is set aside");
        }
        let store_times = Arc::<StoreTimes>::default();
        let store = MeasuredStore::new(store::open_store(settings, &node)?, Arc::clone(&store_times));
        let cluster = Cluster::new(Arc::new(store));
        let pools = settings.address_pools.0.iter().map(|p| (p.subnet, p.size)).collect();
        let defaults = NetworkDefaults { mtu: settings.mtu, address_pools: pools };
        let member = networks::Member::joining(node.clone(), boot_id.clone());
        let cache = Cache::new(&settings.state_dir);
        let networks = Networks::new(cluster.clone(), runtime, member, defaults, cache);
        networks.read_kept();
        Ok(Self { cluster, networks, store_times, node, boot_id })
    }

    /// Joins it with kernel and datapath, which know `node_settings` already.
    pub(super) fn join(
        self,
        settings: &Settings,
        kernel: Arc<dyn Kernel>,
        datapath: Arc<dyn Datapath>,
        node_settings: NodeSettings,
    ) -> anyhow::Result<(Cluster, Attachments, Doomed)> {
        let overlay = OverlayOptions {
            node: self.node,
            underlay: settings.underlay.0.clone(),
            port: settings.overlay_port,
            default_mtu: settings.mtu,
            guarded: store::listening(settings),
            shortcut: settings.overlay_shortcut,
            probes: Path::new("/proc/sys/net/ipv6").exists(),
            state_dir: settings.state_dir.clone(),
        };
        let options = AttachOptions {
            boot_id: self.boot_id,
            run_dir: settings.run_dir.clone(),
            cool_down: settings.cool_down.into(),
            spare_addresses: settings.spare_addresses.into(),
            block_idle: settings.block_idle.into(),
            loan_patience: LOAN_PATIENCE,
            cni_conf_dirs: settings.cni_conf_dirs.0.clone(),
            publish_ports: settings.publish_ports.into(),
            flow_quota: node_settings.flow_quota,
            stack_cidrs: node_settings.stack_cidrs,
            overlay,
            names: NameOptions {
                in_kernel: settings.dns_in_kernel,
                ttl: u32::try_from(settings.dns_ttl.0).unwrap_or(u32::MAX),
            },
        };
        let journal = Journal::open(&settings.run_dir)?;
        let (attachments, doomed) = Attachments::new(kernel, datapath, journal, self.networks, options);
        if let Err(error) = attachments.follow_host() {
            // The next event or the next start tries again; sandboxes and their networks do not depend on it.
            tracing::error!(%error, "the datapath does not know all of the host's devices");
        }
        Ok((self.cluster, attachments, doomed))
    }
}
