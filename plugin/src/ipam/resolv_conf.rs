//! DNS settings of a file in the form of `resolv.conf(5)`, for the key `resolvConf` as `host-local` has it.

use ipamd_api::Dns;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// More than this is no such file.
const MAX_SIZE: u64 = 1 << 20;

/// Reads the file.
pub(super) fn read(path: &Path) -> io::Result<Dns> {
    let mut text = String::new();
    File::open(path)?.take(MAX_SIZE).read_to_string(&mut text)?;
    Ok(parse(&text))
}

/// Lines that begin with a word that is not known are for resolvers, and none of a result's.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let mut values = words.map(str::to_owned);
        match key {
            "nameserver" => dns.nameservers.extend(values.next()),
            "domain" => dns.domain = values.next().or(dns.domain),
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_file_are_those_of_a_result() {
        let text = "# nameserver 192.0.2.1\n; search x\n\nnameserver 10.0.0.1\n  nameserver\tfd00::1  \nnameserver\n\
                    domain one.example\nsearch a.example b.example\noptions ndots:2 edns0\nsortlist 10.0.0.0\nsearch c.example";
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            parse(text),
            Dns {
                nameservers: list(&["10.0.0.1", "fd00::1"]),
                domain: Some("one.example".into()),
                search: list(&["a.example", "b.example", "c.example"]),
                options: list(&["ndots:2", "edns0"]),
            }
        );
        assert_eq!(parse(""), Dns::default());
    }
}
