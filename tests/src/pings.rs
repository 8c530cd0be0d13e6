//! Pings that go on until they are told to stop, to see that no packet was lost meanwhile.

use crate::{Guarded, TestNetns, poll_until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{io::Read as _, net::IpAddr, process::Stdio, time::Duration};

/// How long ping may take to end: it waits for what is on its way.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pings to some addresses, all the time.
#[derive(Debug)]
pub struct Pings(Vec<Guarded>);

impl Pings {
    /// Begins to ping each of `addresses` from a namespace, every so often.
    ///
    /// # Errors
    /// ping does not start.
    pub fn start(
        from: &TestNetns,
        addresses: impl IntoIterator<Item = IpAddr>,
        interval: Duration,
    ) -> Result<Self> {
        let interval = interval.as_secs_f64().to_string();
        let ping = |address: IpAddr| {
            let mut command = from.command("ping");
            command.args(["-n", "-q", "-i", &interval, "-W", "5", &address.to_string()]);
            Guarded::spawn(command.stdout(Stdio::piped()))
        };
        addresses.into_iter().map(ping).collect::<Result<_>>().map(Self)
    }

    /// Ends them. How many packets were sent.
    ///
    /// # Errors
    /// One was lost, or none was sent to some address.
    pub fn end(self) -> Result<u64> {
        let mut all = 0;
        for mut ping in self.0 {
            ping.signal(Signal::SIGINT)?;
            let mut report = String::new();
            ping.child().stdout.take().context("ping's output")?.read_to_string(&mut report)?;
            ensure!(report.contains(" 0% packet loss"), "{report}");
            let line = report.lines().find(|line| line.contains("packets transmitted"));
            let sent = line.and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
            all += sent.filter(|sent| *sent > 0).with_context(|| format!("no packet was sent: {report}"))?;
            poll_until(PATIENCE, "ping to end", || matches!(ping.ended(), Ok(Some(_))))?;
        }
        Ok(all)
    }
}
