//! Settings of ipamd: one table gives the struct, the file keys, the environment variables, the flags and
//! docs/configuration.md.
//!
//! Strength, increasing: default, `--config` file (TOML, `/etc/weft/ipamd.toml` if it exists), `WEFT_*`, flag. An unknown key
//! or a value that does not parse stops ipamd before it has touched anything.

use crate::kernel::Ipv6Forwarding;
use ebpf_common::Timeouts;
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

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

/// A type of setting: how it reads and prints as one text.
trait Value: Sized {
    fn read(text: &str) -> Result<Self, String>;
    fn show(&self) -> String;
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
    /// Name of this node in the cluster. Empty: the host name.
    node_name: String = String::new(), "text";
    /// Where cluster state is: `embedded` keeps it in the state directory, for a single node.
    store: StoreKind = StoreKind::Embedded, "`embedded`";
    /// MTU of networks that do not ask for one, bytes.
    mtu: u32 = 1500, "bytes";
    /// Pools for networks that ask for none: CIDRs, each with the prefix length of the pools cut from it.
    address_pools: List<AddressPool> = List(vec![AddressPool::DEFAULT]), "list of CIDR:length";
    /// How long a freed address is not given again.
    cool_down: Seconds = Seconds(30), "seconds";
    /// How often ipamd compares the node with what it should be, and frees endpoints whose sandbox is gone.
    sweep_interval: Seconds = Seconds(30), "seconds";
    /// How long a client may take to send a request.
    request_timeout: Seconds = Seconds(10), "seconds";
    /// Sizes of the tables of flows: so many out of the host stack, four times as many that were answered (131,072 at least),
    /// twice as many that were not. 0: by the machine's memory. Tables that are there keep their size.
    flow_entries: u32 = 0, "entries";
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
    /// How IPv6 is forwarded: `auto` sets it per device where the kernel can (6.17), else for all; `all-devices` for all, with
    /// `accept_ra=2` on interfaces that take router advertisements, so that they go on taking them.
    ipv6_forwarding: Ipv6Forwarding = Ipv6Forwarding::Auto, "`auto` or `all-devices`";
    /// Folders with the runtimes' CNI configurations, read to see whether a plugin that needs the ingress qdisc follows weft.
    cni_conf_dirs: List<PathBuf> = List(vec!["/etc/cni/net.d".into()]), "list of paths";
    /// Users, beside root and ipamd's own, that may call the API. They also need write access to the socket.
    api_uids: List<u32> = List(Vec::new()), "list of user ids";
    /// What is logged: a tracing filter, as `info` or `ipamd=debug`.
    log_level: String = "info".to_owned(), "filter";
    /// Form of the log.
    log_format: LogFormat = LogFormat::Text, "`text` or `json`";
    /// File with the boot ID; another one lets a test play a reboot.
    boot_id_file: PathBuf = "/proc/sys/kernel/random/boot_id".into(), "path";
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

/// Which store holds cluster state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// redb in the state directory.
    Embedded,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A duration in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub u64);

impl From<Seconds> for Duration {
    fn from(s: Seconds) -> Self {
        Self::from_secs(s.0)
    }
}

/// A duration in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Milliseconds(pub u64);

impl From<Milliseconds> for Duration {
    fn from(m: Milliseconds) -> Self {
        Self::from_millis(m.0)
    }
}

/// Ports in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl From<PortRange> for RangeInclusive<u16> {
    fn from(range: PortRange) -> Self {
        range.first..=range.last
    }
}

/// Values separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

/// A CIDR that default pools of one size are cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    /// The whole.
    pub subnet: IpNetwork,
    /// Prefix length of a pool.
    pub size: u8,
}

impl AddressPool {
    const DEFAULT: Self = {
        let address = std::net::Ipv4Addr::new(10, 210, 0, 0);
        match ipnetwork::Ipv4Network::new_checked(address, 16) {
            Some(subnet) => Self { subnet: IpNetwork::V4(subnet), size: 24 },
            None => panic!("10.210.0.0/16 is a CIDR"),
        }
    };
}

impl Value for AddressPool {
    fn read(text: &str) -> Result<Self, String> {
        let form = || format!("write CIDR:length, as {}", Self::DEFAULT.show());
        let (subnet, size) = text.rsplit_once(':').ok_or_else(form)?;
        let subnet: IpNetwork = subnet.parse().map_err(|_| form())?;
        let size: u8 = size.parse().map_err(|_| form())?;
        let longest = if subnet.is_ipv4() { 30 } else { 126 };
        if size < subnet.prefix() || size > longest {
            return Err(format!("the length must be {} to {longest}", subnet.prefix()));
        }
        Ok(Self { subnet, size })
    }

    fn show(&self) -> String {
        format!("{}:{}", self.subnet, self.size)
    }
}

macro_rules! plain_values {
    ($($type:ty, $expected:literal;)+) => {$(
        impl Value for $type {
            fn read(text: &str) -> Result<Self, String> {
                <$type as FromStr>::from_str(text.trim()).map_err(|_| $expected.to_owned())
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

plain_values! {
    u32, "a whole number is expected";
    String, "a text is expected";
}

impl Value for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a path is expected".into()) } else { Ok(text.into()) }
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for Seconds {
    fn read(text: &str) -> Result<Self, String> {
        text.trim().parse().map(Self).map_err(|_| "a number of seconds is expected".into())
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Value for Milliseconds {
    fn read(text: &str) -> Result<Self, String> {
        text.trim().parse().map(Self).map_err(|_| "a number of milliseconds is expected".into())
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Value for PortRange {
    fn read(text: &str) -> Result<Self, String> {
        let form = || "two ports are expected, the lower one first, as 20000-29999".to_owned();
        let (first, last) = text.split_once('-').ok_or_else(form)?;
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(form);
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(Self { first, last }) } else { Err(form()) }
    }
    fn show(&self) -> String {
        format!("{}-{}", self.first, self.last)
    }
}

impl Value for IpNetwork {
    fn read(text: &str) -> Result<Self, String> {
        let cidr: Self = text.trim().parse().map_err(|_| "an address or CIDR is expected".to_owned())?;
        Ok(crate::ipam::normalised(cidr))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for StoreKind {
    fn read(text: &str) -> Result<Self, String> {
        if text == "embedded" { Ok(Self::Embedded) } else { Err("this build knows `embedded`".into()) }
    }
    fn show(&self) -> String {
        "embedded".into()
    }
}

impl Value for Ipv6Forwarding {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "all-devices" => Ok(Self::AllDevices),
            _ => Err("`auto` or `all-devices` is expected".into()),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::AllDevices => "all-devices".into(),
        }
    }
}

impl Value for LogFormat {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("`text` or `json` is expected".into()),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Json => "json".into(),
        }
    }
}

impl<T: Value> Value for List<T> {
    fn read(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .map(T::read)
            .collect::<Result<_, _>>()
            .map(Self)
    }
    fn show(&self) -> String {
        self.0.iter().map(Value::show).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let arguments = std::iter::once("ipamd").chain(arguments.iter().copied()).map(OsString::from);
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::read(arguments, &environment)
    }

    #[test]
    fn flags_beat_variables_beat_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ipamd.toml");
        std::fs::write(
            &file,
            "mtu = 1400\ncool_down = 5\nnode_name = \"file\"\ncni_conf_dirs = [\"/a\", \"/b\"]\n",
        )
        .unwrap();
        let config = file.to_str().unwrap();
        let s =
            read(&["--config", config, "--mtu", "1300"], &[("WEFT_MTU", "1350"), ("WEFT_NODE_NAME", "env")])
                .unwrap();
        assert_eq!((s.mtu, s.cool_down, s.node_name.as_str()), (1300, Seconds(5), "env"));
        assert_eq!(s.cni_conf_dirs.0, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ipamd.toml");
        for (text, expected) in [
            ("mtuu = 1", "`mtuu`"),
            ("mtu = \"big\"", "`mtu`"),
            ("mtu = ", "line 1"),
            ("[mtu]\na = 1", "`mtu`"),
            ("address_pools = [\"10.0.0.0/8\"]", "CIDR:length"),
            ("address_pools = [\"10.0.0.0/8:4\"]", "8 to 30"),
            ("store = \"etcd\"", "embedded"),
            ("nat_ports = \"5\"", "two ports"),
            ("nat_ports = \"5-4\"", "two ports"),
            ("publish_ports = \"0-4\"", "two ports"),
            ("publish_ports = \"1-65536\"", "two ports"),
            ("publish_deny = [\"ten\"]", "CIDR"),
            ("drop_event_interval = -1", "milliseconds"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = read(&["--config", file.to_str().unwrap()], &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = read(&["--config", "/nowhere"], &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }

    #[test]
    fn every_default_reads_back() {
        let mut settings = Settings::default();
        for (name, text) in Settings::default().shown() {
            settings.set(name, &text, "test").unwrap();
        }
        assert_eq!(settings.shown(), Settings::default().shown());
    }

    #[test]
    fn the_documentation_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        if std::env::var_os("WEFT_BLESS").is_some() {
            std::fs::write(&path, documentation()).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == documentation(),
            "docs/configuration.md is stale: run WEFT_BLESS=1 cargo test -p ipamd settings"
        );
    }
}
