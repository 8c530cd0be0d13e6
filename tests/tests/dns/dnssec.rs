//! Signatures pass through: what an upstream has proven, and what it has not.

use crate::{
    forward::{Elsewhere, SERVERS},
    scene::{LOCAL, dig, gateways, pod},
};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use weft_tests::{Table, knot::Knot, unbound::Unbound};

/// A zone that its resolver trusts, one for which the resolver has another's key, and one that nobody signed.
const SIGNED: &str = "signed.example";
const BOGUS: &str = "bogus.example";

/// What a container sees of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: String,
    address: bool,
    /// A signature in the answer.
    signed: bool,
    /// A proof that there is nothing, in the authority section.
    denied: bool,
    /// AD: the upstream has proven it.
    proven: bool,
    /// CD and DO, repeated.
    unchecked: bool,
    wanted: bool,
}

#[test]
fn signatures_and_what_is_said_of_them_pass_through() -> Result<()> {
    let elsewhere = Elsewhere::new(&SERVERS[..1])?;
    let authority = SocketAddr::new("198.51.100.55".parse()?, 53);
    elsewhere.outside.ip("addr add 198.51.100.55/24 dev ext0")?;
    let records = &["www A 203.0.113.1"][..];
    let knot = Knot::start(&elsewhere.outside, authority, &[(SIGNED, records), (BOGUS, records)])?;
    let keys = knot.keys(&elsewhere.outside, SIGNED)?;
    ensure!(!keys.is_empty(), "knot has no keys");
    let foreign = keys.iter().map(|key| key.replace(SIGNED, BOGUS));
    let anchors: Vec<String> = keys.iter().cloned().chain(foreign).collect();
    let resolver = Unbound::builder().stub(SIGNED, authority).stub(BOGUS, authority).trusting(&anchors);
    let resolver = resolver.zone("plain.example.").record("www.plain.example. 60 IN A 203.0.113.1");
    let _resolver = elsewhere.serve(0, resolver)?;
    let asker = pod(&elsewhere.node, 107, &["asker"])?;
    let [v4, v6] = gateways(107);
    let found = |status: &str, bits: &str| Seen {
        status: status.into(),
        address: bits.contains('a'),
        signed: bits.contains('s'),
        denied: bits.contains('n'),
        proven: bits.contains('p'),
        unchecked: bits.contains('u'),
        wanted: bits.contains('w'),
    };
    let mut table = Table::default();
    for server in [v4.as_str(), v6.as_str(), LOCAL] {
        let rows = [
            ("+noadflag www.signed.example", found("NOERROR", "a")),
            ("+adflag www.signed.example", found("NOERROR", "ap")),
            ("+dnssec www.signed.example", found("NOERROR", "aspw")),
            ("+dnssec +tcp www.signed.example", found("NOERROR", "aspw")),
            ("+dnssec +cd www.signed.example", found("NOERROR", "asuw")),
            ("+dnssec nobody.signed.example", found("NXDOMAIN", "npw")),
            ("+dnssec www.signed.example AAAA", found("NOERROR", "npw")),
            ("+dnssec www.plain.example", found("NOERROR", "aw")),
            // The unproven answer is in the cache by the second round, and is for those who want it so, only.
            ("+dnssec www.bogus.example", found("SERVFAIL", "w")),
            ("+dnssec +cd www.bogus.example", found("NOERROR", "asuw")),
            ("+cd www.bogus.example", found("NOERROR", "au")),
            ("www.bogus.example", found("SERVFAIL", "")),
        ];
        for round in ["first", "again"] {
            for (question, expected) in &rows {
                table.row(format!("{server} {question}, {round}"), || {
                    let seen = ask(&asker, server, question)?;
                    // Unbound says of what it was not to check what it knows from before.
                    let seen = Seen { proven: seen.proven && !seen.unchecked, ..seen };
                    ensure!(seen == *expected, "{seen:?} instead of {expected:?}");
                    Ok(())
                });
            }
        }
    }
    table.judge(|| elsewhere.node.evidence())
}

fn ask(asker: &weft_tests::Pod, server: &str, question: &str) -> Result<Seen> {
    let said = dig(asker, server, &format!("+time=5 {question}"))?;
    let flags = |before: &str| {
        let line = said.said.split(before).nth(1).and_then(|rest| rest.split(';').next());
        line.map(|flags| flags.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let header = flags(";; flags:").with_context(|| said.said.clone())?;
    let edns = flags("version: 0, flags:").unwrap_or_default();
    let section = |name: &str| {
        let lines = said.said.split(&format!(";; {name} SECTION:\n")).nth(1).unwrap_or_default();
        lines.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let (answer, authority) = (section("ANSWER"), section("AUTHORITY"));
    let has =
        |lines: &[String], kind: &str| lines.iter().any(|line| line.split_whitespace().nth(3) == Some(kind));
    Ok(Seen {
        status: said.status.clone(),
        address: has(&answer, "A"),
        signed: has(&answer, "RRSIG"),
        denied: has(&authority, "RRSIG") && (has(&authority, "NSEC") || has(&authority, "NSEC3")),
        proven: header.iter().any(|flag| flag == "ad"),
        unchecked: header.iter().any(|flag| flag == "cd"),
        wanted: edns.iter().any(|flag| flag == "do"),
    })
}
