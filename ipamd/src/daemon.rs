//! The composition root: opens every edge, joins them, runs the threads, serves, and stops without destroying anything.

use crate::{
    attach::{AttachOptions, Attachments, Doomed},
    clock::{BootClock, Clock as _},
    cluster::{Cluster, Node},
    datapath::{Datapath, DatapathOptions, EbpfDatapath},
    journal::{self, Journal},
    kernel::{Kernel, KernelOptions, LinkEvent, LinkWatch, NetlinkKernel},
    network::NetworkDefaults,
    networks::Networks,
    preflight,
    server::{self, ServerOptions},
    settings::Settings,
    store::EmbeddedStore,
};
use anyhow::Context as _;
use ipamd_api::{API_VERSION, ApiError, Health, Inspection, PartStatus, RELEASED_DIR, SOCKET_NAME, Status};
use nix::sys::{
    inotify::{AddWatchFlags, InitFlags, Inotify},
    resource::{Resource, getrlimit, setrlimit},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{net::UnixListener, runtime::Handle, signal::unix, sync::watch};

/// What the API serves.
pub struct NodeState {
    /// The attachments.
    pub attachments: Arc<Attachments>,
    node: String,
    boot_id: String,
    started: Duration,
}

impl NodeState {
    /// State of the node.
    pub fn status(&self) -> Status {
        let attachments = &self.attachments;
        let mut parts = vec![
            PartStatus { part: "store".into(), health: Health::Ok, message: "embedded".into() },
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
        self.attachments.inspect(what)
    }
}

/// Runs ipamd until SIGTERM or SIGINT.
///
/// # Errors
/// Something that it cannot do without is missing; nothing was changed then, or only what the next start adopts.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    preflight::check(&settings)?;
    allow_many_files();
    make_directory(&settings.run_dir)?;
    make_directory(&settings.state_dir)?;
    let _lock = journal::lock(&settings.run_dir)?;
    let node = node_name(&settings)?;
    let boot_id = journal::boot_id(&settings.boot_id_file)?;
    let attachments = Handle::current();
    let opened = {
        let (settings, node, boot_id) = (settings.clone(), node.clone(), boot_id.clone());
        tokio::task::spawn_blocking(move || open(&settings, attachments, node, boot_id))
    };
    let (attachments, doomed, events) =
        opened.await.context("opening the node's state failed inside ipamd")??;

    let (stop_sender, stop) = watch::channel(false);
    let stopping = Arc::new(AtomicBool::new(false));
    let reaper = {
        let (attachments, stopping) = (Arc::clone(&attachments), Arc::clone(&stopping));
        spawn("reaper", move || attachments.reap(&doomed, || stopping.load(Ordering::Relaxed)))?
    };
    let recovery = {
        let attachments = Arc::clone(&attachments);
        tokio::task::spawn_blocking(move || attachments.recover())
    };
    let recovery = recovery.await.context("recovering failed inside ipamd")??;
    tracing::info!(?recovery, "took over what was there");

    watch_kernel(&attachments, events)?;
    watch_releases(&attachments, &settings.run_dir)?;
    let sweeper =
        tokio::spawn(sweep_regularly(Arc::clone(&attachments), settings.sweep_interval.into(), stop.clone()));

    // Before anybody can know that ipamd is ready, and tell it to stop.
    let terminated = terminated()?;
    let listener = listen(&settings.run_dir.join(SOCKET_NAME))?;
    let state = Arc::new(NodeState { attachments, node, boot_id, started: BootClock.now() });
    let options =
        ServerOptions { uids: settings.api_uids.0.clone(), timeout: settings.request_timeout.into() };
    let server = tokio::spawn(server::serve(listener, state, options, stop));
    // Without systemd there is no NOTIFY_SOCKET, and this does nothing.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "could not tell the service manager that ipamd is ready");
    }
    tracing::info!(run_dir = %settings.run_dir.display(), "ready");

    terminated.await;
    tracing::info!("stopping; sandboxes keep their network");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop_sender.send_replace(true);
    server.await.context("the server failed")?;
    sweeper.await.context("the sweeper failed")?;
    stopping.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(move || reaper.join()).await.context("the reaper failed")?.ok();
    Ok(())
}

fn open(
    settings: &Settings,
    runtime: Handle,
    node: String,
    boot_id: String,
) -> anyhow::Result<(Arc<Attachments>, Doomed, LinkWatch)> {
    let store = EmbeddedStore::open(&settings.state_dir, Arc::new(BootClock))?;
    let cluster = Cluster::new(Arc::new(store));
    let this = Node { name: node.clone(), boot_id: boot_id.clone() };
    if let Some(before) = runtime.block_on(cluster.register_node(&this))?
        && before.boot_id != boot_id
    {
        tracing::info!(node, "first start after a boot");
    }
    let pools = settings.address_pools.0.iter().map(|p| (p.subnet, p.size)).collect();
    let defaults = NetworkDefaults { mtu: settings.mtu, address_pools: pools };
    let networks = Networks::new(cluster, runtime, node, defaults);
    let kernel = NetlinkKernel::new(&KernelOptions {
        state_dir: settings.state_dir.clone(),
        ipv6_forwarding: settings.ipv6_forwarding,
    })?;
    // Before anything is looked at, so that no change falls between looking and watching.
    let events = kernel.watch_links()?;
    let kernel: Arc<dyn Kernel> = Arc::new(kernel);
    let options =
        DatapathOptions { flow_entries: flow_entries(settings.flow_entries), ..DatapathOptions::default() };
    let datapath: Arc<dyn Datapath> = Arc::new(EbpfDatapath::open(&settings.bpf_dir, &options)?);
    let journal = Journal::open(&settings.run_dir)?;
    let options = AttachOptions {
        boot_id,
        run_dir: settings.run_dir.clone(),
        cool_down: settings.cool_down.into(),
        cni_conf_dirs: settings.cni_conf_dirs.0.clone(),
    };
    let (attachments, doomed) = Attachments::new(kernel, datapath, journal, networks, options);
    Ok((Arc::new(attachments), doomed, events))
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

/// The setting, or by the machine's memory: one flow (128 bytes in the kernel) for each 256 KiB.
fn flow_entries(setting: u32) -> u32 {
    if setting > 0 {
        return setting;
    }
    let total = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    u32::try_from(total >> 18).unwrap_or(u32::MAX).clamp(16_384, 524_288)
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot make {}; make it, or set another directory", path.display()))
}

fn node_name(settings: &Settings) -> anyhow::Result<String> {
    let name = if settings.node_name.is_empty() {
        let host = nix::unistd::gethostname().context("the host name cannot be read; set node_name")?;
        host.to_string_lossy().into_owned()
    } else {
        settings.node_name.clone()
    };
    ipamd_api::check_name("node name", &name)
        .context("set node_name to a name of letters, digits, `_`, `.`, `-`")?;
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

async fn sweep_regularly(attachments: Arc<Attachments>, interval: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        let this = Arc::clone(&attachments);
        let swept = tokio::task::spawn_blocking(move || {
            this.replay_releases();
            this.sweep()
        });
        if let Ok(Err(error)) = swept.await {
            tracing::error!(%error, "the sweep failed; the next one tries again");
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Follows qdiscs that others put on host-side veths.
fn watch_kernel(attachments: &Arc<Attachments>, events: LinkWatch) -> anyhow::Result<()> {
    let attachments = Arc::clone(attachments);
    // It ends with the process: it only reads.
    spawn("kernel-events", move || {
        for event in events {
            match event {
                LinkEvent::QdiscChanged { ifindex } => attachments.follow_shaping(Some(ifindex)),
                LinkEvent::Overrun => attachments.follow_shaping(None),
            }
        }
        tracing::error!(
            "events of links are no longer watched; shaping that others change is seen by the sweep"
        );
    })?;
    Ok(())
}

/// Replays release records as they come (a plugin whose call timed out leaves one while ipamd runs).
fn watch_releases(attachments: &Arc<Attachments>, run_dir: &Path) -> anyhow::Result<()> {
    let dir = run_dir.join(RELEASED_DIR);
    make_directory(&dir)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("inotify is not to be had")?;
    inotify
        .add_watch(&dir, AddWatchFlags::IN_MOVED_TO)
        .with_context(|| format!("cannot watch {}", dir.display()))?;
    let attachments = Arc::clone(attachments);
    spawn("released", move || {
        while inotify.read_events().is_ok() {
            attachments.replay_releases();
        }
        tracing::error!("release records are no longer watched; the sweep reads them");
    })?;
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .with_context(|| format!("cannot start the thread {name}"))
}
