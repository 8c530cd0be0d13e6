//! Which store the settings ask for, opened.

use crate::{
    clock::BootClock,
    settings::{Settings, StoreKind},
    store::{EmbeddedStore, EtcdOptions, EtcdStore, Store, StoreError},
};
use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    sync::Arc,
};

/// Opens the store. With etcd, files are read and nothing is connected: the node has to start while etcd is away.
pub(super) fn open_store(settings: &Settings, node: &str) -> Result<Arc<dyn Store>, StoreError> {
    match settings.store {
        StoreKind::Embedded => Ok(Arc::new(EmbeddedStore::open(&settings.state_dir, Arc::new(BootClock))?)),
        StoreKind::Etcd => {
            let store = EtcdStore::open(etcd_options(settings, node))?;
            if store.endpoints().iter().any(|url| url.starts_with("http:")) {
                tracing::warn!(
                    "etcd is used without TLS: whoever is on the way can read and change the cluster's state"
                );
            }
            Ok(Arc::new(store))
        }
    }
}

fn etcd_options(settings: &Settings, node: &str) -> EtcdOptions {
    let set = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let file = |text: &str| set(text).map(PathBuf::from);
    EtcdOptions {
        endpoints: settings.etcd_endpoints.0.clone(),
        prefix: settings.etcd_prefix.clone(),
        client: node.to_owned(),
        ca_file: file(&settings.etcd_ca_file),
        cert_file: file(&settings.etcd_cert_file),
        key_file: file(&settings.etcd_key_file),
        user: set(&settings.etcd_user),
        password_file: file(&settings.etcd_password_file),
        timeout: settings.etcd_timeout.into(),
    }
}

/// Where the store listens: no place for sandboxes. Names are looked up once; one that cannot be is said, and not guarded.
pub(super) fn listening(settings: &Settings) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for url in settings.etcd_endpoints.0.iter().filter(|_| settings.store == StoreKind::Etcd) {
        let place = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/');
        match place.to_socket_addrs() {
            Ok(addresses) => found.extend(addresses),
            Err(error) => {
                tracing::warn!(url, %error, "the store's address is not known, so sandboxes are not kept from it; write it as an IP address");
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::List;

    #[test]
    fn members_are_found_where_their_urls_say() {
        let urls =
            ["https://192.0.2.1:2379", "http://[2001:db8::1]:2380/", "192.0.2.1:2379", "https://192.0.2.9"];
        let mut settings =
            Settings { etcd_endpoints: List(urls.map(str::to_owned).to_vec()), ..Settings::default() };
        assert_eq!(listening(&settings), [], "the embedded store listens nowhere");
        settings.store = StoreKind::Etcd;
        let found: Vec<String> = listening(&settings).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:2379", "[2001:db8::1]:2380"], "without a port there is no place");
    }
}
