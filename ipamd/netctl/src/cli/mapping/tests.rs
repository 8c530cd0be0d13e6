use super::*;
use crate::render::publish::{container_side, host_side};
use proptest::prelude::*;

fn made(
    host_ip: Option<&str>,
    host_port: u16,
    container_port: u16,
    count: u16,
    protocol: Protocol,
) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PortMapping { host_port, container_port, count, protocol, host_ip, allow_from: Vec::new() }
}

#[test]
fn mappings_are_read_as_docker_reads_them() {
    use Protocol::{Sctp, Tcp, Udp};
    for (text, wanted) in [
        ("80", made(None, 0, 80, 1, Tcp)),
        (":80", made(None, 0, 80, 1, Tcp)),
        ("0:80", made(None, 0, 80, 1, Tcp)),
        ("80-89", made(None, 0, 80, 10, Tcp)),
        ("0:80-89", made(None, 0, 80, 10, Tcp)),
        ("8080:80", made(None, 8080, 80, 1, Tcp)),
        ("8080:80/TCP", made(None, 8080, 80, 1, Tcp)),
        ("53:53/udp", made(None, 53, 53, 1, Udp)),
        ("9:9/sctp", made(None, 9, 9, 1, Sctp)),
        ("8000-8009:80-89/udp", made(None, 8000, 80, 10, Udp)),
        ("8000-8000:80", made(None, 8000, 80, 1, Tcp)),
        ("1-65535:1-65535", made(None, 1, 1, 65535, Tcp)),
        ("127.0.0.1:8080:80", made(Some("127.0.0.1"), 8080, 80, 1, Tcp)),
        ("127.0.0.1::80", made(Some("127.0.0.1"), 0, 80, 1, Tcp)),
        ("127.0.0.1:0:80", made(Some("127.0.0.1"), 0, 80, 1, Tcp)),
        ("0.0.0.0:8080:80", made(Some("0.0.0.0"), 8080, 80, 1, Tcp)),
        ("[::1]:80:80", made(Some("::1"), 80, 80, 1, Tcp)),
        ("[::]::53/udp", made(Some("::"), 0, 53, 1, Udp)),
        ("[fd00::5]:8000-8001:80-81", made(Some("fd00::5"), 8000, 80, 2, Tcp)),
    ] {
        assert_eq!(mapping(text), Ok(wanted), "{text}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (text, cause) in [
        ("", "the container port is missing"),
        (":", "the container port is missing"),
        ("8080:", "the container port is missing"),
        ("0", "\"0\" is no container port"),
        ("8080:0", "\"0\" is no container port"),
        ("65536:80", "\"65536\" is no host port: a number from 1 to 65535"),
        ("8080:65536", "\"65536\" is no container port"),
        ("+80:80", "\"+80\" is no host port"),
        (" 80:80", "\" 80\" is no host port"),
        ("-1:80", "the host port is missing"),
        ("80-:80-81", "the host port is missing"),
        ("0-9:80-89", "\"0\" is no host port"),
        ("1-2-3:1-3", "\"2-3\" is no host port"),
        ("http:80", "\"http\" is no host port"),
        ("8009-8000:80-89", "the host range 8009-8000 ends before it begins"),
        ("8000-8009:80", "10 host ports and 1 container ports"),
        ("8000:80-89", "1 host ports and 10 container ports"),
        ("80:80/icmp", "\"icmp\" is no protocol that is published: use one of tcp, udp, sctp"),
        ("80:80/", "\"\" is no protocol"),
        ("80:80/tcp/udp", "\"tcp/udp\" is no protocol"),
        ("127.0.0.1:80", "127.0.0.1 needs a host port or nothing"),
        ("[::1]:80", "::1 needs a host port or nothing"),
        ("127.0.0:80:80", "\"127.0.0\" is no IPv4 address"),
        ("1.2.3.4.5:80:80", "\"1.2.3.4.5\" is no IPv4 address"),
        ("[::1:80:80", "`]:` is missing"),
        ("[127.0.0.1]:80:80", "\"127.0.0.1\" is no IPv6 address"),
        ("::1:80:80", "an IPv6 address stands in brackets"),
        ("fd00::5:80:80", "an IPv6 address stands in brackets"),
        ("1:2:3", "more parts than [IP:]HOST:CONTAINER"),
        ("127.0.0.1:1:2:3", "more parts than [IP:]HOST:CONTAINER"),
    ] {
        let error = mapping(text).unwrap_err().to_string();
        assert!(error.contains(cause), "{text:?}: {error}");
    }
}

#[test]
fn host_ports_are_read() {
    let made =
        |ip: Option<&str>, port, protocol| HostPort { ip: ip.map(|i| i.parse().unwrap()), port, protocol };
    for (text, wanted) in [
        ("8080", made(None, 8080, Protocol::Tcp)),
        ("53/udp", made(None, 53, Protocol::Udp)),
        ("127.0.0.1:8080", made(Some("127.0.0.1"), 8080, Protocol::Tcp)),
        ("[::1]:9/SCTP", made(Some("::1"), 9, Protocol::Sctp)),
    ] {
        assert_eq!(host_port(text), Ok(wanted), "{text}");
    }
    for (text, cause) in [
        ("", "the host port is missing"),
        ("0", "\"0\" is no host port"),
        ("8080:80", "\"8080:80\" is no host port"),
        ("8000-8009", "give its first port"),
        ("::1:80", "an IPv6 address stands in brackets"),
        ("80/http", "\"http\" is no protocol"),
    ] {
        let error = host_port(text).unwrap_err().to_string();
        assert!(error.contains(cause), "{text:?}: {error}");
    }
}

fn mappings() -> impl Strategy<Value = PortMapping> {
    let ports = (1..=u16::MAX, 1..=u16::MAX, 1_u16..200);
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    (ports, any::<bool>(), protocol, any::<Option<IpAddr>>()).prop_map(
        |((host, container_port, count), chosen, protocol, host_ip)| {
            let count = count.min(u16::MAX - container_port + 1);
            let count = if chosen { count } else { count.min(u16::MAX - host + 1) };
            let host_port = if chosen { 0 } else { host };
            PortMapping { host_port, container_port, count, protocol, host_ip, allow_from: Vec::new() }
        },
    )
}

proptest! {
    #[test]
    fn what_is_shown_is_read_back(wanted in mappings()) {
        let text = format!("{}:{}/{}", host_side(&wanted), container_side(&wanted), wanted.protocol);
        prop_assert_eq!(mapping(&text), Ok(wanted.clone()), "{}", text);
        if wanted.host_port != 0 && wanted.count == 1 {
            let HostPort { ip, port, protocol } = host_port(&format!("{}/{}", host_side(&wanted), wanted.protocol)).unwrap();
            prop_assert_eq!((ip, port, protocol), (wanted.host_ip, wanted.host_port, wanted.protocol));
        }
    }

    #[test]
    fn no_text_breaks_it(text in "[0-9:./\\[\\]a-f-]{0,30}|.{0,30}") {
        if let Ok(read) = mapping(&text) {
            prop_assert!(read.count > 0 && read.container_port > 0);
            prop_assert!(read.container_port.checked_add(read.count - 1).is_some());
            prop_assert!(read.host_port.checked_add(read.count - 1).is_some());
        }
        let _ = host_port(&text);
    }
}
