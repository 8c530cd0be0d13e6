//! Who this client is to etcd and whom it trusts: certificate files, user and password.
//!
//! Files are read anew for each connection, so that certificates that are renewed in place are used without a restart. Invariant:
//! a private key or a password that others can read is refused.

use super::EtcdOptions;
use crate::store::{CERTIFICATE_ENDS_SOON, StoreCertificate, StoreError};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use x509_cert::Certificate as X509;

/// Bits of a mode that let others than the owner use a file.
const OTHERS: u32 = 0o077;

fn refused(path: &Path, cause: impl Into<String>) -> StoreError {
    StoreError::KeyFile { path: path.to_owned(), cause: cause.into() }
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|e| refused(path, format!("it cannot be read: {e}")))
}

/// Reads what only this process may know.
fn read_secret(path: &Path) -> Result<Vec<u8>, StoreError> {
    let metadata = fs::metadata(path).map_err(|e| refused(path, format!("it cannot be read: {e}")))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(refused(path, format!("others than its owner may use it (mode {mode:04o}): chmod 0600")));
    }
    read(path)
}

/// TLS as the options say; `None` when no endpoint uses it.
///
/// # Errors
/// A file cannot be read or used, or its certificate is not valid today.
pub(super) fn tls(options: &EtcdOptions, now: SystemTime) -> Result<Option<ClientTlsConfig>, StoreError> {
    let Some(ca_file) = &options.ca_file else { return Ok(None) };
    let ca = read(ca_file)?;
    for certificate in certificates(ca_file, &ca)? {
        check_validity(ca_file, &certificate, now)?;
    }
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    if let (Some(cert_file), Some(key_file)) = (&options.cert_file, &options.key_file) {
        let cert = read(cert_file)?;
        // The first is the client's own; what follows leads to the authority.
        if let Some(own) = certificates(cert_file, &cert)?.first() {
            check_validity(cert_file, own, now)?;
        }
        let key = read_secret(key_file)?;
        if !String::from_utf8_lossy(&key).contains("PRIVATE KEY-----") {
            return Err(refused(key_file, "it has no private key in PEM form"));
        }
        config = config.identity(Identity::from_pem(cert, key));
    }
    Ok(Some(config))
}

/// The certificates of the authorities and of this client, as the files have them now.
pub(super) fn known(options: &EtcdOptions) -> Vec<Result<StoreCertificate, String>> {
    let of = |file: &PathBuf| match read(file).and_then(|pem| certificates(file, &pem)) {
        Ok(all) => all.iter().map(|certificate| Ok(view(file, certificate))).collect(),
        Err(error) => vec![Err(error.to_string())],
    };
    [&options.ca_file, &options.cert_file].into_iter().flatten().flat_map(of).collect()
}

fn view(file: &Path, certificate: &X509) -> StoreCertificate {
    StoreCertificate {
        file: file.to_owned(),
        subject: certificate.tbs_certificate.subject.to_string(),
        until: certificate.tbs_certificate.validity.not_after.to_system_time(),
    }
}

/// User and password; `None` when no user is set.
///
/// # Errors
/// The file cannot be read, is empty, or others may read it.
pub(super) fn user(options: &EtcdOptions) -> Result<Option<(String, String)>, StoreError> {
    let (Some(user), Some(path)) = (&options.user, &options.password_file) else { return Ok(None) };
    let password = String::from_utf8(read_secret(path)?).map_err(|_| refused(path, "it is no text"))?;
    // Editors end a file with a line feed that nobody means.
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(refused(path, "it is empty"));
    }
    Ok(Some((user.clone(), password.to_owned())))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<X509>, StoreError> {
    let none = || refused(path, "it has no certificate in PEM form");
    if !String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----") {
        return Err(none());
    }
    let found = X509::load_pem_chain(pem)
        .map_err(|e| refused(path, format!("its certificate cannot be read: {e}")))?;
    if found.is_empty() { Err(none()) } else { Ok(found) }
}

fn check_validity(path: &Path, certificate: &X509, now: SystemTime) -> Result<(), StoreError> {
    let validity = certificate.tbs_certificate.validity;
    let (from, until) = (validity.not_before, validity.not_after);
    let subject = &certificate.tbs_certificate.subject;
    if now < from.to_system_time() {
        return Err(refused(
            path,
            format!("its certificate of `{subject}` is not valid before {from}: set the clock, or wait"),
        ));
    }
    let until_time = until.to_system_time();
    if now > until_time {
        return Err(refused(path, format!("its certificate of `{subject}` expired at {until}: renew it")));
    }
    if until_time.duration_since(now).is_ok_and(|left| left < CERTIFICATE_ENDS_SOON) {
        tracing::warn!(file = %path.display(), %subject, %until, "a certificate for etcd expires soon");
    }
    Ok(())
}
