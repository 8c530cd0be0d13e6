//! Settings of ipamd: one table gives the struct, the file keys, the environment variables, the flags and
//! docs/configuration.md.
//!
//! Strength, increasing: default, `--config` file (TOML, `/etc/weft/ipamd.toml` if it exists), `WEFT_*`, flag. An unknown key
//! or a value that does not parse stops ipamd before it has touched anything.

#[cfg(test)]
mod tests;
mod values;

pub use values::*;

use crate::{kernel::Ipv6Forwarding, overlay::OverlayShortcut};
use ebpf_common::Timeouts;
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use values::Value;

/// Nanoseconds, as the programs count.
const SECOND: u64 = 1_000_000_000;
const TIMEOUTS: Timeouts = Timeouts::DEFAULT;

/// The file that is read when `--config` names none.
pub const DEFAULT_CONFIG: &str = "/etc/weft/ipamd.toml";

/// Why the settings are unusable.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The command line.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read the settings file {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is no TOML, or no table of plain values.
    #[error("settings file {path}: {cause}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting `{name}`; docs/configuration.md lists them")]
    Unknown {
        /// File or variable.
        origin: String,
        /// What was written.
        name: String,
    },
    /// A value does not parse.
    #[error("{origin}: `{value}` is no value for `{name}`: {cause}")]
    Value {
        /// File, variable or flag.
        origin: String,
        /// The setting.
        name: &'static str,
        /// What was written.
        value: String,
        /// What is expected.
        cause: String,
    },
}

/// One row of the table.
struct Row {
    name: &'static str,
    kind: &'static str,
    doc: &'static str,
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr, $kind:literal;)+) => {
        /// Settings of ipamd, all decided.
        #[derive(Debug, Clone)]
        pub struct Settings { $($(#[doc = $doc])+ pub $name: $type,)+ }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        const ROWS: &[Row] = &[$(Row { name: stringify!($name), kind: $kind, doc: concat!($($doc),+) },)+];

        impl Settings {
            fn set(&mut self, name: &str, text: &str, origin: &str) -> Result<(), SettingsError> {
                match name {
                    $(stringify!($name) => {
                        self.$name = <$type as Value>::read(text).map_err(|cause| SettingsError::Value {
                            origin: origin.to_owned(), name: stringify!($name), value: text.to_owned(), cause,
                        })?;
                    })+
                    _ => return Err(SettingsError::Unknown { origin: origin.to_owned(), name: name.to_owned() }),
                }
                Ok(())
            }

            fn shown(&self) -> BTreeMap<&'static str, String> {
                BTreeMap::from([$((stringify!($name), Value::show(&self.$name)),)+])
            }
        }
    };
}

settings! {
    /// Directory of the API socket, the journal and the release records. Must be on tmpfs and the host's own.
    run_dir: PathBuf = ipamd_api::DEFAULT_RUN_DIR.into(), "path";
    /// Directory of the embedded store and of what uninstalling needs.
    state_dir: PathBuf = "/var/lib/weft".into(), "path";
    /// Directory on a bpffs for pinned maps and links. The bpffs must be the host's own.
    bpf_dir: PathBuf = "/sys/fs/bpf/weft".into(), "path";
    /// Root of the cgroup2 hierarchy that holds the node's processes. Empty: the cgroup2 mount of the host.
    cgroup: String = String::new(), "path";
    /// The host's /proc/sys, for an ipamd in a container whose own is read-only: it is mounted over that one, in the container only. Empty: none.
    sysctl_dir: String = String::new(), "path";
    /// Name of this node in the cluster, a DNS name in lower case. Empty: the host name.
    node_name: String = String::new(), "text";
    /// How long a node that is not heard of counts as alive; then it is suspect, and keeps all that it holds. At least 2.
    node_ttl: Seconds = Seconds(30), "seconds";
    /// Where cluster state is: `embedded` keeps it in the state directory, for a single node; `etcd` shares it among nodes.
    store: StoreKind = StoreKind::Embedded, "`embedded` or `etcd`";
    /// URLs of etcd's members with their ports, all `https://` or all `http://`; one is used until it fails. Only with `store = "etcd"`,
    /// as all of the next seven.
    etcd_endpoints: List<String> = List(Vec::new()), "list of URLs";
    /// What stands before every key of this cluster in etcd, as `/name`: for clusters that share an etcd. Empty: nothing.
    etcd_prefix: String = String::new(), "text";
    /// PEM file with the authorities that sign etcd's certificates. `https://` needs it. This and the next two are read anew for each
    /// connection, so that they can be renewed in place.
    etcd_ca_file: String = String::new(), "path";
    /// PEM file with the certificate that ipamd shows to etcd, if it wants one.
    etcd_cert_file: String = String::new(), "path";
    /// PEM file with its private key. Only its owner may have access to it.
    etcd_key_file: String = String::new(), "path";
    /// The user that ipamd is to etcd, if it has users: one who may read and write the keys under `<etcd_prefix>/weft/`.
    etcd_user: String = String::new(), "text";
    /// File with that user's password. Only its owner may have access to it.
    etcd_password_file: String = String::new(), "path";
    /// How long a call to etcd may take. Nothing that containers wait for depends on it, except when a node is out of addresses.
    etcd_timeout: Milliseconds = Milliseconds(2000), "milliseconds";
    /// Addresses of this node by which the nodes of overlay networks reach each other, the preferred one first. Empty: the one that the
    /// default route leaves with.
    underlay: List<IpAddr> = List(Vec::new()), "list of addresses";
    /// UDP port of VXLAN between nodes; the same on all of them.
    overlay_port: u16 = 4789, "port";
    /// How packets of overlay networks pass between the programs and the underlay's device: `auto` past the VXLAN device and the host's
    /// stack, where nothing speaks against it; `off` through both, so that the host's firewall sees them.
    overlay_shortcut: OverlayShortcut = OverlayShortcut::Auto, "`auto` or `off`";
    /// MTU of networks that do not ask for one, bytes. That of overlay networks follows the underlay.
    mtu: u32 = 1500, "bytes";
    /// Pools for networks that ask for none: CIDRs, each with the prefix length of the pools cut from it.
    address_pools: List<AddressPool> = List(vec![AddressPool::DEFAULT]), "list of CIDR:length";
    /// How long a freed address is not given again.
    cool_down: Seconds = Seconds(30), "seconds";
    /// With fewer free addresses of a pool on this node the next block of it is claimed, before an ADD has to wait for it.
    spare_addresses: u32 = 16, "addresses";
    /// How long a block has been empty before it is given back; one empty block of each pool is kept.
    block_idle: Seconds = Seconds(300), "seconds";
    /// How often ipamd compares the node with what it should be, and frees endpoints whose sandbox is gone.
    sweep_interval: Seconds = Seconds(30), "seconds";
    /// How long a client may take to send a request.
    request_timeout: Seconds = Seconds(10), "seconds";
    /// Flows out of the host stack that the datapath remembers. 0: by the machine's memory.
    flow_entries: u32 = 0, "entries";
    /// Tracked flows (masquerade, published ports) that were answered. 0: by the machine's memory. When the table is full,
    /// further flows work on among those that wait, where a flood can evict them. Flows move into a table of another size at a start; a smaller
    /// one has to take all of them, else the table stays as it is until the next start.
    tracked_flows: u32 = 0, "flows";
    /// Tracked flows that wait for an answer; the oldest makes room for a new one. 0: a quarter of `tracked_flows`, at most 65536.
    unreplied_flows: u32 = 0, "flows";
    /// Seconds between two looks for flows that have expired.
    flow_sweep_interval: Seconds = Seconds(5), "seconds";
    /// Most flows of one endpoint that were answered, so that none can fill the table alone. 0: a quarter of the table.
    flow_quota: u32 = 0, "flows";
    /// Source ports for flows that leave with an uplink's address, when their own is taken. Keep it out of
    /// `net.ipv4.ip_local_port_range`, from which the host's own connections come.
    nat_ports: PortRange = PortRange { first: 61_000, last: 65_535 }, "first-last";
    /// Destinations that are left to the host's stack, with its rules: a service CIDR that kube-proxy serves.
    stack_cidrs: List<IpNetwork> = List(Vec::new()), "list of CIDRs";
    /// Host ports for those who publish on port 0. Below `net.ipv4.ip_local_port_range` (32768 to 60999), whose ports the host's
    /// own connections hold for a while, and below Kubernetes' NodePorts (30000 to 32767).
    publish_ports: PortRange = PortRange { first: 20_000, last: 29_999 }, "first-last";
    /// Who may use published ports of this node from outside. Empty: everybody.
    publish_allow: List<IpNetwork> = List(Vec::new()), "list of CIDRs";
    /// Who may not, whatever else says.
    publish_deny: List<IpNetwork> = List(Vec::new()), "list of CIDRs";
    /// How long a TCP connection is remembered after its last packet while it opens.
    tcp_opening_timeout: Seconds = Seconds(TIMEOUTS.tcp_opening / SECOND), "seconds";
    /// The same once both sides have spoken (RFC 5382 asks for two hours and four minutes at least).
    tcp_established_timeout: Seconds = Seconds(TIMEOUTS.tcp_established / SECOND), "seconds";
    /// The same when one side has closed.
    tcp_half_closed_timeout: Seconds = Seconds(TIMEOUTS.tcp_half_closed / SECOND), "seconds";
    /// The same when both sides have closed or one has reset.
    tcp_closed_timeout: Seconds = Seconds(TIMEOUTS.tcp_closed / SECOND), "seconds";
    /// How long a flow of UDP or another protocol is remembered after its last packet while nobody has answered.
    udp_unreplied_timeout: Seconds = Seconds(TIMEOUTS.udp_unreplied / SECOND), "seconds";
    /// The same once it was answered (RFC 4787 asks for two minutes at least).
    udp_replied_timeout: Seconds = Seconds(TIMEOUTS.udp_replied / SECOND), "seconds";
    /// The same for a ping.
    icmp_timeout: Seconds = Seconds(TIMEOUTS.icmp / SECOND), "seconds";
    /// At most one dropped packet of a reason is sampled in this time on each CPU, for `netctl drops --follow`.
    drop_event_interval: Milliseconds = Milliseconds(100), "milliseconds";
    /// Whether names of networks are answered by the programs; without, ipamd answers all of them.
    dns_in_kernel: bool = true, "`true` or `false`";
    /// How long names of networks may be remembered by those who asked.
    dns_ttl: Seconds = Seconds(5), "seconds";
    /// Whether forwarded names have capital and small letters mixed by chance, which answers have to repeat: harder to forge, and not
    /// every name server can do it.
    dns_mix_case: bool = false, "`true` or `false`";
    /// File with the name servers that are asked for names elsewhere (resolv.conf(5)). It is watched.
    resolv_conf: PathBuf = "/etc/resolv.conf".into(), "path";
    /// How IPv6 is forwarded: `auto` sets it per device where the kernel can (6.17), else for all; `all-devices` for all, with
    /// `accept_ra=2` on interfaces that take router advertisements, so that they go on taking them.
    ipv6_forwarding: Ipv6Forwarding = Ipv6Forwarding::Auto, "`auto` or `all-devices`";
    /// Folders with the runtimes' CNI configurations, read to see whether a plugin that needs the ingress qdisc follows weft.
    cni_conf_dirs: List<PathBuf> = List(vec!["/etc/cni/net.d".into()]), "list of paths";
    /// Users, beside root and ipamd's own, that may call the API. They also need write access to the socket.
    api_uids: List<u32> = List(Vec::new()), "list of user ids";
    /// Where metrics are served over TCP, as `127.0.0.1:9464` or `[::1]:9464`: to whoever reaches exactly these addresses. Empty: nowhere;
    /// the API's socket has them always.
    metrics_listen: List<SocketAddr> = List(Vec::new()), "list of address:port";
    /// What is logged: a tracing filter, as `info` or `ipamd=debug`.
    log_level: String = "info".to_owned(), "filter";
    /// Form of the log.
    log_format: LogFormat = LogFormat::Text, "`text` or `json`";
    /// File with the boot ID; another one lets a test play a reboot.
    boot_id_file: PathBuf = "/proc/sys/kernel/random/boot_id".into(), "path";
    /// File with what tells machines apart, so that a copy of a disk is not taken for the node that it was copied from.
    machine_id_file: PathBuf = "/sys/class/dmi/id/product_uuid".into(), "path";
}

impl Settings {
    /// Reads the settings of a command line and an environment.
    ///
    /// # Errors
    /// See [`SettingsError`]; `--help` and `--version` come as [`SettingsError::Usage`] too.
    pub fn read<I>(arguments: I, environment: &BTreeMap<String, String>) -> Result<Self, SettingsError>
    where
        I: IntoIterator<Item = OsString>,
    {
        let matches = command().try_get_matches_from(arguments)?;
        let mut settings = Self::default();
        match matches.get_one::<PathBuf>("config") {
            Some(path) => settings.read_file(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => settings.read_file(Path::new(DEFAULT_CONFIG))?,
            None => {}
        }
        for row in ROWS {
            if let Some(text) = environment.get(&variable(row.name)) {
                settings.set(row.name, text, &variable(row.name))?;
            }
        }
        for row in ROWS {
            if let Some(text) = matches.get_one::<String>(row.name) {
                settings.set(row.name, text, &format!("--{}", flag(row.name)))?;
            }
        }
        Ok(settings)
    }

    /// How long flows are remembered, as the programs take it.
    pub fn timeouts(&self) -> Timeouts {
        let nanoseconds = |s: Seconds| s.0.saturating_mul(SECOND);
        Timeouts {
            tcp_opening: nanoseconds(self.tcp_opening_timeout),
            tcp_established: nanoseconds(self.tcp_established_timeout),
            tcp_half_closed: nanoseconds(self.tcp_half_closed_timeout),
            tcp_closed: nanoseconds(self.tcp_closed_timeout),
            udp_unreplied: nanoseconds(self.udp_unreplied_timeout),
            udp_replied: nanoseconds(self.udp_replied_timeout),
            icmp: nanoseconds(self.icmp_timeout),
        }
    }

    fn read_file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| SettingsError::Read { path: path.to_owned(), cause })?;
        let syntax = |cause: String| SettingsError::Syntax { path: path.to_owned(), cause };
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| syntax(e.to_string()))?;
        for (name, value) in table {
            let text =
                plain(&value).ok_or_else(|| syntax(format!("`{name}` is neither a value nor a list")))?;
            self.set(&name, &text, &path.display().to_string())?;
        }
        Ok(())
    }
}

/// The text of a TOML value: lists joined by commas, as flags and variables write them.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(i) => Some(i.to_string()),
        toml::Value::Boolean(b) => Some(b.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(plain).collect();
            Some(items?.join(","))
        }
        _ => None,
    }
}

fn variable(name: &str) -> String {
    format!("WEFT_{}", name.to_uppercase())
}

fn flag(name: &str) -> String {
    name.replace('_', "-")
}

/// The command line: a flag for each setting, made from the table.
pub fn command() -> clap::Command {
    let defaults = Settings::default().shown();
    let config = clap::Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!("Settings file, TOML [default: {DEFAULT_CONFIG} if it exists]"));
    let base = clap::Command::new("ipamd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The node daemon of Weft: addresses, wiring and datapath of this node")
        .after_help("`ipamd install-cni` puts the CNI plugin on this node: see `ipamd install-cni --help`.")
        .arg(config);
    ROWS.iter().fold(base, |command, row| {
        let help =
            format!("{} [env: {}] [default: {}]", row.doc.trim(), variable(row.name), defaults[row.name]);
        command.arg(clap::Arg::new(row.name).long(flag(row.name)).value_name("VALUE").help(help))
    })
}

/// docs/configuration.md.
pub fn documentation() -> String {
    use fmt::Write as _;
    let defaults = Settings::default().shown();
    let mut out = String::from(
        "# Configuration of ipamd\n\n\
         Generated from the settings type (`ipamd/src/settings.rs`); a test fails when it is stale.\n\n\
         Strength, increasing: default, settings file (`--config FILE`, else `/etc/weft/ipamd.toml` if it exists), environment,\n\
         flag. In the file, lists are TOML arrays; in variables and flags they are separated by commas. An unknown key or a\n\
         value that does not parse stops ipamd before it has touched anything.\n\n\
         | file key | variable | flag | type | default | what it is |\n|---|---|---|---|---|---|\n",
    );
    for row in ROWS {
        let default = match defaults[row.name].as_str() {
            "" => "(empty)".to_owned(),
            text => format!("`{text}`"),
        };
        let (name, kind, doc) = (row.name, row.kind, row.doc.trim());
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| `{name}` | `{}` | `--{}` | {kind} | {default} | {doc} |",
            variable(name),
            flag(name)
        );
    }
    out
}
