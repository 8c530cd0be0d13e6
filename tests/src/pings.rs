//! Pings that go on until they are told to stop, to see that no packet was lost meanwhile.

use crate::{Guarded, TestNetns, poll_until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _},
    net::IpAddr,
    time::Duration,
};

/// How long ping may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an answer may have been on its way when ping is told to stop, which it does without waiting for it.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// Pings to some addresses, all the time.
#[derive(Debug)]
pub struct Pings {
    pings: Vec<(Guarded, File)>,
    interval: Duration,
}

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
        let ping = |address: IpAddr| {
            let said = tempfile::tempfile().context("a file for what ping says")?;
            let mut command = from.command("ping");
            command.args(["-n", "-i", &interval.as_secs_f64().to_string(), &address.to_string()]);
            let ping = Guarded::spawn(command.stdout(said.try_clone().context("ping's output")?))?;
            Ok((ping, said))
        };
        Ok(Self { pings: addresses.into_iter().map(ping).collect::<Result<_>>()?, interval })
    }

    /// Ends them. How many packets were sent.
    ///
    /// # Errors
    /// One was lost, or none was answered by some address.
    pub fn end(self) -> Result<u64> {
        let mut all = 0;
        for (mut ping, mut said) in self.pings {
            ping.signal(Signal::SIGINT)?;
            poll_until(PATIENCE, "ping to end", || matches!(ping.ended(), Ok(Some(_))))?;
            let mut report = String::new();
            said.rewind()?;
            said.read_to_string(&mut report)?;
            all += judge(&report, ON_THE_WAY.div_duration_f64(self.interval).ceil())?;
        }
        Ok(all)
    }
}

/// How many packets were sent, if all but the last `late` were answered for sure.
fn judge(report: &str, late: f64) -> Result<u64> {
    let summary = report.lines().find(|line| line.contains("packets transmitted"));
    let sent = summary.and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
    let sent = sent.with_context(|| format!("no summary: {report}"))?;
    let number = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<u64>().ok();
    // Numbers have 16 bits.
    ensure!(sent <= u64::from(u16::MAX), "more pings than numbers: {sent}");
    let answers = report.lines().filter(|line| line.contains(" bytes from "));
    let answered: BTreeSet<u64> = answers.filter_map(number).collect();
    let lost: Vec<u64> = (1..=sent).filter(|number| !answered.contains(number)).collect();
    #[expect(clippy::cast_precision_loss, reason = "of 16 bits")]
    let surely =
        lost.first().is_some_and(|first| (sent - first) as f64 >= late || answered.last() > Some(first));
    ensure!(!answered.is_empty() && !surely, "of {sent} pings these were lost: {lost:?}\n{summary:?}");
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(answered: &[u64], sent: u64) -> String {
        let line = |n: &u64| format!("64 bytes from fd01::3: icmp_seq={n} ttl=64 time=0.04 ms\n");
        let lines: String = answered.iter().map(line).collect();
        format!(
            "PING fd01::3 56 data bytes\n{lines}\n{sent} packets transmitted, {} received\n",
            answered.len()
        )
    }

    #[test]
    fn only_the_last_may_be_on_their_way() {
        assert_eq!(judge(&report(&[1, 2, 3], 3), 2.0).unwrap(), 3);
        assert_eq!(judge(&report(&[1, 3, 2], 4), 2.0).unwrap(), 4);
        for (answered, sent) in [(&[1, 3][..], 3), (&[2, 3], 3), (&[1, 2], 5), (&[], 1), (&[], 0)] {
            judge(&report(answered, sent), 2.0).unwrap_err();
        }
        judge("", 2.0).unwrap_err();
    }
}
