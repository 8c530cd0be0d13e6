//! The instrument: dnsperf, with the same clients and questions for everybody.

use crate::shared::{Figures, instruments::output};
use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};
use weft_tests::NetnsHandle;

/// Clients and questions that are on their way.
const LOAD: &str = "-c 8 -q 64";

/// How often the latencies are taken from a file of questions: one line is printed for each.
const LISTED: usize = 20_000;

/// Who asks whom for what.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) client: NetnsHandle,
    /// Address of the server.
    pub(crate) server: String,
    /// Whose processor time counts as the server's.
    pub(crate) process: Option<u32>,
}

/// What a way came to.
#[derive(Default)]
pub(crate) struct Measured {
    /// Answers a second.
    pub(crate) rate: Figures,
    /// 99th percentile of the time to an answer under that load, in microseconds.
    pub(crate) late: Figures,
    /// Processor time of the server for each answer, in microseconds.
    pub(crate) cost: Figures,
}

/// Writes questions for A records of these names.
pub(crate) fn questions(path: &Path, names: impl Iterator<Item = String>) -> Result<usize> {
    let lines: Vec<String> = names.map(|name| format!("{name} A\n")).collect();
    fs::write(path, lines.concat()).context("writing questions")?;
    Ok(lines.len())
}

impl Way {
    /// Asks as fast as it is answered; every question must be, and with an address.
    pub(crate) fn measure(&self, questions: &Path, seconds: usize, into: &mut Measured) -> Result<()> {
        let before = self.spent()?;
        let said = self.ask(questions, &format!("-l {seconds}"))?;
        let number = |label: &str| -> Result<f64> {
            let rest = said.split(label).nth(1).with_context(|| format!("no {label:?} in:\n{said}"))?;
            let word = rest.split_whitespace().next().unwrap_or_default();
            word.parse().with_context(|| format!("{label} {word:?} is no number"))
        };
        let completed = number("Queries completed:")?;
        let lost = number("Queries lost:")?;
        let right = number("NOERROR")?;
        ensure!(
            lost <= completed / 1000.0 && right >= completed,
            "{}: not all was answered:\n{said}",
            self.name
        );
        into.rate.push(number("Queries per second:")?);
        if let (Some(before), Some(after)) = (before, self.spent()?) {
            into.cost.push((after - before) * 1e6 / completed);
        }
        Ok(())
    }

    /// The same load again, with the time of every answer.
    pub(crate) fn measure_latency(&self, questions: &Path, lines: usize, into: &mut Measured) -> Result<()> {
        let runs = LISTED.div_ceil(lines);
        let said = self.ask(questions, &format!("-v -n {runs}"))?;
        let mut times = Figures::default();
        for line in said.lines().filter(|line| line.starts_with("> ")) {
            let last = line.split_whitespace().next_back().unwrap_or_default();
            times.push(last.parse::<f64>().with_context(|| line.to_owned())? * 1e6);
        }
        into.late.push(times.percentile(99));
        Ok(())
    }

    fn ask(&self, questions: &Path, more: &str) -> Result<String> {
        output(&self.client, &format!("dnsperf -s {} -d {} {LOAD} {more}", self.server, questions.display()))
    }

    /// Processor time that the server has spent, in seconds: fields 14 and 15 of proc_pid_stat(5).
    fn spent(&self) -> Result<Option<f64>> {
        let Some(process) = self.process else { return Ok(None) };
        let stat =
            fs::read_to_string(format!("/proc/{process}/stat")).context("reading a server's statistics")?;
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let mut fields =
            behind_name.split_whitespace().skip(11).filter_map(|field| field.parse::<f64>().ok());
        let ticks = fields.next().unwrap_or_default() + fields.next().unwrap_or_default();
        Ok(Some(ticks / 100.0))
    }
}
