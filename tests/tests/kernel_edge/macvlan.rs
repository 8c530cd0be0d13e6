//! Macvlan endpoints, on a parent that is one end of a veth pair.

use crate::edge::{Edge, endpoint, json, links};
use anyhow::{Context, Result};
use ipamd::kernel::{EndpointWiring, Kernel, KernelError, SandboxObserved};
use ipamd::reconcile::endpoint_differences;
use ipamd_api::Driver;
use std::time::Duration;
use weft_tests::{Sandbox, poll_until};

fn node() -> Result<Edge> {
    let edge = Edge::new()?;
    edge.host.ip("link add up0 type veth peer name wire")?;
    edge.host.ip("link set up0 up")?;
    edge.host.ip("link set wire up")?;
    Ok(edge)
}

fn macvlan(number: u8, ifname: &str) -> Result<EndpointWiring> {
    let parent = Some("up0".to_owned());
    Ok(EndpointWiring { driver: Driver::Macvlan, parent, ..endpoint(1, number, ifname)? })
}

#[test]
fn macvlan_endpoints_reach_each_other() -> Result<()> {
    let edge = node()?;
    let (first, second) = (Sandbox::new()?, Sandbox::new()?);
    let wanted = macvlan(2, "eth0")?;
    let (created, routes) = edge.attach(&wanted, &first)?;
    edge.attach(&macvlan(3, "eth0")?, &second)?;
    assert_eq!((created.host_ifindex, routes), (None, wanted.routes.clone()));
    let link = json(&first, "link show eth0")?;
    assert_eq!(link[0]["linkinfo"]["info_data"]["mode"], "bridge");
    assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&wanted.mac.to_string().into(), &1400.into()));
    for address in ["10.1.0.3", "fd00:1::3"] {
        assert!(first.ping(address)?, "{address}");
    }
    let observed = edge.call(|k| k.observe(&wanted, first.identity()))?;
    assert_eq!(endpoint_differences(&wanted, first.path(), &observed), []);
    Ok(())
}

#[test]
fn a_missing_parent_is_named() -> Result<()> {
    let edge = node()?;
    let sandbox = Sandbox::new()?;
    for parent in [Some("nope0".to_owned()), None] {
        let wanted = EndpointWiring { parent, ..macvlan(2, "eth0")? };
        let path = sandbox.path();
        let error = edge.call(|k| k.create(&wanted, &k.open_sandbox(path)?)).err().context("an error")?;
        assert!(matches!(error, KernelError::ParentNotFound(_)), "{error}");
        assert_eq!(links(&sandbox)?, ["lo"]);
    }
    Ok(())
}

#[test]
fn a_taken_name_is_told() -> Result<()> {
    let edge = node()?;
    let sandbox = Sandbox::new()?;
    edge.attach(&macvlan(2, "eth0")?, &sandbox)?;
    let wanted = macvlan(3, "eth0")?;
    let path = sandbox.path();
    let error = edge.call(|k| k.create(&wanted, &k.open_sandbox(path)?)).err().context("an error")?;
    assert!(matches!(error, KernelError::InterfaceExists { .. }), "{error}");
    Ok(())
}

#[test]
fn removing_finds_a_renamed_device_and_no_other() -> Result<()> {
    let edge = node()?;
    let sandbox = Sandbox::new()?;
    let (wanted, other) = (macvlan(2, "eth0")?, macvlan(3, "eth1")?);
    edge.attach(&wanted, &sandbox)?;
    edge.attach(&other, &sandbox)?;
    sandbox.ip("link set eth0 down")?;
    sandbox.ip("link set eth0 name mine")?;
    for _ in 0..2 {
        edge.remove(&wanted, sandbox.identity())?;
        assert_eq!(links(&sandbox)?, ["lo", "eth1"]);
    }
    Ok(())
}

#[test]
fn a_sandbox_that_took_the_place_is_not_touched() -> Result<()> {
    let edge = node()?;
    let mut sandbox = Sandbox::new()?;
    let wanted = macvlan(2, "eth0")?;
    edge.attach(&wanted, &sandbox)?;
    let old = sandbox.identity().clone();
    sandbox.replace()?;
    // The same address and so the same MAC, in the new sandbox; the kernel gives it once the old sandbox has gone.
    let next = macvlan(2, "eth0")?;
    poll_until(Duration::from_secs(60), "the MAC to be free", || {
        edge.attach(&next, &sandbox).is_ok() || edge.remove(&next, sandbox.identity()).is_err()
    })?;
    edge.remove(&wanted, &old)?;
    assert!(links(&sandbox)?.contains(&"eth0".to_owned()));
    let observed = edge.call(|k| k.observe(&wanted, &old))?;
    assert_eq!((observed.sandbox, observed.inside), (SandboxObserved::Replaced, None));
    Ok(())
}
