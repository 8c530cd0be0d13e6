//! Upstreams: good ones, bad ones, and who pays for them.

use super::*;

#[test]
fn others_are_asked_once_and_remembered() {
    alone(|| {
        let upstream = honest(FIRST, [192, 0, 2, 1]);
        let scene = scene(&[FIRST], |_| {});
        let mut log = scene.server.follow();
        let expected = (ResponseCode::NoError, vec!["192.0.2.1".to_owned()]);
        assert_eq!(look_up("www.example"), expected);
        assert_eq!(look_up("WWW.example"), expected);
        assert_eq!(upstream.count(), 1);
        let stats = scene.server.stats();
        assert_eq!((stats.forwarded, stats.hits, stats.queries, stats.cached), (1, 1, 1, 1));
        for origin in [Origin::Upstream((FIRST, 53).into()), Origin::Cache] {
            let line = log.blocking_recv().unwrap();
            assert_eq!((line.origin, line.rcode, line.kind), (origin, 0, 1));
            assert_eq!((line.name.as_str(), line.source), ("www.example", ASKER.into()));
            assert_eq!(line.asker, EndpointId::new(1));
        }
        // With other bits it is another question; they go through.
        let mut signed = question("www.example", RecordType::A);
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true).set_max_payload(1232);
        signed.set_edns(edns).metadata.checking_disabled = true;
        assert!(ask(ASKER, &signed).edns.is_some_and(|edns| edns.flags().dnssec_ok));
        let asked = upstream.asked.lock().unwrap();
        let bits: Vec<(bool, bool)> = asked
            .iter()
            .map(|(_, m)| (m.edns.as_ref().unwrap().flags().dnssec_ok, m.metadata.checking_disabled))
            .collect();
        assert_eq!(bits, [(false, false), (true, true)]);
        drop(asked);
        scene.server.flush();
        assert_eq!(look_up("www.example"), expected);
        assert_eq!(upstream.count(), 3);
    });
}

/// What the first upstream does. The answer comes all the same: from it, over TCP, or from the second.
#[test]
fn a_bad_upstream_is_survived() {
    type Behaviour = fn(&Message, &mut Asked<'_>);
    fn good(query: &Message) -> Message {
        reply_to(query, 300, [192, 0, 2, 1])
    }
    let table: [(&str, Behaviour, &str); 11] = [
        ("says nothing", |_, _| {}, "192.0.2.2"),
        (
            "fails",
            |q, asked| {
                let mut bad = Message::response(q.metadata.id, OpCode::Query);
                bad.add_query(q.queries[0].clone()).metadata.response_code = ResponseCode::ServFail;
                asked.send(&bad.to_vec().unwrap());
            },
            "192.0.2.2",
        ),
        (
            "refuses without repeating the question",
            |q, asked| {
                let mut bad = Message::response(q.metadata.id, OpCode::Query);
                bad.metadata.response_code = ResponseCode::Refused;
                asked.send(&bad.to_vec().unwrap());
            },
            "192.0.2.2",
        ),
        (
            "understands no EDNS",
            |q, asked| {
                let mut reply = good(q);
                reply.edns = None;
                if q.edns.is_some() {
                    reply.answers.clear();
                    reply.metadata.response_code = ResponseCode::FormErr;
                }
                asked.send(&reply.to_vec().unwrap());
            },
            "192.0.2.1",
        ),
        (
            "another ID comes first",
            |q, asked| {
                let mut forged = reply_to(q, 300, [6, 6, 6, 6]);
                forged.metadata.id ^= 1;
                asked.send(&forged.to_vec().unwrap());
                asked.send(&good(q).to_vec().unwrap());
            },
            "192.0.2.1",
        ),
        (
            "another question comes first",
            |q, asked| {
                let mut forged = reply_to(q, 300, [6, 6, 6, 6]);
                let name = Name::from_ascii("bank.example.").unwrap();
                forged.queries[0].set_name(name.clone());
                forged.answers[0].name = name;
                asked.send(&forged.to_vec().unwrap());
                asked.send(&good(q).to_vec().unwrap());
            },
            "192.0.2.1",
        ),
        (
            "another port answers first",
            |q, asked| {
                if let Asked::Udp(_, peer) = asked {
                    let other = UdpSocket::bind((FIRST, 0)).unwrap();
                    other.send_to(&reply_to(q, 300, [6, 6, 6, 6]).to_vec().unwrap(), *peer).unwrap();
                }
                asked.send(&good(q).to_vec().unwrap());
            },
            "192.0.2.1",
        ),
        (
            "many guess the ID",
            |q, asked| {
                if !asked.is_tcp() {
                    for guess in 1..20 {
                        let mut forged = reply_to(q, 300, [6, 6, 6, 6]);
                        forged.metadata.id = forged.metadata.id.wrapping_add(guess);
                        asked.send(&forged.to_vec().unwrap());
                    }
                    return;
                }
                asked.send(&good(q).to_vec().unwrap());
            },
            "192.0.2.1",
        ),
        (
            "is cut, and whole over TCP",
            |q, asked| {
                let mut reply = good(q);
                if !asked.is_tcp() {
                    reply.answers.clear();
                    reply.metadata.truncation = true;
                }
                asked.send(&reply.to_vec().unwrap());
            },
            "192.0.2.1",
        ),
        (
            "is cut in half on the way",
            |q, asked| {
                let whole = good(q).to_vec().unwrap();
                let length = if asked.is_tcp() { whole.len() } else { whole.len() / 2 };
                asked.send(&whole[..length]);
            },
            "192.0.2.1",
        ),
        (
            "is cut, and says nothing over TCP",
            |q, asked| {
                if !asked.is_tcp() {
                    let mut reply = good(q);
                    reply.metadata.truncation = true;
                    asked.send(&reply.to_vec().unwrap());
                }
            },
            "192.0.2.2",
        ),
    ];
    for (what, behaviour, expected) in table {
        alone(|| {
            let first = Upstream::start(FIRST, behaviour);
            let _second = honest(SECOND, [192, 0, 2, 2]);
            let _scene = scene(&[FIRST, SECOND], |_| {});
            let began = Instant::now();
            assert_eq!(
                look_up("www.example"),
                (ResponseCode::NoError, vec![expected.to_owned()]),
                "the first one: {what}"
            );
            assert!(began.elapsed() < Duration::from_secs(5), "{what}: clients have given up");
            assert!(first.count() > 0, "{what}");
        });
    }
}

#[test]
fn an_upstream_that_is_not_there_is_passed_over_at_once() {
    alone(|| {
        let _second = honest(SECOND, [192, 0, 2, 2]);
        let scene = scene(&[FIRST, SECOND], |options| options.next_after = Duration::from_secs(4));
        let began = Instant::now();
        assert_eq!(look_up("www.example"), (ResponseCode::NoError, vec!["192.0.2.2".to_owned()]));
        assert!(began.elapsed() < Duration::from_secs(3));
        assert_eq!(scene.server.stats().silent, 1);
    });
}

#[test]
fn failure_is_said_before_clients_give_up() {
    alone(|| {
        let silent = Upstream::start(FIRST, |_, _| {});
        let scene = scene(&[FIRST], |_| {});
        let began = Instant::now();
        assert_eq!(look_up("www.example"), (ResponseCode::ServFail, vec![]));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(silent.count(), 3, "asked again, as datagrams are lost");
        assert_eq!(look_up("www.example"), (ResponseCode::ServFail, vec![]), "remembered for a moment");
        assert_eq!(silent.count(), 3);
        assert_eq!(scene.server.stats().failed, 2);
    });
}

#[test]
fn equal_questions_are_asked_once_and_ids_and_ports_are_by_chance() {
    alone(|| {
        let open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&open);
        let upstream = Upstream::start(FIRST, move |query, asked| {
            while !opened.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            asked.send(&reply_to(query, 300, [192, 0, 2, 1]).to_vec().unwrap());
        });
        let scene = scene(&[FIRST], |options| options.next_after = PATIENCE);
        let clients: Vec<UdpSocket> = (0..50).map(|_| client(ASKER)).collect();
        for client in &clients {
            client.send(&question("www.example", RecordType::A).to_vec().unwrap()).unwrap();
        }
        until("all of them wait", || scene.server.stats().waiting == 50);
        open.store(true, Ordering::Relaxed);
        for client in &clients {
            assert_eq!(gist(&receive(client)).1, ["192.0.2.1"]);
        }
        assert_eq!((upstream.count(), scene.server.stats().joined), (1, 49));
        assert_eq!(scene.server.stats().waiting, 0);
        for number in 0..40 {
            look_up(&format!("n{number}.example"));
        }
        let asked = upstream.asked.lock().unwrap();
        let ids: BTreeSet<u16> = asked.iter().map(|(_, query)| query.metadata.id).collect();
        let ports: BTreeSet<u16> = asked.iter().map(|(port, _)| *port).collect();
        // 41 of 65,536 and of 28,232: one pair of each kind may be equal by chance, three are one in a million.
        assert!(ids.len() >= 39 && ports.len() >= 39, "{} {}", ids.len(), ports.len());
    });
}

#[test]
fn a_flood_starves_nobody_else() {
    alone(|| {
        let _upstream = Upstream::start(FIRST, |query, asked| {
            if query.queries[0].name().to_ascii().starts_with("good") {
                asked.send(&reply_to(query, 300, [192, 0, 2, 1]).to_vec().unwrap());
            }
        });
        let scene = scene(&[FIRST], |options| options.forwards = 64);
        let flood = client(ASKER);
        for number in 0..200 {
            let query = question(&format!("flood{number}.example"), RecordType::A);
            flood.send(&query.to_vec().unwrap()).unwrap();
        }
        until("half of all is taken", || scene.server.stats().waiting == 32);
        until("the rest is refused", || scene.server.stats().shed == 168);
        for _ in 0..168 {
            assert_eq!(receive(&flood).metadata.response_code, ResponseCode::ServFail);
        }
        let answer = ask(OTHER, &question("good.example", RecordType::A));
        assert_eq!(gist(&answer), (ResponseCode::NoError, vec!["192.0.2.1".to_owned()]));
        assert!(scene.server.stats().waiting >= 32, "while the flood waited");
    });
}

#[test]
fn what_has_expired_is_given_when_nobody_answers() {
    alone(|| {
        let silent = Arc::new(AtomicBool::new(false));
        let silence = Arc::clone(&silent);
        let _upstream = Upstream::start(FIRST, move |query, asked| {
            if !silence.load(Ordering::Relaxed) {
                asked.send(&reply_to(query, 1, [192, 0, 2, 1]).to_vec().unwrap());
            }
        });
        let scene = scene(&[FIRST], |_| {});
        let expected = (ResponseCode::NoError, vec!["192.0.2.1".to_owned()]);
        assert_eq!(look_up("www.example"), expected);
        silent.store(true, Ordering::Relaxed);
        until("it has expired", || {
            let answer = ask(ASKER, &question("www.example", RecordType::A));
            assert_eq!(gist(&answer), expected);
            answer.answers[0].ttl == 30
        });
        assert!(scene.server.stats().stale >= 1);
    });
}

#[test]
fn upstreams_are_those_of_the_file_as_it_is_now() {
    alone(|| {
        let scene = scene(&[FIRST], |_| {});
        let dir = scene.dir.path();
        let path = dir.join("resolv.conf");
        let are = |expected: &[Ipv4Addr]| {
            let expected: Vec<SocketAddr> = expected.iter().map(|a| (*a, 53).into()).collect();
            until(&format!("upstreams are {expected:?}"), || scene.server.upstreams() == expected);
        };
        are(&[FIRST]);
        std::fs::write(&path, conf(&[SECOND])).unwrap();
        are(&[SECOND]);
        std::fs::write(dir.join("new"), conf(&[FIRST, SECOND])).unwrap();
        std::fs::rename(dir.join("new"), &path).unwrap();
        are(&[FIRST, SECOND]);
        // As systemd-resolved has it: a link, whose target comes later and is replaced.
        let run = dir.join("run/resolve");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("run/resolve/stub.conf", &path).unwrap();
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("stub.conf"), conf(&[SECOND])).unwrap();
        are(&[SECOND]);
        std::fs::write(run.join("new"), conf(&[FIRST])).unwrap();
        std::fs::rename(run.join("new"), run.join("stub.conf")).unwrap();
        are(&[FIRST]);
        // The link is turned elsewhere.
        std::fs::write(dir.join("other"), conf(&[SECOND, FIRST])).unwrap();
        std::os::unix::fs::symlink("other", dir.join("link")).unwrap();
        std::fs::rename(dir.join("link"), &path).unwrap();
        are(&[SECOND, FIRST]);
        // Asking itself leads nowhere.
        std::fs::write(&path, conf(&[GATEWAY, SECOND])).unwrap();
        are(&[SECOND]);
        // One that somebody is writing changes nothing.
        std::fs::write(&path, "").unwrap();
        std::fs::write(&path, format!("# {}", conf(&[FIRST]))).unwrap();
        std::fs::write(&path, conf(&[FIRST])).unwrap();
        are(&[FIRST]);
    });
}

#[test]
fn mixed_letters_have_to_come_back() {
    alone(|| {
        let first = Upstream::start(FIRST, |query, asked| {
            let name = query.queries[0].name().to_ascii();
            let mut reply = reply_to(query, 300, [192, 0, 2, 1]);
            if !asked.is_tcp() && name != name.to_lowercase() {
                reply.queries[0].set_name(Name::from_ascii(name.to_lowercase()).unwrap());
            }
            asked.send(&reply.to_vec().unwrap());
        });
        let scene = scene(&[FIRST], |options| {
            options.mix_case = true;
            options.patience = Duration::from_millis(500);
        });
        let name = "a-name-of-very-many-letters.example";
        assert_eq!(look_up(name), (ResponseCode::ServFail, vec![]));
        assert!(scene.server.stats().foreign >= 1);
        let asked = first.asked.lock().unwrap()[0].1.queries[0].name().to_ascii();
        assert!(asked != asked.to_lowercase() && asked.to_lowercase().starts_with(name), "{asked}");
    });
}
