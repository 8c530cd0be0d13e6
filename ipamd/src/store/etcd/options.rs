//! How to reach etcd, and which combinations make no sense. Pure.

use crate::store::StoreError;
use std::{path::PathBuf, time::Duration};

/// How long a prefix may be.
const MAX_PREFIX: usize = 200;
/// Shorter than this, no etcd answers reliably.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(50);

/// How to reach etcd, and as whom.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// URLs, `http://` or `https://`, with port.
    pub endpoints: Vec<String>,
    /// What stands before every key. May be empty.
    pub prefix: String,
    /// Name of this client: no two that are at work at a time may share it.
    pub client: String,
    /// PEM file with the authorities that sign etcd's certificates. TLS needs it.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate of this client.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    pub key_file: Option<PathBuf>,
    /// The user of etcd.
    pub user: Option<String>,
    /// File with its password.
    pub password_file: Option<PathBuf>,
    /// Deadline of each call.
    pub timeout: Duration,
}

impl EtcdOptions {
    /// The deadline of a call, unless another is set.
    pub const TIMEOUT: Duration = Duration::from_secs(2);

    /// Options with neither TLS nor a user.
    pub fn new(endpoints: Vec<String>, client: impl Into<String>) -> Self {
        Self {
            endpoints,
            prefix: String::new(),
            client: client.into(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            user: None,
            password_file: None,
            timeout: Self::TIMEOUT,
        }
    }

    /// Whether they make sense.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let wrong = |setting: &'static str, cause: String| Err(StoreError::Setting { setting, cause });
        if self.endpoints.is_empty() {
            return wrong("etcd_endpoints", "it is empty: name the URLs of etcd's members".to_owned());
        }
        let mut secure = Vec::new();
        for url in &self.endpoints {
            match is_secure(url) {
                Ok(https) => secure.push(https),
                Err(cause) => return wrong("etcd_endpoints", format!("`{url}`: {cause}")),
            }
        }
        if secure.iter().any(|https| *https != secure[0]) {
            return wrong("etcd_endpoints", "use either https:// or http:// for all of them".to_owned());
        }
        if secure[0] && self.ca_file.is_none() {
            return wrong(
                "etcd_ca_file",
                "https:// needs it: the authority that signs etcd's certificates".to_owned(),
            );
        }
        let files = [&self.ca_file, &self.cert_file, &self.key_file];
        if !secure[0] && files.iter().any(|file| file.is_some()) {
            return wrong(
                "etcd_endpoints",
                "certificates are set, so use https:// for all of them".to_owned(),
            );
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return wrong("etcd_key_file", "set etcd_cert_file and etcd_key_file together".to_owned());
        }
        if self.user.is_some() != self.password_file.is_some() {
            return wrong("etcd_password_file", "set etcd_user and etcd_password_file together".to_owned());
        }
        if !self.prefix.is_empty()
            && (!self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.len() > MAX_PREFIX)
        {
            return wrong(
                "etcd_prefix",
                format!("`{}`: write it as /name, at most {MAX_PREFIX} bytes", self.prefix),
            );
        }
        if self.timeout < SHORTEST_TIMEOUT {
            return wrong("etcd_timeout", format!("use at least {SHORTEST_TIMEOUT:?}"));
        }
        Ok(())
    }
}

/// Whether a URL asks for TLS.
fn is_secure(url: &str) -> Result<bool, String> {
    let uri: tonic::transport::Uri = url.parse().map_err(|e| format!("it is no URL: {e}"))?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("it begins with neither https:// nor http://".to_owned()),
    };
    if uri.port_u16().is_none() {
        return Err("it has no port, which usually is 2379".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("it goes on after the port".to_owned());
    }
    Ok(secure)
}
