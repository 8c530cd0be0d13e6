//! The composition root: opens every edge, joins them, runs the threads, serves, and stops without destroying anything.

mod assembly;
mod calls;
mod clocks;
pub mod membership;
mod names;
mod node;
mod nodes;
mod paths;
mod peers;
mod resolver;
#[cfg(feature = "contract")]
pub mod simulated;
mod store;
mod traces;
mod watches;

pub use node::NodeState;
pub use nodes::Nodes;
pub use resolver::question_view;

use crate::{
    attach::{Attachments, Doomed},
    calls::{self as history, Calls},
    clock::unix_millis,
    cluster::{CACHE_NAME, Cluster, NODE_ADDRESSES_NAME, PEERS_NAME},
    datapath::{Datapath, DatapathOptions, EbpfDatapath, NodeSettings},
    dns::{DnsOptions, DnsServer},
    journal,
    kernel::{HostWatch, Kernel, KernelOptions, LinkWatch, NetlinkKernel},
    memory,
    metrics::Metrics,
    preflight::{self, Ground},
    server::{self, ServerOptions},
    settings::Settings,
    store::{FILE_NAME as STORE_FILE_NAME, StoreTimes},
};
use anyhow::Context as _;
use assembly::ClusterSide;
use clocks::answer_clocks;
use ipamd_api::{CallPhase, CallVerb, SOCKET_NAME, netns::own_cookie};
use names::{Teller, follow_names, listen_at_gateways};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use paths::Paths;
use peers::Peers;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{net::UnixListener, runtime::Handle, signal::unix, sync::watch};
use traces::answer_traces;
use watches::{
    follow_store, read_drops, spawn, sweep_flows, sweep_regularly, watch_host, watch_kernel, watch_releases,
};

/// Runs ipamd until SIGTERM or SIGINT.
///
/// # Errors
/// Something that it cannot do without is missing; nothing was changed then, or only what the next start adopts.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    preflight::mount_sysctls(&settings)?;
    let ground = preflight::check(&settings)?;
    allow_many_files();
    make_directory(&settings.run_dir)?;
    make_directory(&settings.state_dir)?;
    let _lock = journal::lock(&settings.run_dir)?;
    let node = node_name(&settings)?;
    let boot_id = journal::boot_id(&settings.boot_id_file)?;
    let attachments = Handle::current();
    let opened = {
        let (settings, node, boot_id) = (settings.clone(), node.clone(), boot_id.clone());
        tokio::task::spawn_blocking(move || open(&settings, &ground, attachments, node, boot_id))
    };
    let Opened { attachments, cluster, store_times, doomed, link_events, host_events } =
        opened.await.context("opening the node's state failed inside ipamd")??;
    let nodes = Nodes::join(&settings, cluster, &attachments, &node, &boot_id).await?;

    let calls = Arc::new(Calls::open(&settings.run_dir));
    let timed = Arc::clone(&calls);
    attachments.record_replays(Arc::clone(&calls));
    attachments.time_removals(move |took| timed.observe(CallVerb::Del, CallPhase::Wire, took));
    let (stop_sender, stop) = watch::channel(false);
    let stopping = Arc::new(AtomicBool::new(false));
    let reaper = {
        let (attachments, stopping) = (Arc::clone(&attachments), Arc::clone(&stopping));
        spawn("reaper", move || attachments.reap(&doomed, || stopping.load(Ordering::Relaxed)))?
    };
    // The follower of peers begins with what the recovery reads.
    attachments.networks().keep_ownership();
    let recovery = {
        let attachments = Arc::clone(&attachments);
        tokio::task::spawn_blocking(move || attachments.recover())
    };
    let recovery = recovery.await.context("recovering failed inside ipamd")??;
    tracing::info!(?recovery, "took over what was there");

    // Before the API opens: the first ADD needs to know where others are.
    let peers = Peers::start(Arc::clone(&attachments), &settings.state_dir).await;
    let peers = tokio::spawn(peers.run(stop.clone()));
    let paths = tokio::spawn(Paths::new(Arc::clone(&attachments)).run(stop.clone()));
    let keeper = {
        let (attachments, stopping) = (Arc::clone(&attachments), Arc::clone(&stopping));
        spawn("addresses", move || attachments.keep_addresses(|| stopping.load(Ordering::Relaxed)))?
    };
    let options = DnsOptions {
        resolv_conf: settings.resolv_conf.clone(),
        mix_case: settings.dns_mix_case,
        ..DnsOptions::default()
    };
    let dns = DnsServer::start(Arc::clone(&attachments) as _, options);
    let dns = Arc::new(dns.context("the resolver cannot be started")?);
    let inside = {
        let (attachments, dns) = (Arc::clone(&attachments), Arc::clone(&dns) as _);
        tokio::task::spawn_blocking(move || attachments.answer_in_sandboxes(&dns))
    };
    inside.await.context("answering inside of sandboxes failed inside ipamd")?;
    let names = [
        tokio::spawn(Teller::new(Arc::clone(&attachments), Arc::clone(&nodes.member)).run(stop.clone())),
        tokio::spawn(follow_names(Arc::clone(&attachments), stop.clone())),
        tokio::spawn(listen_at_gateways(Arc::clone(&attachments), Arc::clone(&dns), stop.clone())),
    ];
    let follower = tokio::spawn(follow_store(Arc::clone(&attachments), stop.clone()));
    let (cluster, member) = (nodes.cluster.clone(), Arc::clone(&nodes.member));
    let clocks = tokio::spawn(answer_clocks(cluster, node.clone(), member, unix_millis, stop.clone()));
    let answerer = tokio::spawn(answer_traces(Arc::clone(&attachments), stop.clone()));
    watch_kernel(&attachments, link_events)?;
    watch_host(&attachments, host_events)?;
    watch_releases(&attachments, &settings.run_dir)?;
    let sweeper =
        tokio::spawn(sweep_regularly(Arc::clone(&attachments), settings.sweep_interval.into(), stop.clone()));
    let nat_ports = settings.nat_ports.last.saturating_sub(settings.nat_ports.first);
    let metrics = Metrics::new(store_times, u32::from(nat_ports) + 1);
    let forecasts = tokio::spawn(metrics.follow_pools(Arc::clone(&attachments), stop.clone()));
    let state = Arc::new(NodeState::new(attachments, nodes, dns, calls, metrics, node, boot_id));
    let flow_sweeper =
        tokio::spawn(sweep_flows(Arc::clone(&state), settings.flow_sweep_interval.into(), stop.clone()));

    read_drops(&state, &stopping)?;

    // Before anybody can know that ipamd is ready, and tell it to stop.
    let terminated = terminated()?;
    let listener = listen(&settings.run_dir.join(SOCKET_NAME))?;
    let options =
        ServerOptions { uids: settings.api_uids.0.clone(), timeout: settings.request_timeout.into() };
    let scrapes: Vec<_> = settings
        .metrics_listen
        .0
        .iter()
        .map(|address| {
            let timeout = settings.request_timeout.into();
            tokio::spawn(server::serve_metrics(*address, Arc::clone(&state), timeout, stop.clone()))
        })
        .collect();
    let server = tokio::spawn(server::serve(listener, Arc::clone(&state), options, stop));
    // Without systemd there is no NOTIFY_SOCKET, and this does nothing.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "could not tell the service manager that ipamd is ready");
    }
    tracing::info!(run_dir = %settings.run_dir.display(), "ready");
    // Most of what the start took is free by now.
    memory::give_back();

    let uninstalled = tokio::select! {
        () = terminated => false,
        () = state.uninstalled.notified() => true,
    };
    if uninstalled {
        tracing::info!("stopping, because Weft was uninstalled");
    } else {
        tracing::info!("stopping; sandboxes keep their network");
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop_sender.send_replace(true);
    server.await.context("the server failed")?;
    for scrapes in scrapes {
        scrapes.await.context("the server of metrics failed")?;
    }
    state.nodes.end().await;
    sweeper.await.context("the sweeper failed")?;
    flow_sweeper.await.context("the sweeper of flows failed")?;
    peers.await.context("the follower of the cluster failed")?;
    paths.await.context("the prober of ways to other nodes failed")?;
    follower.await.context("the follower of the store failed")?;
    forecasts.await.context("the follower of pools failed")?;
    clocks.await.context("the task that tells the time failed")?;
    answerer.await.context("the task that answers other nodes' questions failed")?;
    for task in names {
        task.await.context("a task of names failed")?;
    }
    stopping.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(move || reaper.join()).await.context("the reaper failed")?.ok();
    tokio::task::spawn_blocking(move || keeper.join()).await.context("the keeper of addresses failed")?.ok();
    if uninstalled {
        remove_files(&settings);
    }
    Ok(())
}

/// Removes what is left of Weft in files: last, because the lock keeps others off until here.
fn remove_files(settings: &Settings) {
    let (run, state) = (&settings.run_dir, &settings.state_dir);
    for file in [
        state.join(STORE_FILE_NAME),
        state.join(CACHE_NAME),
        state.join(membership::ID_NAME),
        state.join(membership::MACHINE_NAME),
        state.join(NODE_ADDRESSES_NAME),
        state.join(PEERS_NAME),
        run.join(SOCKET_NAME),
        run.join(history::FILE_NAME),
        run.join(journal::LOCK_NAME),
    ] {
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::error!(file = %file.display(), %error, "a file of Weft stays");
        }
    }
    for dir in [run, state] {
        // Those with files of others stay, and that is no mistake.
        let _ = fs::remove_dir(dir);
    }
}

/// What [`open`] opens.
struct Opened {
    attachments: Arc<Attachments>,
    cluster: Cluster,
    store_times: Arc<StoreTimes>,
    doomed: Doomed,
    link_events: LinkWatch,
    host_events: HostWatch,
}

fn open(
    settings: &Settings,
    ground: &Ground,
    runtime: Handle,
    node: String,
    boot_id: String,
) -> anyhow::Result<Opened> {
    let side = ClusterSide::open(settings, runtime, node, boot_id)?;
    let kernel = NetlinkKernel::new(&KernelOptions {
        state_dir: settings.state_dir.clone(),
        ipv6_forwarding: settings.ipv6_forwarding,
    })?;
    // Before anything is looked at, so that no change falls between looking and watching.
    let (link_events, host_events) = (kernel.watch_links()?, kernel.watch_host()?);
    let kernel: Arc<dyn Kernel> = Arc::new(kernel);
    let tracked = by_memory(settings.tracked_flows, MEMORY_OF_TRACKED, 16_384..=1 << 20);
    let unreplied = match settings.unreplied_flows {
        // Their table takes its memory at once; what is answered leaves it at once, too.
        0 => (tracked / 4).min(65_536),
        flows => flows,
    };
    let options = DatapathOptions {
        flow_entries: by_memory(settings.flow_entries, MEMORY_OF_FLOW, 16_384..=524_288),
        // Each flow is two entries, one for each direction.
        replied_entries: tracked.saturating_mul(2),
        new_entries: unreplied.saturating_mul(2),
        cgroup: Some(ground.cgroup.clone()),
        ..DatapathOptions::default()
    };
    let datapath: Arc<dyn Datapath> = Arc::new(EbpfDatapath::open(&settings.bpf_dir, &options)?);
    let node_settings = node_settings(settings, datapath.flow_capacity())?;
    datapath.configure(&node_settings)?;
    let store_times = Arc::clone(&side.store_times);
    let (cluster, attachments, doomed) = side.join(settings, kernel, datapath, node_settings)?;
    Ok(Opened { attachments: Arc::new(attachments), cluster, store_times, doomed, link_events, host_events })
}

/// What the programs are told of the settings.
fn node_settings(settings: &Settings, flow_capacity: usize) -> anyhow::Result<NodeSettings> {
    let flow_quota = match settings.flow_quota {
        0 => u32::try_from(flow_capacity / 4).unwrap_or(u32::MAX).max(1),
        quota => quota,
    };
    Ok(NodeSettings {
        host_cookie: own_cookie().context("the network namespace of ipamd has no cookie")?,
        nat_ports: settings.nat_ports.into(),
        flow_quota,
        timeouts: settings.timeouts(),
        stack_cidrs: settings.stack_cidrs.0.clone(),
        publish_allow: settings.publish_allow.0.clone(),
        publish_deny: settings.publish_deny.0.clone(),
        event_interval: settings.drop_event_interval.into(),
    })
}

/// Raises the limit of open files as far as this process may: the usual 1024 is what a shell's `select` needs, and idle clients
/// would use it up.
fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Memory of the machine for which the datapath remembers one flow out of the host stack (128 bytes in the kernel).
const MEMORY_OF_FLOW: u64 = 256 << 10;

/// The same for a tracked flow (two entries of about 200 bytes).
const MEMORY_OF_TRACKED: u64 = 64 << 10;

/// The setting, or if it is 0, one for so many bytes of the machine's memory.
fn by_memory(setting: u32, bytes_each: u64, limits: std::ops::RangeInclusive<u32>) -> u32 {
    if setting > 0 {
        return setting;
    }
    let total = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    u32::try_from(total / bytes_each).unwrap_or(u32::MAX).clamp(*limits.start(), *limits.end())
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot make {}; make it, or set another directory", path.display()))
}

fn node_name(settings: &Settings) -> anyhow::Result<String> {
    let name = if settings.node_name.is_empty() {
        let host = nix::unistd::gethostname().context("the host name cannot be read; set node_name")?;
        // Host names are the same in either case (RFC 1123, section 2.1); keys are not.
        host.to_string_lossy().to_lowercase()
    } else {
        settings.node_name.clone()
    };
    ipamd_api::check_node_name(&name)
        .context("set node_name to a DNS name: lower-case letters, digits, `-`, `.`")?;
    Ok(name)
}

/// Binds the socket with mode 0600. A socket that is there is stale: the lock on the run directory is ours.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove the stale socket {}", path.display()));
        }
        _ => {}
    }
    // Bound under another name, so that nobody can connect before the mode is right.
    let temporary = path.with_extension("sock.new");
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)
        .with_context(|| format!("cannot listen at {}", temporary.display()))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot make the socket {}", path.display()))?;
    Ok(listener)
}

fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = unix::signal(unix::SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut int = unix::signal(unix::SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
