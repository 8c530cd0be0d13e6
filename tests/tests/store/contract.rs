//! The contract of every store, kept by the store over etcd: one plain member, and three with mutual TLS and users.

use crate::scene::{Client, on_island};
use ipamd::store::{
    Store,
    contract::{self, Subject},
};
use std::{sync::Arc, time::Duration};
use weft_tests::etcd::{Etcd, Island};

struct Real(Arc<dyn Store>);

impl Subject for Real {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.0)
    }

    /// Leases are counted by etcd's own clock.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_keeps_the_contract() {
    let etcd = Etcd::start_new().unwrap();
    let store = Client::of(&etcd).open().unwrap();
    contract::run(&Real(Arc::new(store))).await;
}

#[test]
fn three_members_with_tls_and_users_keep_the_contract() {
    let mut island = Island::start(Etcd::builder().tls().users()).unwrap();
    let client = Client::of(island.etcd());
    on_island(&island, async move {
        let store = client.prefix("/weft/contract").open().unwrap();
        contract::run(&Real(Arc::new(store))).await;
    });
}
