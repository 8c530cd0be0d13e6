//! As many questions as there may be.

use super::*;
use nix::sys::{
    resource::setrlimit,
    socket::{setsockopt, sockopt::RcvBufForce},
};

/// Questions that wait at one time, half of them of each of two askers: the most that 20,000 files allow.
const MANY: usize = 10_000;
const OF_OTHER: usize = 5_000;

/// Sockets that they are sent from.
const CLIENTS: usize = 20;

#[test]
fn ten_thousand_wait_at_one_time_and_all_are_answered() {
    alone(|| {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(most >= 20_000, "this test needs 20,000 files: ulimit -n is {most}");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let upstream = UdpSocket::bind((FIRST, 53)).unwrap();
        setsockopt(&upstream, RcvBufForce, &(64 << 20)).unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        let scene = scene(&[FIRST], |options| {
            options.forwards = 15_000;
            options.next_after = 4 * PATIENCE;
            options.patience = 4 * PATIENCE;
        });
        let others = CLIENTS * OF_OTHER / MANY;
        let clients: Vec<UdpSocket> =
            (0..CLIENTS).map(|number| client(if number < others { OTHER } else { ASKER })).collect();
        for client in &clients {
            setsockopt(client, RcvBufForce, &(16 << 20)).unwrap();
        }
        for number in 0..MANY {
            let query = question(&format!("n{number}.example"), RecordType::A);
            clients[number % CLIENTS].send(&query.to_vec().unwrap()).unwrap();
        }
        until("all of them wait", || scene.server.stats().waiting == MANY as u64);
        // Names of the network are answered all the same.
        assert_eq!(look_up("web").0, ResponseCode::NoError);
        let mut buffer = [0; 2048];
        for _ in 0..MANY {
            let (length, peer) = upstream.recv_from(&mut buffer).expect("a query is missing");
            // The question turned into an answer without records.
            buffer[2] |= 0x80;
            upstream.send_to(&buffer[..length], peer).unwrap();
        }
        for client in &clients {
            for _ in 0..MANY / CLIENTS {
                assert_eq!(receive(client).metadata.response_code, ResponseCode::NoError);
            }
        }
        let stats = scene.server.stats();
        assert_eq!((stats.waiting, stats.shed, stats.queries), (0, 0, MANY as u64));
    });
}
