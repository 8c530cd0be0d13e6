//! How nodes share the addresses of a network.

use super::scene::{BLUE, CONVERGENCE, netconf};
use anyhow::{Context, Result, ensure};
use ipamd_api::ErrorCode;
use std::{collections::BTreeSet, net::IpAddr};
use weft_tests::{Cluster, CniError, Pod, poll_until};

/// A pool that is smaller than what a node likes to have in reserve, with the settings that nodes have by themselves.
#[test]
fn a_pool_of_one_block_serves_two_nodes() -> Result<()> {
    let cluster = Cluster::builder("small").etcd(1).start()?;
    let subnet = format!("10.{BLUE}.0.0/28");
    cluster[0].ask(&format!("network create blue --driver overlay --subnet {subnet}"))?;
    let mut pods = vec![Pod::add(&cluster[0], "first", &netconf("blue"))?];
    let mut refusal = None;
    for number in 0..16 {
        match Pod::add(&cluster[1], &format!("second-{number}"), &netconf("blue")) {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                refusal = Some(error);
                break;
            }
        }
    }
    let refusal = refusal.context("16 containers in a /28")?;
    let refused = refusal.downcast_ref::<CniError>().context("what kind of refusal?")?;
    ensure!(refused.code == ErrorCode::PoolExhausted.number(), "{refused}");
    ensure!(refused.msg.contains("other nodes have"), "{refused}");
    ensure!(
        pods.len() > 3,
        "the owner of the block lends too little of it: {pods:?}\n{}",
        cluster.evidence()
    );
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(Pod::addresses).map(|ip| ip.ip()).collect();
    ensure!(addresses.len() == pods.len(), "an address was given twice: {addresses:?}");
    for pod in &pods[1..] {
        let to = pod.addresses()[0].ip();
        poll_until(CONVERGENCE, "an answer", || pods[0].ping(to).unwrap_or(false))
            .with_context(|| format!("{to}\n{}", cluster.evidence()))?;
    }
    Ok(())
}
