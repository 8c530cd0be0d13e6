//! Every resolver that containers have, by every way to a name server.

use crate::scene::{LOCAL, both, dig, expect, gateways, pod};
use anyhow::{Result, ensure};
use weft_tests::{
    FAMILIES, Node, Table,
    resolve::{RESOLVERS, Resolving},
};

#[test]
fn every_resolver_finds_containers() -> Result<()> {
    let node = Node::start_new("clients")?;
    let (web, db) = (pod(&node, 80, &["web", "www"])?, pod(&node, 80, &["db"])?);
    let [v4, v6] = gateways(80);
    let mut table = Table::default();
    for server in [v4.as_str(), v6.as_str(), LOCAL] {
        let conf = Resolving::with(&format!("nameserver {server}\n"))?;
        for resolver in RESOLVERS {
            for (name, expected) in [("db", &db), ("DB", &db), ("www", &web), ("db.net-80", &db)] {
                table.row(format!("{resolver:?} asks {server} for {name}"), || {
                    let (found, expected) = (conf.addresses(&web, resolver, name)?, both(expected)?);
                    ensure!(found == expected, "{found:?} instead of {expected:?}");
                    Ok(())
                });
            }
        }
    }
    table.judge(|| node.evidence())
}

#[test]
fn search_domains_need_one_question() -> Result<()> {
    let node = Node::start_new("search")?;
    let mut netconf = crate::scene::bridge("net-81", 81, &["api"]);
    netconf["dns"] = serde_json::json!({"search": ["shop.example"]});
    let api = weft_tests::Pod::add(&node, "api-container", &netconf)?;
    let [v4, _] = gateways(81);
    let conf = Resolving::with(&format!("nameserver {v4}\nsearch shop.example net-81\noptions ndots:5\n"))?;
    let mut table = Table::default();
    for resolver in RESOLVERS {
        for name in ["api", "api.net-81", "api.shop.example"] {
            table.row(format!("{resolver:?} asks for {name}"), || {
                let found = conf.addresses(&api, resolver, name)?;
                ensure!(found == both(&api)?, "{found:?} instead of {:?}", both(&api)?);
                Ok(())
            });
        }
    }
    table.judge(|| node.evidence())
}

#[test]
fn every_kind_of_question_by_both_transports() -> Result<()> {
    let node = Node::start_new("kinds")?;
    let one = pod(&node, 82, &["one", "both"])?;
    let other = pod(&node, 82, &["other", "both"])?;
    let of = |pod: &weft_tests::Pod, v4: bool| Ok::<_, anyhow::Error>(vec![pod.ip_of(v4)?.to_string()]);
    let either = |v4: bool| Ok::<_, anyhow::Error>([of(&one, v4)?, of(&other, v4)?].concat());
    let [v4, v6] = gateways(82);
    let mut table = Table::default();
    for server in [v4.as_str(), v6.as_str(), LOCAL] {
        for transport in ["+notcp", "+tcp"] {
            for v4 in FAMILIES {
                let kind = if v4 { "A" } else { "AAAA" };
                let rows = [
                    (format!("one {kind}"), "NOERROR", of(&one, v4)?),
                    (format!("OnE {kind}"), "NOERROR", of(&one, v4)?),
                    (format!("both {kind}"), "NOERROR", either(v4)?),
                    (format!("one {kind} +noedns"), "NOERROR", of(&one, v4)?),
                    (format!("one {kind} +bufsize=4096 +dnssec"), "NOERROR", of(&one, v4)?),
                    (format!("-x {}", one.ip_of(v4)?), "NOERROR", vec!["one.net-82.".to_owned()]),
                    (format!("nobody.net-82 {kind}"), "NXDOMAIN", vec![]),
                    ("one MX".to_owned(), "NOERROR", vec![]),
                ];
                for (question, status, data) in rows {
                    table.row(format!("{server} {transport} {question}"), || {
                        expect(&one, server, &format!("{transport} {question}"), status, &data)
                    });
                }
            }
        }
        table.row(format!("{server} echoes the letters of the question"), || {
            let answer = dig(&one, server, "+noedns OnE A")?;
            ensure!(answer.said.contains("\nOnE."), "{}", answer.said);
            Ok(())
        });
        table.row(format!("{server} rotates"), || {
            let firsts: std::collections::BTreeSet<_> = (0..40)
                .map(|_| Ok(dig(&one, server, "both A")?.data.first().cloned()))
                .collect::<Result<_>>()?;
            ensure!(firsts.len() == 2, "always first: {firsts:?}");
            Ok(())
        });
    }
    table.judge(|| node.evidence())
}

#[test]
fn an_endpoint_that_is_gone_has_no_name() -> Result<()> {
    let node = Node::start_new("gone")?;
    let (stays, goes) = (pod(&node, 83, &["stays", "shared"])?, pod(&node, 83, &["goes", "shared"])?);
    let [v4, _] = gateways(83);
    let mut all = vec![stays.ipv4()?.to_string(), goes.ipv4()?.to_string()];
    expect(&stays, &v4, "shared A", "NOERROR", &all)?;
    goes.del(&node, &crate::scene::bridge("net-83", 83, &["goes", "shared"]))?;
    all.pop();
    expect(&stays, &v4, "shared A", "NOERROR", &all)?;
    expect(&stays, &v4, "goes.net-83 A", "NXDOMAIN", &[])?;
    expect(&stays, &v4, &format!("-x {}", goes.ipv4()?), "NXDOMAIN", &[])
}
