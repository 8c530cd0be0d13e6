use super::*;

fn holder(ip: &str, v6only: bool) -> PortHolder {
    PortHolder {
        protocol: Protocol::Tcp,
        local: SocketAddr::new(ip.parse().unwrap(), 80),
        v6only,
        state: SocketState::Listening,
        inode: 1,
        pid: None,
        process: None,
    }
}

/// Held, IPv6 only, wanted, in which family, in the way.
type Case = (&'static str, bool, Option<&'static str>, Option<Family>, bool);

#[test]
fn who_stands_in_whose_way() {
    use Family::{V4, V6};
    let table: &[Case] = &[
        // Every address of both families.
        ("0.0.0.0", false, None, None, true),
        ("192.0.2.1", false, None, None, true),
        ("127.0.0.1", false, None, None, true),
        ("::", false, None, None, true),
        ("::", true, None, None, true),
        ("2001:db8::1", false, None, None, true),
        // Every address of one.
        ("0.0.0.0", false, None, Some(V4), true),
        ("0.0.0.0", false, None, Some(V6), false),
        ("0.0.0.0", false, Some("0.0.0.0"), None, true),
        ("0.0.0.0", false, Some("::"), None, false),
        ("192.0.2.1", false, Some("0.0.0.0"), None, true),
        ("192.0.2.1", false, Some("::"), None, false),
        ("192.0.2.1", false, None, Some(V6), false),
        ("2001:db8::1", false, Some("::"), None, true),
        ("2001:db8::1", false, Some("0.0.0.0"), None, false),
        ("2001:db8::1", false, None, Some(V4), false),
        // [::] for both families, and for IPv6 alone.
        ("::", false, Some("0.0.0.0"), None, true),
        ("::", false, Some("192.0.2.1"), None, true),
        ("::", false, Some("2001:db8::1"), None, true),
        ("::", false, None, Some(V4), true),
        ("::", true, Some("0.0.0.0"), None, false),
        ("::", true, Some("192.0.2.1"), None, false),
        ("::", true, Some("2001:db8::1"), None, true),
        ("::", true, None, Some(V4), false),
        ("::", true, None, Some(V6), true),
        // One address.
        ("0.0.0.0", false, Some("192.0.2.1"), None, true),
        ("0.0.0.0", false, Some("2001:db8::1"), None, false),
        ("192.0.2.1", false, Some("192.0.2.1"), None, true),
        ("192.0.2.1", false, Some("192.0.2.2"), None, false),
        ("192.0.2.1", false, Some("192.0.2.1"), Some(V4), true),
        ("192.0.2.1", false, Some("192.0.2.1"), Some(V6), false),
        ("2001:db8::1", true, Some("2001:db8::1"), None, true),
        ("2001:db8::1", true, Some("2001:db8::2"), None, false),
        // v4-mapped addresses are IPv4 ones.
        ("::ffff:192.0.2.1", false, Some("192.0.2.1"), None, true),
        ("::ffff:192.0.2.1", false, Some("192.0.2.2"), None, false),
        ("::ffff:192.0.2.1", false, Some("::"), None, false),
        ("::ffff:192.0.2.1", false, None, Some(V4), true),
        ("::ffff:0.0.0.0", false, Some("192.0.2.1"), None, true),
        ("::ffff:0.0.0.0", false, Some("2001:db8::1"), None, false),
        ("192.0.2.1", false, Some("::ffff:192.0.2.1"), None, true),
    ];
    for (held, v6only, wanted, family, in_the_way) in table {
        let host_ip = wanted.map(|ip| ip.parse().unwrap());
        assert_eq!(
            conflicts(&holder(held, *v6only), host_ip, *family),
            *in_the_way,
            "{held} (IPv6 only: {v6only}) against {wanted:?} in {family:?}"
        );
    }
}

#[test]
fn a_holder_is_named() {
    let mut holder = holder("::", false);
    assert_eq!(holder.to_string(), "the kernel itself or a process that cannot be seen with [::]:80/tcp");
    holder.process = Some("nginx (pid 12)".into());
    assert_eq!(holder.to_string(), "nginx (pid 12) with [::]:80/tcp");
}
