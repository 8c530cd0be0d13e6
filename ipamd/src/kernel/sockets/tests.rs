use super::*;

/// A `struct inet_diag_msg`.
fn message(family: i32, state: u8, port: u16, ip: IpAddr, inode: u32) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(family).unwrap(), state, 0, 0];
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 2]);
    match ip {
        IpAddr::V4(v4) => bytes.extend(v4.octets().into_iter().chain([0; 12])),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
    bytes.resize(68, 0);
    bytes.extend(inode.to_ne_bytes());
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn local(holders: &[PortHolder]) -> Vec<String> {
    holders.iter().map(|h| h.local.to_string()).collect()
}

#[test]
fn messages_of_the_kernel_are_read() {
    let any = Ipv6Addr::UNSPECIFIED.into();
    let mut bytes = message(libc::AF_INET6, LISTEN, 80, any, 7);
    let found = read(&bytes, Protocol::Tcp, &(80..=80));
    assert_eq!(local(&found), ["[::]:80"]);
    assert_eq!((found[0].v6only, found[0].state, found[0].inode), (false, SocketState::Listening, 7));
    bytes.extend(attribute(SKV6ONLY, &[1]));
    assert!(read(&bytes, Protocol::Tcp, &(80..=80))[0].v6only);
    assert_eq!(read(&bytes, Protocol::Tcp, &(81..=90)), [], "another port");

    let mapped = "::ffff:192.0.2.1".parse().unwrap();
    let bytes = message(libc::AF_INET6, ESTABLISHED, 53, mapped, 8);
    let found = read(&bytes, Protocol::Udp, &(53..=53));
    assert_eq!((local(&found), found[0].state), (vec!["192.0.2.1:53".into()], SocketState::Connected));
    let bytes = message(libc::AF_INET, CLOSE, 53, "192.0.2.2".parse().unwrap(), 9);
    assert_eq!(read(&bytes, Protocol::Udp, &(53..=53))[0].state, SocketState::Bound);
}

#[test]
fn an_sctp_endpoint_has_all_its_addresses() {
    let mut locals = vec![0; 2 * STORAGE];
    locals[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    locals[4..8].copy_from_slice(&[192, 0, 2, 1]);
    locals[STORAGE..STORAGE + 2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
    locals[STORAGE + 8..STORAGE + 24].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    let mut bytes = message(libc::AF_INET6, LISTEN, 2905, Ipv6Addr::UNSPECIFIED.into(), 3);
    bytes.extend(attribute(LOCALS, &locals));
    let found = read(&bytes, Protocol::Sctp, &(2000..=3000));
    assert_eq!(local(&found), ["192.0.2.1:2905", "[2001:db8::1]:2905"]);
}

#[test]
fn what_is_cut_short_or_strange_is_nothing() {
    let mut bytes = message(libc::AF_INET, LISTEN, 80, "192.0.2.1".parse().unwrap(), 7);
    bytes.extend(attribute(LOCALS, &[9; 50]));
    assert_eq!(local(&read(&bytes, Protocol::Sctp, &(80..=80))), ["192.0.2.1:80"], "half an address");
    for length in 0..MESSAGE {
        assert_eq!(read(&bytes[..length], Protocol::Tcp, &(0..=u16::MAX)), []);
    }
    bytes[0] = 99;
    assert_eq!(read(&bytes, Protocol::Tcp, &(80..=80)), [], "an unknown family");
}
