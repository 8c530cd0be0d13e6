//! What an endpoint is called: its [`Host`], out of what its runtime and its user said. Pure.
//!
//! Whoever says a name by hand (aliases, Weft's own labels) is told when it cannot be one; what a runtime says unasked, and the
//! container ID, is left out then. A record of an older Weft is judged as leniently: what was let in stays in.

use super::{DomainName, Host, Service};
use ipamd_api::{AttachmentKey, EndpointOptions, PortMapping, label};
use std::{collections::BTreeSet, net::IpAddr};

/// Characters of the short ID of a container, as docker and podman show it.
const SHORT_ID: usize = 12;

/// Length of the container IDs of containerd, podman and docker.
const WHOLE_ID: usize = 64;

/// Most ports of a published range that get a name each.
const MOST_OF_RANGE: u16 = 16;

/// Names of ports that people write in SRV questions (IANA's registry of service names).
const WELL_KNOWN: [(u16, &str); 24] = [
    (21, "ftp"),
    (22, "ssh"),
    (25, "smtp"),
    (53, "domain"),
    (80, "http"),
    (110, "pop3"),
    (123, "ntp"),
    (143, "imap"),
    (389, "ldap"),
    (443, "https"),
    (636, "ldaps"),
    (993, "imaps"),
    (1433, "ms-sql-s"),
    (1883, "mqtt"),
    (2049, "nfs"),
    (3306, "mysql"),
    (4222, "nats"),
    (5060, "sip"),
    (5222, "xmpp-client"),
    (5432, "postgresql"),
    (5672, "amqp"),
    (6379, "redis"),
    (9042, "cassandra"),
    (27017, "mongodb"),
];

/// A name that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown:?} cannot be a name: {rule}")]
pub struct NameRefusal {
    what: &'static str,
    shown: String,
    rule: String,
}

/// What an endpoint is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// Its names, addresses and services.
    pub host: Host,
    /// What it searches: the first six, as resolvers take no more (resolv.conf(5)). Other nodes are told.
    pub search: BTreeSet<DomainName>,
    /// What may stand behind names beside the network's name, as it searches.
    pub domains: BTreeSet<DomainName>,
    /// What was left out, and why.
    pub left_out: Vec<NameRefusal>,
}

/// What says how an endpoint is called.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// Its key.
    pub attachment: &'a AttachmentKey,
    /// Its options.
    pub options: &'a EndpointOptions,
    /// Name of its network.
    pub network: &'a str,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// What it publishes.
    pub published: &'a [PortMapping],
}

/// Refuses what was said by hand and cannot be a name.
///
/// # Errors
/// The first such name, with the rule.
pub fn check(options: &EndpointOptions) -> Result<(), NameRefusal> {
    by_hand(options).into_iter().try_for_each(|saying| saying.name.map(drop))?;
    services_by_hand(options).try_for_each(|service| service.map(drop))
}

/// What an endpoint is called.
pub fn called(said: &Said<'_>) -> Called {
    let mut left_out = Vec::new();
    let mut sayings = by_hand(said.options);
    sayings.extend(of_runtime(said.options));
    sayings.push(Saying::new(Rank::Id, "container ID", short_id(&said.attachment.container_id)));
    // The first one is what its addresses are called.
    sayings.sort_by_key(|saying| saying.rank);
    let names: Vec<DomainName> =
        sayings.into_iter().filter_map(|saying| saying.name.map_err(|e| left_out.push(e)).ok()).collect();

    let first = names.first().cloned().unwrap_or_default();
    let network = said.network.parse::<DomainName>().ok();
    let canonical = network.as_ref().and_then(|network| first.within(network)).unwrap_or(first);
    let services = services_by_hand(said.options).filter_map(|s| s.map_err(|e| left_out.push(e)).ok());
    let mut services: BTreeSet<Service> = services.collect();
    services.extend(said.published.iter().chain(&said.options.port_mappings).flat_map(services_of));
    let mut searched = Vec::new();
    for text in said.options.dns.search.iter().chain(&said.options.dns.domain) {
        match text.parse::<DomainName>() {
            // "." searches nothing.
            Ok(domain) if domain.is_root() => {}
            Ok(domain) => searched.push(domain),
            Err(error) => left_out.push(refuse("search domain", text, error.rule())),
        }
    }
    let search: BTreeSet<DomainName> = searched.iter().take(COMBINED).cloned().collect();
    let mut domains = searched_after(network.as_ref(), &search);
    domains.extend(searched);
    let host = Host {
        names: names.into_iter().collect(),
        canonical,
        addresses: said.addresses.iter().copied().collect(),
        services: services.into_iter().collect(),
    };
    Called { host, search, domains, left_out }
}

/// Most search domains whose combinations are known: resolvers take six (resolv.conf(5)).
const COMBINED: usize = 6;

/// What may stand behind a name when a resolver has been through its search list: each of the domains, and each behind a domain that
/// somebody wrote out. So `db.shop` is found by the first question of a resolver that appends its domains first (`ndots`).
pub fn searched_after(network: Option<&DomainName>, search: &BTreeSet<DomainName>) -> BTreeSet<DomainName> {
    let written = || network.into_iter().chain(search);
    let combined = written().flat_map(|domain| search.iter().filter_map(|behind| domain.within(behind)));
    combined.chain(search.iter().cloned()).collect()
}

/// Where a name comes from, the preferred one first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Container,
    HostName,
    Alias,
    Id,
}

/// A name that was said.
struct Saying {
    rank: Rank,
    name: Result<DomainName, NameRefusal>,
}

impl Saying {
    fn new(rank: Rank, what: &'static str, text: &str) -> Self {
        Self { rank, name: host_name(what, text) }
    }
}

/// The value of a label, unless it is empty.
fn label_of<'a>(options: &'a EndpointOptions, key: &str) -> Option<&'a str> {
    options.labels.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

fn by_hand(options: &EndpointOptions) -> Vec<Saying> {
    let named = |rank, key| label_of(options, key).map(|text| Saying::new(rank, key, text));
    let aliases = label_of(options, label::ALIASES).unwrap_or_default().split(',').map(str::trim);
    let aliases = aliases.filter(|alias| !alias.is_empty());
    let mut all: Vec<Saying> = named(Rank::Container, label::NAME).into_iter().collect();
    all.extend(named(Rank::HostName, label::HOSTNAME));
    all.extend(options.aliases.iter().map(|alias| Saying::new(Rank::Alias, "alias", alias)));
    all.extend(aliases.map(|alias| Saying::new(Rank::Alias, label::ALIASES, alias)));
    all
}

/// What runtimes say unasked, where nothing else was said by hand.
fn of_runtime(options: &EndpointOptions) -> Vec<Saying> {
    let unless = |own, key| label_of(options, key).filter(|_| label_of(options, own).is_none());
    let mut all = Vec::new();
    if let Some(pod) = unless(label::NAME, label::POD_NAME) {
        all.push(Saying::new(Rank::Container, label::POD_NAME, pod));
        // Podman says the container's name twice.
        if let Some(namespace) = label_of(options, label::POD_NAMESPACE).filter(|namespace| *namespace != pod)
        {
            all.push(Saying::new(Rank::Alias, label::POD_NAMESPACE, &format!("{pod}.{namespace}")));
        }
    }
    let hostname = unless(label::HOSTNAME, label::HOSTNAME_OF_NERDCTL);
    all.extend(hostname.map(|text| Saying::new(Rank::HostName, label::HOSTNAME_OF_NERDCTL, text)));
    all
}

/// The first characters of a container's ID. Nerdctl puts containerd's namespace before it.
fn short_id(container_id: &str) -> &str {
    let behind = container_id.rsplit_once('-').map(|(_, id)| id);
    let is_whole = |id: &&str| id.len() == WHOLE_ID && id.bytes().all(|b| b.is_ascii_hexdigit());
    let id = behind.filter(is_whole).unwrap_or(container_id);
    id.get(..SHORT_ID).unwrap_or(id)
}

fn refuse(what: &'static str, text: &str, rule: impl Into<String>) -> NameRefusal {
    NameRefusal { what, shown: text.chars().take(64).collect(), rule: rule.into() }
}

/// A name of a host: what resolvers send as it is (RFC 952 and 1123, with `_`), and ask nobody else for.
///
/// # Errors
/// It is none; `what` says in the message what it was to name.
pub fn host_name(what: &'static str, text: &str) -> Result<DomainName, NameRefusal> {
    let refuse = |rule: &str| Err(refuse(what, text, rule));
    if text.parse::<IpAddr>().is_ok() {
        return refuse("it is an address, which nobody asks for");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return refuse("it may only have letters, digits, `-`, `_` and `.`");
    }
    let name = match text.parse::<DomainName>() {
        Ok(name) if name.is_root() => return refuse("it is empty"),
        Ok(name) => name,
        Err(error) => return refuse(error.rule()),
    };
    if name.labels().any(|label| label.starts_with(b"-")) {
        return refuse("a part between dots begins with `-`");
    }
    match name.labels().last() {
        Some(b"localhost") => refuse("`localhost` is everybody's own (RFC 6761)"),
        Some(b"arpa") => refuse("names within `arpa` are those of addresses"),
        _ => Ok(name),
    }
}

/// What [`label::SRV`] says: `_http._tcp:80`, with commas between.
fn services_by_hand(options: &EndpointOptions) -> impl Iterator<Item = Result<Service, NameRefusal>> {
    let list = options.labels.get(label::SRV).map_or("", String::as_str);
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| {
        service(part).ok_or_else(|| {
            refuse(label::SRV, part, "write _name._tcp:port, with _udp or _sctp where it is that")
        })
    })
}

fn service(text: &str) -> Option<Service> {
    let (label, port) = text.split_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let label = host_name(label::SRV, label).ok()?;
    let [name, protocol] = label.labels().collect::<Vec<_>>()[..] else { return None };
    let is_service = name.len() > 1 && name.starts_with(b"_");
    (is_service && matches!(protocol, b"_tcp" | b"_udp" | b"_sctp")).then_some(Service { label, port })
}

/// A published port is a service by its number in the container, and by its name if it has a well-known one.
fn services_of(mapping: &PortMapping) -> Vec<Service> {
    let protocol = format!("_{}", mapping.protocol);
    let known_as = |port| WELL_KNOWN.iter().find(|(known, _)| *known == port).map(|(_, name)| *name);
    let ports = (0..mapping.count.min(MOST_OF_RANGE)).filter_map(|n| mapping.container_port.checked_add(n));
    let services = ports.flat_map(|port| {
        let numbered = format!("_{port}.{protocol}");
        let known = known_as(port).map(|name| format!("_{name}.{protocol}"));
        let labels = std::iter::once(numbered).chain(known).filter_map(|label| label.parse().ok());
        labels.map(move |label| Service { label, port }).collect::<Vec<_>>()
    });
    services.collect()
}

#[cfg(test)]
mod tests;
