//! The types of settings, and how each is read and printed as one text.

use crate::{kernel::Ipv6Forwarding, overlay::OverlayShortcut};
use ipnetwork::IpNetwork;
use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// A type of setting: how it reads and prints as one text.
pub(super) trait Value: Sized {
    fn read(text: &str) -> Result<Self, String>;
    fn show(&self) -> String;
}

/// Which store holds cluster state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// redb in the state directory.
    Embedded,
    /// etcd, for many nodes.
    Etcd,
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
    pub(super) const DEFAULT: Self = {
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
    bool, "`true` or `false` is expected";
    u16, "a whole number up to 65535 is expected";
    IpAddr, "an IP address is expected";
    SocketAddr, "an IP address and a port are expected, as 127.0.0.1:9464 or [::1]:9464";
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
        match text {
            "embedded" => Ok(Self::Embedded),
            "etcd" => Ok(Self::Etcd),
            _ => Err("`embedded` or `etcd` is expected".into()),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Embedded => "embedded".into(),
            Self::Etcd => "etcd".into(),
        }
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

impl Value for OverlayShortcut {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("`auto` or `off` is expected".into()),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Off => "off".into(),
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
