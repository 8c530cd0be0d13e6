//! A real upstream: Debian's unbound.

use super::*;
use std::process::{Child, Stdio};

/// A name whose records fit no datagram.
const LONG: usize = 40;

struct Unbound(Child);

impl Unbound {
    fn start(dir: &std::path::Path) -> Self {
        let texts: String = (0..LONG)
            .map(|number| format!("  local-data: 'long.example. 300 IN TXT \"{number:0>100}\"'\n"))
            .collect();
        let conf = format!(
            "server:\n  interface: {FIRST}\n  access-control: 127.0.0.0/8 allow\n  do-daemonize: no\n  use-syslog: no\n  \
             username: \"\"\n  chroot: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  do-not-query-localhost: no\n  \
             module-config: \"iterator\"\n  local-zone: example. static\n  \
             local-data: 'www.example. 300 IN A 192.0.2.1'\n  local-data: 'example. 300 IN SOA ns.example. h.example. 1 2 3 4 60'\n\
             {texts}remote-control:\n  control-enable: no\n",
            dir = dir.display()
        );
        let path = dir.join("unbound.conf");
        std::fs::write(&path, conf).unwrap();
        let child = Command::new("/usr/sbin/unbound")
            .args(["-d", "-c"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs Debian's unbound");
        Self(child)
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn unbound_is_understood() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut unbound = Unbound::start(dir.path());
        until("unbound answers", || {
            assert!(unbound.0.try_wait().unwrap().is_none(), "unbound has ended");
            TcpStream::connect((FIRST, 53)).is_ok()
        });
        let scene = scene(&[FIRST], |_| {});
        assert_eq!(look_up("www.example"), (ResponseCode::NoError, vec!["192.0.2.1".to_owned()]));
        let gone = ask(ASKER, &question("gone.example", RecordType::A));
        assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
        assert!(gone.authorities.iter().any(|r| r.ttl <= 60 && matches!(r.data, RData::SOA(_))), "{gone:?}");
        assert_eq!(look_up("gone.example").0, ResponseCode::NXDomain);
        assert_eq!(scene.server.stats().hits, 1, "that it is not there is remembered");
        let none = ask(ASKER, &question("www.example", RecordType::AAAA));
        assert_eq!((gist(&none).0, none.answers.len()), (ResponseCode::NoError, 0));
        // What fits no datagram is fetched over TCP, and given cut until the client comes over TCP.
        let long = question("long.example", RecordType::TXT);
        let cut = ask(ASKER, &long);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ASKER, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from((GATEWAY, 53)).into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(&crate::dns::server::tcp::framed(&long.to_vec().unwrap())).unwrap();
        let whole = Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (LONG, false));
    });
}
