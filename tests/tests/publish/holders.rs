//! A port has one holder: a container or a program, at one address or at all. Whoever comes second hears of the first.

use super::scene::{HOST_PORT, PORT, Scene, at, localhost};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};
use weft_tests::{
    CniError, Guarded, Machine, Node, Pod, Sandbox, Table, TestNetns, inventory,
    netconf::{network, publishing},
    poll_until,
};

const PATIENCE: Duration = Duration::from_secs(15);

/// `ErrorCode::PortTaken`, docs/errors.md.
const TAKEN: u32 = 116;

fn any(v4: bool) -> IpAddr {
    if v4 { [0; 4].into() } else { [0_u16; 8].into() }
}

/// ADD that has to be refused.
fn refused(node: &Node, id: &str, mapping: &Value) -> Result<CniError> {
    let sandbox = Sandbox::new()?;
    let netconf = publishing(&network("blue", super::scene::BLUE, &Value::Null), &json!([mapping]));
    let cni = node.cni()?.container(id).netns(sandbox.path());
    match cni.call("ADD", &netconf)? {
        Err(error) => Ok(error),
        Ok(result) => {
            cni.del(&netconf)?;
            bail!("ADD succeeded: {result}")
        }
    }
}

/// A program of the host that listens.
fn listener(node: &Node, udp: bool, address: SocketAddr) -> Result<Guarded> {
    let host = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    // Debian's perl-base is on every machine; busybox' nc cannot be told apart from others.
    let kind = if udp { ("SOCK_DGRAM", "udp", "") } else { ("SOCK_STREAM", "tcp", "listen($s, 8) or die;") };
    let (family, packed) = match address.ip() {
        IpAddr::V4(ip) => ("AF_INET", format!("pack_sockaddr_in({}, inet_aton('{ip}'))", address.port())),
        IpAddr::V6(ip) => {
            ("AF_INET6", format!("pack_sockaddr_in6({}, inet_pton(AF_INET6, '{ip}'))", address.port()))
        }
    };
    let script = format!(
        "use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6 AF_INET6 IPPROTO_IPV6 IPV6_V6ONLY); \
         socket(my $s, {family}, {}, 0) or die; setsockopt($s, IPPROTO_IPV6, IPV6_V6ONLY, 1) if {}; \
         bind($s, {packed}) or die \"bind: $!\"; {} sleep 1000;",
        kind.0,
        u8::from(address.is_ipv6()),
        kind.2,
    );
    let mut command = node.netns().command("perl");
    let mut program = Guarded::spawn(command.args(["-e", &script]).stdout(Stdio::null()))?;
    let line = format!("ss -Hlnp --{} src {host}:{}", kind.1, address.port());
    poll_until(PATIENCE, &format!("perl to listen at {address}"), || {
        let ended = program.ended().ok().flatten().is_some();
        ended || node.netns().sh(&line).is_ok_and(|said| !said.is_empty())
    })?;
    ensure!(program.ended()?.is_none(), "perl cannot listen at {address}");
    Ok(program)
}

#[test]
fn a_program_that_holds_the_port_is_named() -> Result<()> {
    let node = Node::start_new("holder")?;
    let machine = Machine::on(&node, 0)?;
    let mut table = Table::default();
    for v4 in [true, false] {
        let uplink = machine.peer(v4);
        // Who holds, and who asks: the same, all against one, one against all.
        let cases = [
            (any(v4), None),
            (any(v4), Some(any(v4))),
            (any(v4), Some(localhost(v4))),
            (any(v4), Some(uplink)),
            (localhost(v4), None),
            (localhost(v4), Some(localhost(v4))),
            (uplink, Some(any(v4))),
            (uplink, Some(uplink)),
        ];
        for (held, asked) in cases {
            for (udp, protocol) in [(false, "tcp"), (true, "udp")] {
                let program = listener(&node, udp, (held, HOST_PORT).into())?;
                let mut mapping = json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol});
                if let Some(asked) = asked {
                    mapping["hostIP"] = asked.to_string().into();
                }
                table.row(format!("{protocol}, {held} is held, {asked:?} is asked for"), || {
                    let error = refused(&node, "late", &mapping)?;
                    let said = error.to_string();
                    let named = said.contains("perl") && said.contains(&program.id().to_string());
                    ensure!(error.code == TAKEN && named, "{said}");
                    Ok(())
                });
            }
        }
        // What does not meet is no conflict.
        let free = [
            (localhost(v4), uplink, "udp", false),
            (any(v4), any(v4), "tcp", true),
            (any(!v4), uplink, "tcp", false),
        ];
        for (held, asked, protocol, udp) in free {
            let _program = listener(&node, udp || protocol == "udp", (held, HOST_PORT).into())?;
            table.row(format!("{protocol}, {held} is held and does not hinder {asked}"), || {
                let mappings = json!([at(&asked.to_string(), HOST_PORT, protocol)]);
                let netconf = publishing(&network("blue", super::scene::BLUE, &Value::Null), &mappings);
                let pod = Pod::add(&node, "free", &netconf)?;
                pod.del(&node, &netconf)
            });
        }
    }
    table.judge(|| node.evidence())?;
    inventory::assert_clean(&node)
}

#[test]
fn a_container_that_holds_the_port_is_named() -> Result<()> {
    let scene = Scene::new("container-holds")?;
    let mut table = Table::default();
    for host_ip in
        [None, Some("0.0.0.0"), Some("127.0.0.1"), Some("198.18.0.1"), Some("::1"), Some("2001:db8::1")]
    {
        for protocol in ["tcp", "udp"] {
            table.row(format!("{protocol}, {host_ip:?}"), || {
                let mut mapping = json!({"hostPort": HOST_PORT, "containerPort": 80, "protocol": protocol});
                if let Some(ip) = host_ip {
                    mapping["hostIP"] = ip.into();
                }
                let error = refused(&scene.node, "late", &mapping)?;
                let said = error.to_string();
                ensure!(error.code == TAKEN && said.contains("web"), "{said}");
                Ok(())
            });
        }
    }
    table.judge(|| scene.node.evidence())?;
    let living = [scene.web.endpoint()?, scene.near.endpoint()?, scene.far.endpoint()?];
    inventory::assert_holds(&scene.node, &living)
}

/// Binds as a program of the host does.
fn bind(netns: &TestNetns, udp: bool, address: SocketAddr, only_v6: bool) -> Result<io::Result<()>> {
    netns.run(|| {
        let kind = if udp { Type::DGRAM } else { Type::STREAM };
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        // What a server sets that is to come up again at once, and what shares a port.
        socket.set_reuse_address(!udp)?;
        socket.bind(&address.into())
    })
}

fn try_to_bind(table: &mut Table, when: &str, scene: &Scene) {
    let v4_addresses =
        [any(true), localhost(true), [198, 18, 0, 1].into(), [10, super::scene::BLUE, 0, 1].into()];
    let v6_addresses = [any(false), localhost(false), scene.machine.peer(false)];
    for udp in [false, true] {
        for ip in v4_addresses.into_iter().chain(v6_addresses) {
            for only_v6 in [true, false] {
                table.row(format!("{when}: udp {udp}, {ip}, only IPv6 {only_v6}"), || {
                    let bound = bind(scene.node.netns(), udp, (ip, HOST_PORT).into(), only_v6)?;
                    let number = bound.err().and_then(|error| error.raw_os_error());
                    ensure!(number == Some(libc::EADDRINUSE), "bind ended with error {number:?}");
                    Ok(())
                });
            }
            table.row(format!("{when}: udp {udp}, {ip}, another port"), || {
                bind(scene.node.netns(), udp, (ip, HOST_PORT + 1).into(), true)?.context("the next port")
            });
        }
        // Containers have ports of their own.
        table.row(format!("{when}: udp {udp}, in a container"), || {
            bind(&scene.near, udp, (any(true), HOST_PORT).into(), true)?.context("in the container")
        });
    }
}

#[test]
fn a_program_that_comes_later_hears_that_the_address_is_in_use() -> Result<()> {
    let mut scene = Scene::new("late-program")?;
    let mut table = Table::default();
    try_to_bind(&mut table, "ipamd runs", &scene);
    scene.node.kill()?;
    try_to_bind(&mut table, "ipamd is away", &scene);
    scene.node.start()?;
    try_to_bind(&mut table, "ipamd is back", &scene);
    table.judge(|| scene.node.evidence())?;
    scene.web.del(&scene.node, &scene.netconf)?;
    for udp in [false, true] {
        for ip in [any(true), any(false)] {
            bind(scene.node.netns(), udp, (ip, HOST_PORT).into(), true)?.context("the port is free again")?;
        }
    }
    Ok(())
}

/// A mapping of one address leaves the others to programs.
#[test]
fn other_addresses_than_the_mapped_one_are_free() -> Result<()> {
    let scene = Scene::with("partly", &Value::Null, &json!([at("198.18.0.1", HOST_PORT, "tcp")]))?;
    let host = scene.node.netns();
    let mut table = Table::default();
    for (ip, udp, free) in [
        (localhost(true), false, true),
        (localhost(false), false, true),
        (any(false), true, true),
        (any(true), true, true),
        ([198, 18, 0, 1].into(), true, true),
        ([198, 18, 0, 1].into(), false, false),
        (any(true), false, false),
    ] {
        table.row(format!("{ip}, udp {udp}"), || {
            let bound = bind(host, udp, (ip, HOST_PORT).into(), true)?;
            ensure!(bound.is_ok() == free, "{bound:?}");
            Ok(())
        });
    }
    // A socket of IPv6 that takes IPv4 too would take that address with it.
    table.row("dual-stack", || {
        let bound = bind(host, false, (any(false), HOST_PORT).into(), false)?;
        ensure!(bound.is_err(), "was bound");
        Ok(())
    });
    table.judge(|| scene.node.evidence())
}
