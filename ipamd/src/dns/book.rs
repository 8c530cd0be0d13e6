//! What the names of this node's networks mean. Pure: a picture that is changed host by host, and asked.

use super::DomainName;
use ipamd_api::EndpointId;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// Who has names on a network: an endpoint of this node or of another one, or a record that an operator made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// All that it is called, without the network's name and search domains.
    pub names: BTreeSet<DomainName>,
    /// What its addresses are called (PTR): with the network's name.
    pub canonical: DomainName,
    /// Its addresses on this network.
    pub addresses: BTreeSet<IpAddr>,
    /// What it serves (SRV).
    pub services: Vec<Service>,
}

/// A port with a name (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// `_name._protocol`, to stand before a name of the host.
    pub label: DomainName,
    /// Port.
    pub port: u16,
}

/// Most aliases that lead to each other.
const MAX_CHAIN: usize = 8;

/// Which host, within a network: the source that said it, and its key there (an endpoint's generation, for instance).
pub type HostKey = String;

/// The names of one network.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    hosts: BTreeMap<HostKey, Host>,
    names: HashMap<DomainName, BTreeSet<HostKey>>,
    pointers: HashMap<IpAddr, BTreeSet<HostKey>>,
    /// Names that stand for other names of the network.
    aliases: BTreeMap<DomainName, DomainName>,
    /// What aliases lead to in the end → those that do.
    led_to: HashMap<DomainName, BTreeSet<DomainName>>,
    /// What may stand behind a name of the network, and how many say so.
    domains: HashMap<DomainName, usize>,
}

/// Who asks: an endpoint, with the networks that its sandbox is on, that of the endpoint first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The endpoint whose address the question came from.
    pub endpoint: EndpointId,
    /// Numbers of networks, in the order in which they are asked.
    pub networks: Vec<u32>,
}

/// The names of all networks of this node.
#[derive(Debug, Clone, Default)]
pub struct Book {
    zones: HashMap<u32, Zone>,
}

impl Zone {
    /// Puts a host, or takes it away. Returns the names and addresses whose meaning may have changed.
    pub fn set(&mut self, key: &str, host: Option<Host>) -> (BTreeSet<DomainName>, BTreeSet<IpAddr>) {
        let mut touched = (BTreeSet::new(), BTreeSet::new());
        if self.hosts.get(key) == host.as_ref() {
            return touched;
        }
        if let Some(old) = self.hosts.remove(key) {
            for name in old.names {
                remove_from(&mut self.names, &name, key);
                touched.0.insert(name);
            }
            for address in old.addresses {
                remove_from(&mut self.pointers, &address, key);
                touched.1.insert(address);
            }
        }
        if let Some(new) = host {
            for name in &new.names {
                self.names.entry(name.clone()).or_default().insert(key.to_owned());
                touched.0.insert(name.clone());
            }
            for &address in &new.addresses {
                self.pointers.entry(address).or_default().insert(key.to_owned());
                touched.1.insert(address);
            }
            self.hosts.insert(key.to_owned(), new);
        }
        if !self.aliases.is_empty() {
            let aliases: Vec<_> = touched.0.iter().filter_map(|name| self.led_to.get(name)).collect();
            let aliases: Vec<DomainName> = aliases.into_iter().flatten().cloned().collect();
            touched.0.extend(aliases);
        }
        touched
    }

    /// Lets a name stand for another one too, or no longer. Returns the names whose meaning may have changed.
    pub fn set_alias(&mut self, alias: &DomainName, target: Option<DomainName>) -> BTreeSet<DomainName> {
        if self.aliases.get(alias) == target.as_ref() {
            return BTreeSet::new();
        }
        match target {
            Some(target) => self.aliases.insert(alias.clone(), target),
            None => self.aliases.remove(alias),
        };
        // Few, and made by hand.
        let before = std::mem::take(&mut self.led_to);
        for alias in self.aliases.keys() {
            if let Some(end) = self.end_of(alias.wire()) {
                self.led_to.entry(end.clone()).or_default().insert(alias.clone());
            }
        }
        let ends =
            before.keys().chain(self.led_to.keys()).filter(|end| before.get(*end) != self.led_to.get(*end));
        let ends: BTreeSet<&DomainName> = ends.collect();
        let led = ends.into_iter().flat_map(|end| before.get(end).into_iter().chain(self.led_to.get(end)));
        led.flatten().chain([alias]).cloned().collect()
    }

    /// What an alias leads to in the end; nothing if it comes back to itself.
    fn end_of(&self, alias: &[u8]) -> Option<&DomainName> {
        let mut target = self.aliases.get(alias)?;
        for _ in 0..MAX_CHAIN {
            match self.aliases.get(target) {
                Some(next) => target = next,
                None => return Some(target),
            }
        }
        None
    }

    /// The keys of those that are called so, in wire form, by an alias too.
    fn called<'a>(&'a self, name: &[u8]) -> Option<impl Iterator<Item = &'a HostKey> + use<'a>> {
        let own = self.names.get(name);
        let by_alias = if self.aliases.is_empty() { None } else { self.end_of(name) };
        let by_alias = by_alias.and_then(|end| self.names.get(end));
        let twice = move |key: &&HostKey| own.is_some_and(|own| own.contains(*key));
        let further = by_alias.into_iter().flatten().filter(move |key| !twice(key));
        (own.is_some() || by_alias.is_some()).then(|| own.into_iter().flatten().chain(further))
    }

    /// Adds a domain that may stand behind names. Each call wants its own [`Self::remove_domain`]. Whether it is new.
    pub fn add_domain(&mut self, domain: DomainName) -> bool {
        let count = self.domains.entry(domain).or_default();
        *count += 1;
        *count == 1
    }

    /// Takes one [`Self::add_domain`] back. Whether the domain is gone.
    pub fn remove_domain(&mut self, domain: &DomainName) -> bool {
        match self.domains.get_mut(domain) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => self.domains.remove(domain).is_some(),
            None => false,
        }
    }

    /// The hosts that a question means: those that are called so, else, if a domain of the network stands behind the first label,
    /// those that are called by that label. Empty: it is no name of this network.
    pub fn find(&self, question: &DomainName) -> impl Iterator<Item = &Host> {
        let keys = self.called(question.wire()).or_else(|| {
            let (first, rest) = question.split_wire()?;
            self.domains.contains_key(rest).then(|| self.called(first)).flatten()
        });
        keys.into_iter().flatten().filter_map(|key| self.hosts.get(key))
    }

    /// The addresses of a name, without a domain behind it; of many, no more than `most`. `None`: there is no such name.
    pub fn addresses_of(&self, name: &DomainName, most: usize) -> Option<BTreeSet<IpAddr>> {
        let hosts = self.called(name.wire())?.filter_map(|key| self.hosts.get(key));
        let mut addresses = BTreeSet::new();
        for address in hosts.flat_map(|host| &host.addresses) {
            if addresses.len() == most {
                break;
            }
            addresses.insert(*address);
        }
        Some(addresses)
    }

    /// Whether a domain may stand behind a name.
    pub fn has_domain(&self, domain: &DomainName) -> bool {
        self.domains.contains_key(domain)
    }

    /// What an address is called: of several hosts that have it, the first one's name.
    pub fn pointer(&self, address: IpAddr) -> Option<&DomainName> {
        self.at(address).map(|host| &host.canonical).find(|name| !name.is_root())
    }

    /// The hosts that have an address.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = &Host> {
        self.pointers.get(&address).into_iter().flatten().filter_map(|key| self.hosts.get(key))
    }

    /// Every name that is there, without domains; aliases that lead nowhere are none.
    pub fn names(&self) -> impl Iterator<Item = &DomainName> {
        let aliases = self.aliases.keys().filter(|alias| !self.names.contains_key(*alias));
        let aliases =
            aliases.filter(|alias| self.end_of(alias.wire()).is_some_and(|end| self.names.contains_key(end)));
        self.names.keys().chain(aliases)
    }

    /// The names that stand for others.
    pub fn aliases(&self) -> &BTreeMap<DomainName, DomainName> {
        &self.aliases
    }

    /// The host of a key.
    pub fn host(&self, key: &str) -> Option<&Host> {
        self.hosts.get(key)
    }

    /// Every address that has a name.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pointers.keys().copied()
    }

    /// Every domain that may stand behind a name.
    pub fn domains(&self) -> impl Iterator<Item = &DomainName> {
        self.domains.keys()
    }

    /// Every host, with its key.
    pub fn hosts(&self) -> impl Iterator<Item = (&HostKey, &Host)> {
        self.hosts.iter()
    }
}

fn remove_from<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<HostKey>>, at: &K, key: &str) {
    if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

impl Book {
    /// The names of a network, made on first use.
    pub fn zone_mut(&mut self, network: u32) -> &mut Zone {
        self.zones.entry(network).or_default()
    }

    /// The names of a network.
    pub fn zone(&self, network: u32) -> Option<&Zone> {
        self.zones.get(&network)
    }

    /// Forgets a network.
    pub fn remove_zone(&mut self, network: u32) -> Option<Zone> {
        self.zones.remove(&network)
    }

    /// The hosts that an asker means: those of the first of its networks that has the name.
    pub fn find<'a>(&'a self, asker: &Asker, question: &DomainName) -> Vec<&'a Host> {
        self.first(asker, |zone| zone.find(question).collect())
    }

    /// The hosts that have an address, on the first of the asker's networks that has it.
    pub fn at<'a>(&'a self, asker: &Asker, address: IpAddr) -> Vec<&'a Host> {
        self.first(asker, |zone| zone.at(address).collect())
    }

    fn first<'a>(&'a self, asker: &Asker, hosts: impl Fn(&'a Zone) -> Vec<&'a Host>) -> Vec<&'a Host> {
        let zones = asker.networks.iter().filter_map(|network| self.zones.get(network));
        zones.map(hosts).find(|found| !found.is_empty()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
