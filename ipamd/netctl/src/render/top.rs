//! Rates of endpoints.

use super::{Names, Page, Style, Table, endpoint::short_id};
use crate::commands::Rate;

/// A row for each endpoint; `all`: how many there are.
pub(crate) fn table(page: &mut Page<'_>, rates: &[Rate], all: usize, names: &Names) {
    let mut table = Table::with_header(&[
        "CONTAINER",
        "NAME",
        "NETWORK",
        "RX BIT/S",
        "TX BIT/S",
        "RX PKT/S",
        "TX PKT/S",
        "DROPS/S",
    ]);
    for rate in rates {
        let plain = |text: String| (text, Style::Plain);
        let style = if rate.drops_per_second > 0 { Style::Warning } else { Style::Plain };
        table.styled_row([
            plain(short_id(&rate.attachment)),
            plain(names.of(Some(&rate.attachment))),
            plain(rate.network.clone()),
            plain(bits(rate.rx_bytes_per_second)),
            plain(bits(rate.tx_bytes_per_second)),
            plain(rate.rx_packets_per_second.to_string()),
            plain(rate.tx_packets_per_second.to_string()),
            (rate.drops_per_second.to_string(), style),
        ]);
    }
    page.block(&table);
    let line = match rates.len() {
        0 => "no endpoint has been there for two looks".to_owned(),
        shown if shown < all => format!("{shown} of {all} endpoints (--limit)"),
        _ => return,
    };
    page.line(&line);
}

/// Bits per second of bytes, with three digits or a little more: `940 M`.
fn bits(bytes: u64) -> String {
    let mut value = u128::from(bytes) * 8;
    for unit in ["", " k", " M", " G"] {
        if value < 10_000 {
            return format!("{value}{unit}");
        }
        value /= 1000;
    }
    format!("{value} T")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_keep_their_first_digits() {
        for (bytes, text) in
            [(0, "0"), (1_249, "9992"), (1_250, "10 k"), (117_500_000, "940 M"), (3_000_000_000, "24 G")]
        {
            assert_eq!(bits(bytes), text);
        }
        assert!(bits(u64::MAX).ends_with(" T"));
    }
}
