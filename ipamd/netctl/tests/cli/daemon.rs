//! A daemon that answers what it was told to, and the one node that all tests look at.

use ipamd_api::{
    AddressOrigin, ApiError, AttachmentKey, Comparison, Difference, Driver, DropCount, DropReasonView,
    DropView, EndpointInspection, EndpointOptions, EndpointView, ErrorCode, Finding, FlowList, FlowTuple,
    FlowView, Health, HeldAddress, Hooks, Network, NetworkView, NodeBlock, NodeLife, NodePath, NodeView,
    PartStatus, PathState, Phase, Pool, PoolUse, PortMapping, Protocol, PublishedPorts, Route, SOCKET_NAME,
    Severity, Status, TrafficCounters, netns::SandboxIdentity,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

/// A stream, of drops or questions: lines, and what follows them.
#[derive(Clone, Default)]
pub(crate) struct Stream {
    pub(crate) lines: Vec<Value>,
    /// Whether ipamd ends it then; else it stays open until the caller hangs up.
    pub(crate) ends: bool,
}

/// 2026-11-21 10:00:00 UTC.
pub(crate) const NOW: u64 = 1_795_255_200;

/// A request: method and path, and the body as JSON (null for none).
pub(crate) type Request = (String, Value);

/// The daemon. It ends with its value.
pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// One that gives these answers (call, HTTP status, body), and 404 to every other call.
    pub(crate) fn start(answers: &[(&str, u16, Value)]) -> Self {
        Self::with_drops(answers, None)
    }

    /// The same, and this stream to those who follow something.
    pub(crate) fn with_drops(answers: &[(&str, u16, Value)], drops: Option<Stream>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers: HashMap<String, (u16, Value)> = answers
            .iter()
            .map(|(call, status, body)| ((*call).to_owned(), (*status, body.clone())))
            .collect();
        let seen = Arc::clone(&requests);
        let thread = std::thread::spawn(move || {
            // A connection that sends nothing is the end.
            let mut streams = Vec::new();
            while let Ok((connection, _)) = listener.accept() {
                match (request(&connection), &drops) {
                    (None, _) => break,
                    (Some((call, body)), Some(drops)) if call.ends_with("/follow") => {
                        seen.lock().unwrap().push((call, body));
                        let drops = drops.clone();
                        streams.push(std::thread::spawn(move || stream(&connection, &drops)));
                    }
                    (Some((call, body)), _) => {
                        seen.lock().unwrap().push((call.clone(), body));
                        answer(&connection, &call, &answers);
                    }
                }
            }
            for thread in streams {
                thread.join().unwrap();
            }
        });
        Self { dir, requests, thread: Some(thread) }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let woken = UnixStream::connect(self.dir.path().join(SOCKET_NAME)).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

/// What a connection asks; `None` if nothing.
fn request(stream: &UnixStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return None;
    }
    let call = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        match header.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Some((call, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

fn answer(mut stream: &UnixStream, call: &str, answers: &HashMap<String, (u16, Value)>) {
    let unknown = || {
        let error = ApiError::new(ErrorCode::NotFound, format!("nothing answers {call}"));
        (404, json(&error))
    };
    let (status, body) = answers.get(call).cloned().unwrap_or_else(unknown);
    let body = body.to_string();
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
}

fn stream(mut connection: &UnixStream, drops: &Stream) {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    write!(connection, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for line in &drops.lines {
        write!(connection, "{}", chunk(&format!("{line}\n"))).unwrap();
    }
    if drops.ends {
        write!(connection, "{}", chunk("")).unwrap();
    } else {
        // Until the caller hangs up.
        let _ = connection.read(&mut [0]);
    }
}

pub(crate) fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

pub(crate) fn status(ready: bool) -> Status {
    let part = |part: &str, health, message: &str| PartStatus {
        part: part.to_owned(),
        health,
        message: message.to_owned(),
    };
    Status {
        version: "0.1.0".to_owned(),
        api_version: 1,
        node: "n1".to_owned(),
        boot_id: "6f0f2c1e-8f5e-4b39-9a3b-0c8f5b6f2a11".to_owned(),
        pid: 4711,
        uptime_seconds: 11_520,
        ready,
        parts: vec![
            part("store", Health::Ok, "/var/lib/weft/weft.redb"),
            part("journal", Health::Degraded, "1 record could not be read; see the log"),
            if ready {
                part("datapath", Health::Ok, "clsact, /sys/fs/bpf/weft")
            } else {
                part("datapath", Health::Failed, "bpffs is not mounted; mount -t bpf bpf /sys/fs/bpf")
            },
        ],
        networks: 2,
        endpoints: 2,
        drops: vec![
            DropCount { reason: 1, name: "spoofed-source-ip".to_owned(), packets: 12 },
            DropCount { reason: 2, name: "spoofed-source-mac".to_owned(), packets: 0 },
        ],
    }
}

/// Two nodes: the one that answers, and one that is silent.
pub(crate) fn nodes() -> Vec<NodeView> {
    let node = |name: &str, life, since, address: &str| NodeView {
        name: name.to_owned(),
        this_node: name == "n1",
        life,
        since,
        draining: false,
        underlay: vec![address.parse().unwrap()],
        segments: vec!["192.0.2.0/24".parse().unwrap()],
        port: 4789,
        id: "0f3e5a1b2c4d5e6f708192a3b4c5d6e7".to_owned(),
        boot_id: "6f0f2c1e-8f5e-4b39-9a3b-0c8f5b6f2a11".to_owned(),
        incarnation: 1,
        registered_at: NOW - 90_000,
        blocks: vec![
            NodeBlock { network: "web".to_owned(), block: "10.89.0.0/26".parse().unwrap() },
            NodeBlock { network: "web".to_owned(), block: "fd00:89::/122".parse().unwrap() },
        ],
        endpoints: (name == "n1").then_some(2),
        path: None,
    };
    let mut draining = node("n3", NodeLife::Alive, None, "192.0.2.3");
    (draining.draining, draining.blocks) = (true, vec![]);
    draining.path = Some(NodePath { state: PathState::Clamped, largest: Some(1354), since: NOW - 120 });
    vec![
        node("n1", NodeLife::Alive, Some(NOW - 60), "192.0.2.1"),
        node("n2", NodeLife::Suspect, Some(NOW - 600), "192.0.2.2"),
        draining,
    ]
}

/// What is wrong with `n2`.
pub(crate) fn silent() -> Finding {
    Finding {
        check: "nodes".to_owned(),
        severity: Severity::Warning,
        object: "node n2".to_owned(),
        message: "shows no sign of life".to_owned(),
        remedy: "look at that machine; if it is gone for good: `netctl node rm n2`".to_owned(),
    }
}

pub(crate) fn web() -> NetworkView {
    let pool = |subnet: &str, gateway: &str, dynamic: &str| Pool {
        subnet: subnet.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        dynamic_range: dynamic.parse().unwrap(),
        reserved: vec![],
        static_addresses: Default::default(),
    };
    let mut v4 = pool("10.89.0.0/24", "10.89.0.1", "10.89.0.128/25");
    v4.reserved = vec!["10.89.0.200/30".parse().unwrap()];
    v4.static_addresses = [("db".to_owned(), "10.89.0.9".parse().unwrap())].into();
    let of_pool = |subnet: &str, usable, block: &str| PoolUse {
        subnet: subnet.parse().unwrap(),
        usable,
        used: 1,
        cooling: 2,
        blocks: vec![block.parse().unwrap()],
    };
    NetworkView {
        network: Network {
            id: 3,
            name: "web".to_owned(),
            driver: Driver::Bridge,
            pools: vec![v4, pool("fd00:89::/64", "fd00:89::1", "fd00:89::/64")],
            mtu: 1500,
            internal: false,
            parent: None,
            hooks: Hooks::Clsact,
            masquerade: true,
            masquerade_except: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            routed: false,
            dns_mode: ipamd_api::DnsMode::Gateway,
            dns_upstreams: vec!["10.0.0.53".parse().unwrap(), "[fd00::53]:5353".parse().unwrap()],
            overlay: None,
            created_at: NOW - 90_000,
        },
        bridge: Some("wf-3".to_owned()),
        pool_use: vec![
            of_pool("10.89.0.0/24", 249, "10.89.0.128/26"),
            of_pool("fd00:89::/64", u64::MAX, "fd00:89::/122"),
        ],
        endpoints: 1,
    }
}

pub(crate) fn plain() -> NetworkView {
    let mut view = web();
    view.network = Network {
        id: 4,
        name: "plain".to_owned(),
        driver: Driver::None,
        pools: vec![],
        internal: true,
        ..view.network
    };
    view.bridge = None;
    view.pool_use = vec![];
    view.endpoints = 0;
    view
}

/// An endpoint whose every field says something. Its generation is one that YAML could take for a number.
pub(crate) fn endpoint() -> EndpointView {
    let held = |address: &str, gateway: &str, origin, block: &str| HeldAddress {
        address: address.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        origin,
        block: Some(block.parse().unwrap()),
    };
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    EndpointView {
        endpoint: "000012345678".parse().unwrap(),
        attachment: AttachmentKey {
            container_id: "3f2a9c44d1e07b58a6c2f0d4e9b13c77".to_owned(),
            ifname: "eth0".to_owned(),
        },
        network: "web".to_owned(),
        runtime: "containerd".to_owned(),
        phase: Phase::Live,
        addresses: vec![
            held("10.89.0.130/24", "10.89.0.1", AddressOrigin::Dynamic, "10.89.0.128/26"),
            held("fd00:89::5/64", "fd00:89::1", AddressOrigin::Static, "fd00:89::/122"),
        ],
        mac: Some("02:57:0a:59:00:82".parse().unwrap()),
        mtu: 1500,
        routes: vec![
            Route { dst: "0.0.0.0/0".parse().unwrap(), gw: Some("10.89.0.1".parse().unwrap()) },
            Route { dst: "10.96.0.0/12".parse().unwrap(), gw: None },
        ],
        sandbox: SandboxIdentity {
            path: PathBuf::from("/run/netns/cni-7a1c"),
            dev: 4,
            inode: 4_026_532_441,
            cookie: 18,
        },
        host_ifname: Some("wf000012345678".to_owned()),
        host_ifindex: Some(12),
        sandbox_ifindex: Some(2),
        options: EndpointOptions {
            aliases: vec!["shop".to_owned()],
            labels: [label("K8S_POD_NAME", "web-0"), label("K8S_POD_NAMESPACE", "shop")].into(),
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                count: 1,
                protocol: Protocol::Tcp,
                allow_from: Vec::new(),
                host_ip: Some(IpAddr::from([127, 0, 0, 1])),
            }],
            ..EndpointOptions::default()
        },
        created_at: NOW - 11_520,
        boot_id: "6f0f2c1e-8f5e-4b39-9a3b-0c8f5b6f2a11".to_owned(),
    }
}

/// A second endpoint, of podman, of another network, without wiring.
pub(crate) fn bare_endpoint() -> EndpointView {
    EndpointView {
        endpoint: "00000000beef".parse().unwrap(),
        attachment: AttachmentKey { container_id: "short".to_owned(), ifname: "eth1".to_owned() },
        network: "plain".to_owned(),
        runtime: "podman".to_owned(),
        phase: Phase::Adding,
        addresses: vec![],
        mac: None,
        routes: vec![],
        host_ifname: None,
        host_ifindex: None,
        sandbox_ifindex: None,
        options: EndpointOptions::default(),
        created_at: NOW - 5,
        ..endpoint()
    }
}

pub(crate) fn inspected(differs: bool) -> EndpointInspection {
    let row = |source: &str, subject: &str, desired: &str, observed: &str| Comparison {
        source: source.to_owned(),
        subject: subject.to_owned(),
        desired: desired.to_owned(),
        observed: observed.to_owned(),
    };
    let address = if differs { "-" } else { "10.89.0.130/24" };
    EndpointInspection {
        endpoint: endpoint(),
        journal_file: PathBuf::from("/run/weft/journal/000012345678.json"),
        counters: Some(TrafficCounters {
            rx_packets: 10,
            rx_bytes: 1000,
            tx_packets: 11,
            tx_bytes: 1100,
            drops: 3,
        }),
        state: vec![
            row("kernel", "host link wf000012345678", "up, mtu 1500", "up, mtu 1500"),
            row("kernel", "address on eth0", "10.89.0.130/24", address),
            row("map", "ADDRESSES 10.89.0.130", "ifindex 12", "ifindex 12"),
        ],
        differences: if differs {
            vec![Difference {
                subject: "address 10.89.0.130/24 on eth0".to_owned(),
                desired: "present".to_owned(),
                observed: "absent".to_owned(),
                remedy: "ip -n cni-7a1c address add 10.89.0.130/24 dev eth0".to_owned(),
            }]
        } else {
            vec![]
        },
        published: published()[..2].to_vec(),
        names: vec!["web-1".to_owned(), "3f2a9c44d1e0".to_owned(), "www".to_owned()],
        flows: FlowList { flows: flows()[..2].to_vec(), matching: 5, total: 90, capacity: 65_536 },
        flow_quota: Some(16_384),
    }
}

fn mapping(host_ip: Option<&str>, host_port: u16, container_port: u16, count: u16) -> PortMapping {
    PortMapping {
        host_port,
        container_port,
        count,
        protocol: Protocol::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        allow_from: vec![],
    }
}

/// One of each kind: at one address, a range for some, chosen, of a container without a name.
pub(crate) fn published() -> Vec<PublishedPorts> {
    let of = |endpoint: EndpointView, mapping, chosen| PublishedPorts {
        endpoint: endpoint.endpoint,
        attachment: endpoint.attachment,
        network: endpoint.network,
        mapping,
        chosen,
        backends: vec!["10.89.0.130".parse().unwrap(), "fd00:89::5".parse().unwrap()],
    };
    let mut local = of(endpoint(), mapping(Some("127.0.0.1"), 8080, 80, 1), false);
    local.backends.truncate(1);
    let mut range = mapping(None, 8000, 9000, 10);
    range.protocol = Protocol::Udp;
    range.allow_from = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let mut six = of(bare_endpoint(), mapping(Some("::1"), 20_000, 443, 1), true);
    six.backends.remove(0);
    vec![local, of(endpoint(), range, false), six]
}

/// One of each kind of owner: an endpoint that is there, one that is gone, the host.
pub(crate) fn flows() -> Vec<FlowView> {
    let tuple = |source: &str, destination: &str| {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        FlowTuple {
            source: source.ip(),
            source_port: source.port(),
            destination: destination.ip(),
            destination_port: destination.port(),
        }
    };
    let out = FlowView {
        protocol: "tcp".to_owned(),
        state: "established".to_owned(),
        kind: "masquerade".to_owned(),
        original: tuple("10.89.0.130:40000", "198.51.100.7:443"),
        reply: tuple("198.51.100.7:443", "192.0.2.10:61000"),
        endpoint: Some(endpoint().endpoint),
        attachment: Some(endpoint().attachment),
        original_packets: 12,
        original_bytes: 1400,
        reply_packets: 10,
        reply_bytes: 90_000,
        age_seconds: 75,
        expires_seconds: 431_990,
    };
    let published = FlowView {
        state: "unreplied".to_owned(),
        kind: "published".to_owned(),
        original: tuple("[2001:db8::9]:5000", "[2001:db8::1]:8080"),
        reply: tuple("[fd00:89::5]:80", "[2001:db8::9]:5000"),
        reply_packets: 0,
        reply_bytes: 0,
        ..out.clone()
    };
    let gone = FlowView { attachment: None, state: "closed".to_owned(), ..out.clone() };
    let host = FlowView { endpoint: None, attachment: None, kind: "host".to_owned(), ..out.clone() };
    vec![out, published, gone, host]
}

pub(crate) fn reasons() -> Vec<DropReasonView> {
    let reason = |reason, name: &str, meaning: &str, packets| DropReasonView {
        reason,
        name: name.to_owned(),
        meaning: meaning.to_owned(),
        packets,
    };
    vec![
        reason(0, "unknown-endpoint", "The interface is no endpoint (any more).", 0),
        reason(7, "isolated", "The destination belongs to another network.", 3),
        reason(13, "not-allowed", "The published port does not allow this client.", 1200),
    ]
}

/// A drop at an endpoint's interface, one at the uplink, and one of a container that the runtime did not name.
pub(crate) fn drops() -> Vec<DropView> {
    let isolated = DropView {
        time_ms: NOW * 1000 + 7,
        reason: "isolated".to_owned(),
        meaning: reasons()[1].meaning.clone(),
        hook: "from_pod".to_owned(),
        interface: "wf000012345678".to_owned(),
        attachment: Some(endpoint().attachment),
        length: 74,
        packet: "tcp 10.89.0.130:4711 > 10.90.0.3:80 [S]".to_owned(),
    };
    let outside = DropView {
        time_ms: NOW * 1000 + 1250,
        reason: "not-allowed".to_owned(),
        meaning: reasons()[2].meaning.clone(),
        hook: "from_netdev".to_owned(),
        interface: "eth0".to_owned(),
        attachment: None,
        length: 60,
        packet: "udp 203.0.113.9:53 > 192.0.2.10:8000".to_owned(),
    };
    let unnamed = DropView {
        interface: "wf00000000beef".to_owned(),
        attachment: Some(bare_endpoint().attachment),
        ..isolated.clone()
    };
    vec![isolated, outside, unnamed]
}
