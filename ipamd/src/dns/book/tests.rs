//! The book against a naive model: a list of hosts and aliases that is searched from end to end.

use super::*;
use proptest::prelude::*;

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

#[derive(Debug, Clone)]
enum Change {
    Set(u8, Option<(BTreeSet<u8>, BTreeSet<u8>)>),
    Alias(u8, Option<u8>),
    AddDomain(u8),
    RemoveDomain(u8),
}

fn changes() -> impl Strategy<Value = Change> {
    let few = || prop::collection::btree_set(0..6_u8, 0..4);
    prop_oneof![
        4 => (0..5_u8, prop::option::of((few(), few()))).prop_map(|(key, host)| Change::Set(key, host)),
        2 => (0..6_u8, prop::option::of(0..6_u8)).prop_map(|(alias, target)| Change::Alias(alias, target)),
        1 => (0..3_u8).prop_map(Change::AddDomain),
        1 => (0..3_u8).prop_map(Change::RemoveDomain),
    ]
}

fn label(number: u8) -> DomainName {
    name(&format!("n{number}"))
}

fn domain(number: u8) -> DomainName {
    name(["blue", "svc.example", "n1"][usize::from(number)])
}

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

#[derive(Default)]
struct Model {
    hosts: BTreeMap<u8, (BTreeSet<u8>, BTreeSet<u8>)>,
    aliases: BTreeMap<u8, u8>,
    domains: Vec<u8>,
}

impl Model {
    fn is_known(&self, name: u8) -> bool {
        self.hosts.values().any(|(names, _)| names.contains(&name))
    }

    fn end(&self, alias: u8) -> Option<u8> {
        let mut seen = BTreeSet::from([alias]);
        let mut at = *self.aliases.get(&alias)?;
        while let Some(next) = self.aliases.get(&at) {
            if !seen.insert(at) {
                return None;
            }
            at = *next;
        }
        Some(at)
    }

    fn keys(&self, name: u8) -> Option<BTreeSet<String>> {
        let asked = [Some(name), self.end(name)];
        if !asked.iter().flatten().any(|name| self.is_known(*name)) {
            return None;
        }
        let called = |names: &BTreeSet<u8>| asked.iter().flatten().any(|name| names.contains(name));
        Some(self.hosts.iter().filter(|(_, (n, _))| called(n)).map(|(key, _)| key.to_string()).collect())
    }

    /// By key, what is asked for as a whole, or with a domain behind the first label.
    fn find(&self, first: u8, behind: Option<u8>) -> BTreeSet<String> {
        match behind {
            None => self.keys(first).unwrap_or_default(),
            Some(behind) if self.domains.contains(&behind) => self.keys(first).unwrap_or_default(),
            Some(_) => BTreeSet::new(),
        }
    }

    fn meanings(&self) -> BTreeMap<u8, BTreeSet<u8>> {
        let names = (0..6).filter_map(|n| Some((n, self.keys(n)?)));
        let of = |keys: BTreeSet<String>| {
            keys.iter().flat_map(|key| self.hosts[&key.parse().unwrap()].1.clone()).collect()
        };
        names.map(|(n, keys)| (n, of(keys))).collect()
    }
}

fn host(key: u8, names: &BTreeSet<u8>, addresses: &BTreeSet<u8>) -> Host {
    Host {
        names: names.iter().map(|n| label(*n)).collect(),
        canonical: name(&format!("h{key}.blue")),
        addresses: addresses.iter().map(|a| address(*a)).collect(),
        services: vec![],
    }
}

fn apply(zone: &mut Zone, model: &mut Model, change: Change) -> (BTreeSet<DomainName>, BTreeSet<IpAddr>) {
    match change {
        Change::Set(key, None) => {
            model.hosts.remove(&key);
            zone.set(&key.to_string(), None)
        }
        Change::Set(key, Some((names, addresses))) => {
            let touched = zone.set(&key.to_string(), Some(host(key, &names, &addresses)));
            model.hosts.insert(key, (names, addresses));
            touched
        }
        Change::Alias(alias, target) => {
            match target {
                Some(target) => model.aliases.insert(alias, target),
                None => model.aliases.remove(&alias),
            };
            (zone.set_alias(&label(alias), target.map(label)), BTreeSet::new())
        }
        Change::AddDomain(number) => {
            let is_new = zone.add_domain(domain(number));
            assert_eq!(is_new, !model.domains.contains(&number));
            model.domains.push(number);
            Default::default()
        }
        Change::RemoveDomain(number) => {
            let at = model.domains.iter().position(|d| *d == number);
            if let Some(at) = at {
                model.domains.remove(at);
            }
            let is_gone = zone.remove_domain(&domain(number));
            assert_eq!(is_gone, at.is_some() && !model.domains.contains(&number));
            Default::default()
        }
    }
}

fn keys<'a>(zone: &'a Zone, hosts: impl Iterator<Item = &'a Host>) -> BTreeSet<String> {
    let key_of = |host: &Host| zone.hosts().find(|(_, h)| *h == host).map(|(key, _)| key.clone()).unwrap();
    hosts.map(key_of).collect()
}

proptest! {
    #[test]
    fn a_zone_answers_as_a_list_of_hosts_would(all in prop::collection::vec(changes(), 1..40)) {
        let (mut zone, mut model) = (Zone::default(), Model::default());
        for change in all {
            let before = model.meanings();
            let pointers: BTreeMap<u8, Option<DomainName>> =
                (0..6).map(|a| (a, zone.pointer(address(a)).cloned())).collect();
            let (names, addresses) = apply(&mut zone, &mut model, change.clone());
            // Whatever means something else now is among what was touched: rows are made of that alone.
            let after = model.meanings();
            for n in (0..6).filter(|n| before.get(n) != after.get(n)) {
                prop_assert!(names.contains(&label(n)), "{:?} changed n{}", change, n);
            }
            for a in 0..6 {
                let now = zone.pointer(address(a));
                let holder = model.hosts.iter().find(|(_, (_, held))| held.contains(&a)).map(|(key, _)| *key);
                let expected = holder.map(|key| name(&format!("h{key}.blue")));
                prop_assert_eq!(now, expected.as_ref());
                prop_assert!(now == pointers[&a].as_ref() || addresses.contains(&address(a)));
            }
            for first in 0..6 {
                prop_assert_eq!(keys(&zone, zone.find(&label(first))), model.find(first, None));
                for behind in 0..3 {
                    let question = label(first).within(&domain(behind)).unwrap();
                    prop_assert_eq!(keys(&zone, zone.find(&question)), model.find(first, Some(behind)));
                }
                let meaning: Option<BTreeSet<IpAddr>> =
                    after.get(&first).map(|held| held.iter().map(|a| address(*a)).collect());
                prop_assert_eq!(zone.addresses_of(&label(first), 99), meaning);
            }
            let listed: BTreeSet<DomainName> = zone.names().cloned().collect();
            prop_assert_eq!(listed, after.keys().map(|n| label(*n)).collect());
        }
    }
}

#[test]
fn an_asker_is_answered_from_its_networks_in_their_order() {
    let mut book = Book::default();
    for (network, address) in [(1, "10.1.0.2"), (2, "10.2.0.2"), (3, "10.3.0.2")] {
        let host = Host {
            names: [name("db")].into(),
            canonical: name("db.net"),
            addresses: [address.parse().unwrap()].into(),
            services: vec![],
        };
        book.zone_mut(network).set("a", Some(host));
    }
    let endpoint = EndpointId::new(1).unwrap();
    for (networks, expected) in
        [(vec![2, 1], Some("10.2.0.2")), (vec![9, 3], Some("10.3.0.2")), (vec![9], None), (vec![], None)]
    {
        let asker = Asker { endpoint, networks };
        let found = book.find(&asker, &name("db"));
        let addresses: Vec<String> =
            found.iter().flat_map(|h| &h.addresses).map(ToString::to_string).collect();
        assert_eq!(addresses.first().map(String::as_str), expected, "{asker:?}");
    }
}

#[test]
fn a_name_of_many_hosts_is_no_dearer_than_one_of_few() {
    let mut zone = Zone::default();
    let host = |n: u32| Host {
        names: [name(&format!("c{n}")), name("all")].into(),
        canonical: name(&format!("c{n}.blue")),
        addresses: [IpAddr::from(n.to_be_bytes())].into(),
        services: vec![],
    };
    for n in 0..20_000 {
        zone.set(&n.to_string(), Some(host(n)));
    }
    let (names, addresses) = zone.set("7", None);
    assert_eq!((names.len(), addresses.len()), (2, 1), "what is touched is of that host alone");
    assert_eq!(
        zone.addresses_of(&name("all"), 17).unwrap().len(),
        17,
        "no more than asked for are looked at"
    );
}
