//! Certificates of a test: an authority, and what it signs, as files that only their owner may read.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::{
    fs::OpenOptions,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A certificate with its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

/// When a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// It was, long ago.
    Expired,
    /// It will be, in a far future.
    NotYet,
}

/// An authority that signs certificates into a folder.
pub struct Authority {
    dir: PathBuf,
    cert: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes one named `name`; its files lie in `dir`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("making a key")?;
        let mut params = CertificateParams::new(Vec::new()).context("naming an authority")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let signed = params.self_signed(&key).context("signing an authority")?;
        let cert = dir.join(format!("{name}.crt"));
        write(&cert, &signed.pem())?;
        Ok(Self { dir: dir.to_owned(), cert, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate.
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// A certificate for a server and client of these addresses, with `name` as common name and file name.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn issue(&self, name: &str, addresses: &[IpAddr], validity: Validity) -> Result<Certificate> {
        let key = KeyPair::generate().context("making a key")?;
        let names: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        let mut params = CertificateParams::new(names).context("naming a certificate")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // etcd dials itself with its server's certificate.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (date_time_ymd(2000, 1, 1), date_time_ymd(2200, 1, 1)),
            Validity::Expired => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Validity::NotYet => (date_time_ymd(2190, 1, 1), date_time_ymd(2200, 1, 1)),
        };
        let signed = params.signed_by(&key, &self.issuer).context("signing a certificate")?;
        let files = Certificate {
            cert: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        };
        write(&files.cert, &signed.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
