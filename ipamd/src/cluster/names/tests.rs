//! Names in a store: keys, leases, what cannot be understood.

use super::*;
use crate::{
    cluster::{RemovalOf, tests::fixture},
    store::Store,
};
use std::{sync::Arc, time::Duration};

fn id() -> EndpointId {
    EndpointId::new(0x0a).unwrap()
}

fn record(incarnation: u64) -> NameRecord {
    NameRecord {
        incarnation,
        names: ["db", "sql"].map(|name| name.parse().unwrap()).into(),
        canonical: "db.blue".parse().unwrap(),
        addresses: ["10.1.0.2".parse().unwrap()].into(),
        services: vec![],
        search: ["shop.example".parse().unwrap()].into(),
    }
}

fn is(told: Told<NameRecord>) -> NameEntry {
    NameEntry::Endpoint { node: "a".into(), endpoint: id(), told }
}

async fn write(store: &Arc<dyn Store>, key: &str, value: &str) {
    let key = format!("{NAMES}{key}");
    let swap = store.compare_and_swap(&key, Expected::Absent, Change::put(value)).await.unwrap();
    assert!(matches!(swap, Swap::Done(_)), "{key}");
}

#[tokio::test]
async fn names_are_put_over_what_is_there_and_go_with_the_last_lease() {
    let f = fixture();
    let first = f.store.lease(Duration::from_secs(60)).await.unwrap();
    let second = f.store.lease(Duration::from_secs(60)).await.unwrap();
    f.cluster.put_name(1, "a", id(), &record(0), first.id()).await.unwrap();
    let (all, problems, revision) = f.cluster.names(1).await.unwrap();
    assert_eq!((all, problems.len()), (NameUpdate::All(vec![is(Told::Is(record(0)))]), 0));
    let mut watch = f.cluster.watch_names(1, revision).await.unwrap();
    f.cluster.put_name(1, "a", id(), &record(1), second.id()).await.unwrap();
    let (update, _) = watch.next().await.unwrap();
    assert_eq!(update, NameUpdate::Some(vec![is(Told::Is(record(1)))]));
    first.revoke().await.unwrap();
    assert_eq!(f.cluster.names_of_node(1, "a").await.unwrap(), [id()], "it is under the second lease");
    second.revoke().await.unwrap();
    let (update, _) = watch.next().await.unwrap();
    assert_eq!(update, NameUpdate::Some(vec![is(Told::Gone)]));
    f.cluster.put_name(1, "a", id(), &record(1), second.id()).await.unwrap_err();
}

#[tokio::test]
async fn networks_and_nodes_whose_names_begin_alike_are_apart() {
    let f = fixture();
    let lease = f.store.lease(Duration::from_secs(60)).await.unwrap();
    for (network, node) in [(1, "a"), (1, "a-b"), (11, "a")] {
        f.cluster.put_name(network, node, id(), &record(0), lease.id()).await.unwrap();
    }
    let NameUpdate::All(all) = f.cluster.names(1).await.unwrap().0 else { panic!("a list is all") };
    assert_eq!(all.len(), 2);
    f.cluster.delete_name(1, "a", id()).await.unwrap();
    f.cluster.delete_name(1, "a", id()).await.unwrap();
    assert_eq!(f.cluster.names_of_node(1, "a").await.unwrap(), []);
    assert_eq!(f.cluster.names_of_node(1, "a-b").await.unwrap(), [id()]);
    assert_eq!(f.cluster.names_of_node(11, "a").await.unwrap(), [id()]);
}

#[tokio::test]
async fn what_cannot_be_understood_is_said_with_its_key_and_hides_nothing() {
    let f = fixture();
    let lease = f.store.lease(Duration::from_secs(60)).await.unwrap();
    write(&f.store, "1/a/00000000000a", r#"{"version":2,"shape":"of later"}"#).await;
    write(&f.store, "1/b/00000000000b", "{").await;
    write(&f.store, "1/nonsense", "{}").await;
    write(&f.store, "1/b/nonsense", "{}").await;
    write(&f.store, "1/-/a..b", "{}").await;
    write(&f.store, "1/-/printer", r#"{"version":1,"addresses":["192.0.2.9"]}"#).await;
    let (NameUpdate::All(all), problems, _) = f.cluster.names(1).await.unwrap() else {
        panic!("a list is all")
    };
    assert_eq!((all.len(), problems.len()), (3, 5), "{all:?} {problems:?}");
    assert!(all.contains(&is(Told::Unreadable)), "its key is known: what was understood before stays");
    for part in ["1/a/00000000000a", "1/b/00000000000b", "1/nonsense", "1/b/nonsense", "1/-/a..b"] {
        assert!(problems.iter().any(|p| p.to_string().contains(part)), "{part}: {problems:?}");
    }
    let refused = f.cluster.put_name(1, "a", id(), &record(0), lease.id()).await.unwrap_err();
    assert!(matches!(refused, ClusterError::Newer { .. }), "{refused}");
    // One that is broken is its node's to mend.
    let b = EndpointId::new(0x0b).unwrap();
    f.cluster.put_name(1, "b", b, &record(0), lease.id()).await.unwrap();
}

#[tokio::test]
async fn operators_names_are_given_once() {
    let f = fixture();
    let name: DomainName = "printer.room".parse().unwrap();
    let record = StaticName { addresses: ["192.0.2.9".parse().unwrap()].into(), target: None };
    assert_eq!(f.cluster.add_static(1, &name, &record).await.unwrap(), None);
    let other = StaticName { addresses: [].into(), target: Some("db".parse().unwrap()) };
    assert_eq!(f.cluster.add_static(1, &name, &other).await.unwrap(), Some(record.clone()));
    let NameUpdate::All(all) = f.cluster.names(1).await.unwrap().0 else { panic!("a list is all") };
    assert_eq!(all, [NameEntry::Static { name: name.clone(), told: Told::Is(record) }]);
    assert!(f.cluster.remove_static(1, &name).await.unwrap());
    assert!(!f.cluster.remove_static(1, &name).await.unwrap());
}

#[tokio::test]
async fn an_incarnation_ends_with_the_removal_of_its_node() {
    let f = fixture();
    assert!(!f.cluster.has_ended("a", 0).await.unwrap());
    let node = super::super::NodeRecord { name: "a".into(), ..Default::default() };
    f.cluster.write_node(&node, None).await.unwrap();
    f.cluster.remove_node("a", RemovalOf::Any).await.unwrap();
    assert!(f.cluster.has_ended("a", 0).await.unwrap());
    assert!(!f.cluster.has_ended("a", 1).await.unwrap());
}
