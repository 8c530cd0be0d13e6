//! Which store the settings ask for, opened.

use crate::{
    clock::BootClock,
    settings::{Settings, StoreKind},
    store::{EmbeddedStore, EtcdOptions, EtcdStore, Store, StoreError},
};
use std::{path::PathBuf, sync::Arc};

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
