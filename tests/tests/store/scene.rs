//! Stores over the etcd of a test.

use ipamd::store::{Change, EtcdOptions, EtcdStore, Expected, Revision, Store as _, StoreError, Swap};
use std::{future::Future, path::PathBuf, time::Duration};
use weft_tests::{
    TestNetns,
    etcd::{Etcd, Island, USER},
};

/// How a store is to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) options: EtcdOptions,
}

impl Client {
    /// With the certificates and the user of the test, if there are any.
    pub(crate) fn of(etcd: &Etcd) -> Self {
        let mut options = EtcdOptions::new(etcd.endpoints(), "tests");
        options.ca_file = etcd.authority().map(|a| a.cert().to_owned());
        options.cert_file = etcd.client_certificate().map(|c| c.cert.clone());
        options.key_file = etcd.client_certificate().map(|c| c.key.clone());
        options.password_file = etcd.password_file();
        options.user = options.password_file.as_ref().map(|_| USER.0.to_owned());
        // The machines of tests are slow; where a deadline matters, the test sets it.
        options.timeout = Duration::from_secs(10);
        Self { options }
    }

    /// With neither certificates nor a user.
    pub(crate) fn bare(endpoint: &str) -> Self {
        Self { options: EtcdOptions::new(vec![endpoint.to_owned()], "tests") }
    }

    pub(crate) fn prefix(mut self, prefix: &str) -> Self {
        self.options.prefix = prefix.to_owned();
        self
    }

    pub(crate) fn name(mut self, name: &str) -> Self {
        self.options.client = name.to_owned();
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    pub(crate) fn endpoints(mut self, endpoints: &[String]) -> Self {
        self.options.endpoints = endpoints.to_vec();
        self
    }

    pub(crate) fn certificate(mut self, cert: PathBuf, key: PathBuf) -> Self {
        (self.options.cert_file, self.options.key_file) = (Some(cert), Some(key));
        self
    }

    pub(crate) fn open(&self) -> Result<EtcdStore, StoreError> {
        EtcdStore::open(self.options.clone())
    }
}

/// Runs `work` where the clients of an island live.
pub(crate) fn on_island<T: Send>(island: &Island, work: impl Future<Output = T> + Send) -> T {
    inside(island.clients(), work)
}

/// Runs `work` inside a namespace, on threads that end with it.
pub(crate) fn inside<T: Send>(netns: &TestNetns, work: impl Future<Output = T> + Send) -> T {
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        // Its threads are in the namespace of the one that makes them.
        runtime.worker_threads(2).enable_all().build().unwrap().block_on(work)
    };
    // The namespace's own thread has a stack for small things.
    let thread = || std::thread::scope(|scope| scope.spawn(run).join());
    match netns.run(thread).unwrap() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Puts a key that is not there.
pub(crate) async fn put(store: &EtcdStore, key: &str) -> Revision {
    done(store.compare_and_swap(key, Expected::Absent, Change::put(key)).await)
}

/// Puts a key over what a write put there.
pub(crate) async fn put_over(store: &EtcdStore, key: &str, revision: Revision) -> Revision {
    done(store.compare_and_swap(key, Expected::Revision(revision), Change::put(key)).await)
}

fn done(swap: Result<Swap, StoreError>) -> Revision {
    match swap.unwrap() {
        Swap::Done(revision) => revision,
        Swap::Conflict(current) => panic!("there is {current:?}"),
    }
}

/// Looks until there is something, for half a minute.
pub(crate) async fn wait_for<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "waited half a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
