//! Ways beside each other: everything that is measured on each way in turn, round after round with a turning order.

use crate::{
    shared::{Figures, aim, go_on},
    way::{Kind, Way},
};
use anyhow::{Context, Result};

/// What a group of ways came to.
pub(crate) struct Compared<'a> {
    ways: &'a [Way],
    measured: Vec<[Figures; Kind::ALL.len()]>,
}

/// Measures all ways.
pub(crate) fn compare<'a>(
    title: &str,
    ways: &'a [Way],
    rounds: usize,
    seconds: usize,
) -> Result<Compared<'a>> {
    println!("\n{title}: {rounds} alternating rounds of {seconds} s, median (lowest to highest)");
    let mut measured: Vec<[Figures; Kind::ALL.len()]> = ways.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for turn in 0..ways.len() {
                go_on()?;
                let which = (round + turn) % ways.len();
                let value = kind.measure(&ways[which], seconds);
                let value =
                    value.with_context(|| format!("{}: {} by {}", title, kind.name(), ways[which].name))?;
                measured[which][k].push(value);
            }
        }
    }
    let compared = Compared { ways, measured };
    compared.print();
    Ok(compared)
}

impl Compared<'_> {
    fn print(&self) {
        print!("{:<30}", "");
        for kind in Kind::ALL {
            print!("{:>32}", format!("{}, {}", kind.name(), kind.unit()));
        }
        println!();
        for (way, figures) in self.ways.iter().zip(&self.measured) {
            print!("{:<30}", way.name);
            for f in figures {
                let [low, high] = [0, 100].map(|p| f.percentile(p));
                print!("{:>32}", format!("{:.2} ({low:.2} to {high:.2})", f.median()));
            }
            println!();
        }
    }

    /// The median of the first way in one thing, as a part of another's.
    pub(crate) fn ratio(&self, kind: usize, name: &str) -> Option<f64> {
        let other = self.ways.iter().position(|way| way.name == name)?;
        Some(self.measured.first()?[kind].median() / self.measured.get(other)?[kind].median())
    }

    /// The first way against another, in everything: within `near` of it (0.03: 3 % behind at most), or ahead of it.
    pub(crate) fn against(&self, name: &str, near: Option<f64>) {
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            let Some(ratio) = self.ratio(k, name) else { return };
            let own = self.ways[0].name;
            let (aimed, met) = match (near, kind.more_is_better()) {
                (Some(near), true) => (format!("{:.2} at least", 1.0 - near), ratio >= 1.0 - near),
                (Some(near), false) => (format!("{:.2} at most", 1.0 + near), ratio <= 1.0 + near),
                (None, true) => ("above 1".to_owned(), ratio > 1.0),
                (None, false) => ("below 1".to_owned(), ratio < 1.0),
            };
            aim(&format!("{}: {own} / {name}, aim {aimed}", kind.name()), ratio, met);
        }
    }
}
