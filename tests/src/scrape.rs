//! Scrapes of ipamd's metrics, by HTTP of our own: over the unix socket or over TCP, and what is in an exposition.

use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An exposition.
#[derive(Debug, Clone, Default)]
pub struct Exposition {
    /// Types of the families by their names as exported, e.g. `weft_calls_total`.
    pub types: BTreeMap<String, String>,
    /// What they say of themselves, likewise.
    pub help: BTreeMap<String, String>,
    /// Values by name and labels as they are written, e.g. `weft_calls_total{verb="ADD",code="0"}`.
    pub samples: BTreeMap<String, f64>,
}

impl Exposition {
    /// Reads a text of OpenMetrics.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &str) -> Result<Self> {
        let mut read = Self::default();
        ensure!(text.ends_with("# EOF\n"), "the end is missing");
        let exported = |name: &str, kind: &str| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        let mut help = ("", "");
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').with_context(|| line.to_owned())?;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(|| line.to_owned())?;
                ensure!(help.0 == name, "{line} without its help");
                ensure!(
                    read.types.insert(exported(name, kind), kind.to_owned()).is_none(),
                    "{name} is there twice"
                );
                read.help.insert(exported(name, kind), help.1.to_owned());
            } else {
                let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
                let value = value.parse().with_context(|| line.to_owned())?;
                ensure!(read.samples.insert(series.to_owned(), value).is_none(), "{series} is there twice");
            }
        }
        Ok(read)
    }

    /// The value of a series.
    ///
    /// # Errors
    /// There is none.
    pub fn value(&self, series: &str) -> Result<f64> {
        self.samples.get(series).copied().with_context(|| format!("no {series}"))
    }
}

/// Asks for a path; status and body.
///
/// # Errors
/// Nobody answers, or not by HTTP.
pub fn get(mut stream: impl Read + Write, path: &str) -> Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: ipamd\r\nConnection: close\r\n\r\n").context("asking")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// The metrics on the API's socket of a run directory.
///
/// # Errors
/// They cannot be read.
pub fn scrape(run_dir: &Path) -> Result<Exposition> {
    let stream = UnixStream::connect(run_dir.join(ipamd_api::SOCKET_NAME)).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (status, body) = get(stream, ipamd_api::path::METRICS)?;
    ensure!(status == 200, "{status}: {body}");
    Exposition::read(&body)
}

/// Asks for a path over TCP, from the namespace of the calling thread.
///
/// # Errors
/// Nobody listens, or nobody answers.
pub fn get_from(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    get(stream, path)
}
