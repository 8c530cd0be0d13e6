//! What clients see: who may ask, over what, and what stays when listeners change.

use super::*;

#[test]
fn names_are_answered_over_every_transport() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let both: BTreeSet<IpAddr> = [GATEWAY.into(), Ipv6Addr::LOCALHOST.into()].into();
        assert!(scene.server.set_listeners(&both).is_empty());
        let query = question("WEB.mynet", RecordType::A);
        let expected = (ResponseCode::NoError, vec![ASKER.to_string()]);
        assert_eq!(gist(&ask(ASKER, &query)), expected);
        let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((Ipv6Addr::LOCALHOST, 53)).unwrap();
        socket.send(&query.to_vec().unwrap()).unwrap();
        assert_eq!(gist(&receive(&socket)), expected);
        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, 53)).unwrap();
        stream.write_all(&crate::dns::server::tcp::framed(&query.to_vec().unwrap())).unwrap();
        assert_eq!(gist(&Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap()), expected);
        let stats = scene.server.stats();
        assert_eq!((stats.udp, stats.tcp, stats.names), (2, 1, 3));
    });
}

#[test]
fn strangers_are_refused_and_counted() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let answer = ask(Ipv4Addr::new(127, 0, 9, 9), &question("web", RecordType::A));
        assert_eq!(gist(&answer), (ResponseCode::Refused, vec![]));
        assert_eq!(scene.server.stats().strangers, 1);
    });
}

#[test]
fn sockets_of_addresses_that_stay_are_not_touched() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let query = question("web", RecordType::A).to_vec().unwrap();
        let connect = |address: Ipv4Addr| {
            let stream = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            stream.bind(&SocketAddr::from((ASKER, 0)).into()).unwrap();
            stream.connect(&SocketAddr::from((address, 53)).into()).unwrap();
            TcpStream::from(stream)
        };
        let mut stays = connect(GATEWAY);
        let speak = |stream: &mut TcpStream| {
            stream.write_all(&crate::dns::server::tcp::framed(&query)).ok()?;
            read_framed(stream)
        };
        assert!(speak(&mut stays).is_some());
        let more = Ipv4Addr::new(127, 0, 1, 9);
        for _ in 0..20 {
            assert!(scene.server.set_listeners(&[GATEWAY.into(), more.into()].into()).is_empty());
            let mut goes = connect(more);
            assert!(speak(&mut goes).is_some());
            // Taken away and back at once: the address is free again as soon as the call returns.
            assert!(scene.server.set_listeners(&[GATEWAY.into()].into()).is_empty());
            assert!(speak(&mut goes).is_none(), "a connection ends with its listener");
        }
        assert!(speak(&mut stays).is_some(), "one that stays was closed");
        let held = UdpSocket::bind((more, 53)).unwrap();
        let failed = scene.server.set_listeners(&[GATEWAY.into(), more.into()].into());
        assert!(
            failed.len() == 1 && failed[0].to_string().contains("another program answers there"),
            "{failed:?}"
        );
        drop(held);
        assert!(scene.server.set_listeners(&[GATEWAY.into(), more.into()].into()).is_empty());
        // An address that is nowhere yet.
        let later: IpAddr = [192, 0, 2, 99].into();
        assert!(scene.server.set_listeners(&[GATEWAY.into(), later].into()).is_empty());
    });
}

#[test]
fn a_sandbox_without_programs_is_answered_inside() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let sandbox = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let endpoint = EndpointId::new(1).unwrap();
        use std::os::fd::AsFd as _;
        for _ in 0..3 {
            scene.server.listen_inside(endpoint, sandbox.as_fd()).unwrap();
        }
        let query = question("web", RecordType::A).to_vec().unwrap();
        let ask = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect((Ipv4Addr::new(127, 0, 0, 11), 53)).unwrap();
            socket.send(&query).unwrap();
            let mut buffer = [0; 512];
            socket.recv(&mut buffer).map(|length| gist(&Message::from_vec(&buffer[..length]).unwrap()))
        };
        let answer = ipamd_api::netns::in_netns(sandbox.as_fd(), ask).unwrap().unwrap();
        assert_eq!(answer, (ResponseCode::NoError, vec![ASKER.to_string()]));
        scene.server.leave_inside(endpoint);
        let error = ipamd_api::netns::in_netns(sandbox.as_fd(), ask).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_connection_carries_many_questions_and_a_slow_one_holds_up_no_other() {
    alone(|| {
        let held: Arc<Mutex<Option<Message>>> = Arc::default();
        let holds = Arc::clone(&held);
        let upstream = Upstream::start(FIRST, move |query, asked| {
            if query.queries[0].name().to_ascii().starts_with("slow") {
                *holds.lock().unwrap() = Some(query.clone());
            } else {
                if let Some(slow) = holds.lock().unwrap().take() {
                    // Too late for its own socket: the second attempt is answered.
                    drop(slow);
                }
                asked.send(&reply_to(query, 300, [192, 0, 2, 7]).to_vec().unwrap());
            }
        });
        let scene = scene(&[FIRST], |options| options.patience = Duration::from_millis(1_500));
        let mut stream = {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((ASKER, 0)).into()).unwrap();
            socket.connect(&SocketAddr::from((GATEWAY, 53)).into()).unwrap();
            TcpStream::from(socket)
        };
        let names = ["slow.example", "quick.example", "web", "web.mynet"];
        let questions = names.map(|name| question(name, RecordType::A));
        let written: Vec<u8> =
            questions.iter().flat_map(|q| crate::dns::server::tcp::framed(&q.to_vec().unwrap())).collect();
        stream.write_all(&written).unwrap();
        let mut order = Vec::new();
        for _ in names {
            let answer = Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap();
            order.push((answer.queries[0].name().to_ascii(), answer.metadata.response_code));
        }
        assert_eq!(order.last(), Some(&("slow.example.".to_owned(), ResponseCode::ServFail)), "{order:?}");
        assert!(order[..3].iter().all(|(_, rcode)| *rcode == ResponseCode::NoError), "{order:?}");
        // A question that is longer than any question ends the connection.
        stream.write_all(&[0xff, 0xff, 0, 0]).unwrap();
        assert_eq!(read_framed(&mut stream), None);
        until("the connection is forgotten", || scene.server.stats().connections == 0);
        assert!(upstream.count() >= 2);
    });
}

#[test]
fn a_client_has_only_so_many_connections() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let open: Vec<TcpStream> = (0..70).map(|_| TcpStream::connect((GATEWAY, 53)).unwrap()).collect();
        until("some are refused", || scene.server.stats().connections_refused == 6);
        assert_eq!(scene.server.stats().connections, 64);
        drop(open);
        until("all are forgotten", || scene.server.stats().connections == 0);
    });
}

#[test]
fn rubbish_changes_nothing() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let socket = client(ASKER);
        let good = question("web", RecordType::A).to_vec().unwrap();
        let mut sent = 0;
        for cut in 0..good.len() {
            socket.send(&good[..cut]).unwrap();
            sent += 1;
        }
        for seed in 0..500_u32 {
            let bytes: Vec<u8> =
                (0..seed % 97).map(|i| (seed.wrapping_mul(2_654_435_761) >> (i % 24)) as u8).collect();
            socket.send(&bytes).unwrap();
            sent += 1;
        }
        socket.send(&[0; 9_000]).unwrap();
        sent += 1;
        until("all of it is read", || scene.server.stats().udp == sent);
        assert_eq!(look_up("web"), (ResponseCode::NoError, vec![ASKER.to_string()]));
    });
}
