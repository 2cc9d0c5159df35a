//! Peers that begin and stall, that send and do not read, and that are many: they cost the node little, and the others
//! nothing.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use support::btp_peer::{BtpPeer, BtpReply, Frame, RESPONSE, next_frame, packet_of, upgrade};
use support::http::{Connection, request_bytes};
use support::hub::Hub;
use support::node::expect_balance;
use support::packet::{Prepare, Reply};
use support::raw_websocket::{RawWebSocket, UPGRADE};
use support::rule::{Answer, Rule};
use support::{PATIENCE, eventually};
use tungstenite::{Message, WebSocket};

/// Peers that begin and do not go on. One test, so all of its waiting happens at the same time.
#[test]
fn peers_that_stall_are_dropped_and_cost_nothing() {
    let hub = Hub::start();
    hub.node.add_account("silent", &json!({}));
    let begun = Instant::now();
    let address = hub.node.address();
    let within = |limit: u64, what: &str, connection: &mut Connection, from: Instant| {
        let left = Duration::from_secs(limit)
            .saturating_sub(from.elapsed())
            .max(Duration::from_millis(1));
        assert!(
            connection.is_closed_within(left),
            "{what}: open after {:?}",
            from.elapsed()
        );
    };

    // A BTP peer that is gone without a word answers no ping. It counts from its last frame.
    let mut silent = TcpStream::connect(address).expect("the node accepts");
    silent.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
    let (mut socket, _) = tungstenite::client(
        format!("ws://{address}/ilp/btp"),
        silent.try_clone().expect("a duplicate"),
    )
    .expect("the node upgrades");
    socket
        .send(Message::binary(Frame::auth(1, Some("silent"), "silent-btp").encode()))
        .expect("open");
    assert_eq!(next_frame(&mut socket), Some(Frame::new(RESPONSE, 1)));

    let mut without_token = RawWebSocket::open(&hub.node);
    let mut half_a_frame = RawWebSocket::open(&hub.node);
    half_a_frame.send(&[0x82, 0x90, 1, 2]);
    let mut stalled_body = hub.node.connection();
    let request = request_bytes(
        "POST",
        "/accounts/alice/ilp",
        &[("Authorization", "Bearer alice-http")],
        &Prepare::new("test.hub.bob", 1).encode(),
    );
    stalled_body.send(&request[..request.len() - 1]).expect("open");

    // Half a request, then the end, or a reset.
    let mut ended = hub.node.connection();
    ended.send(&request[..50]).expect("open");
    ended.end_sending();
    within(5, "half a head, then the end", &mut ended, Instant::now());
    let mut ended = hub.node.connection();
    ended.send(&request[..request.len() - 1]).expect("open");
    ended.end_sending();
    within(5, "half a body, then the end", &mut ended, Instant::now());
    for cut in [0, 50, request.len() - 1, request.len()] {
        let stream = TcpStream::connect(address).expect("the node accepts");
        (&stream).write_all(&request[..cut]).expect("open");
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
    }

    // Heads at a byte per second, several at once, while others are served.
    let slow_from = Instant::now();
    let mut slow: Vec<Connection> = (0..8).map(|_| hub.node.connection()).collect();
    for byte in request.iter().take(12) {
        for connection in &mut slow {
            // Closed before the twelfth byte is what should happen.
            let _ = connection.send(&[*byte]);
        }
        hub.good_packet_passes("a byte of slow senders");
        std::thread::sleep(Duration::from_secs(1));
    }
    for connection in &mut slow {
        within(13, "a head at a byte per second", connection, slow_from);
    }
    within(14, "no token in 10 s", &mut without_token.0, begun);
    within(14, "half a frame instead of a token", &mut half_a_frame.0, begun);
    within(14, "a body that does not come", &mut stalled_body, begun);

    // 45 s after its last frame the silent peer is taken for dead, and packets to it are refused at once.
    let prepare = Prepare::new("test.hub.silent", 1).expires_in(Duration::from_millis(2100));
    assert_eq!(
        hub.alice.pay(&prepare).code(),
        "R00",
        "until then its packets wait for it"
    );
    silent
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a limit is not zero");
    let mut pings = Vec::new();
    silent.read_to_end(&mut pings).expect("the node closes");
    let took = begun.elapsed();
    assert!(
        (Duration::from_secs(40)..Duration::from_secs(55)).contains(&took),
        "dropped after {took:?}"
    );
    assert!(first_bytes(&pings).contains(&0x89), "it was pinged first");
    eventually("the link is down", || {
        (hub.alice.pay(&Prepare::new("test.hub.silent", 1)).code() == "T01").then_some(())
    });
    hub.good_packet_passes("stalling");
    hub.node.api().audit();
}

/// The first byte of each whole frame of a server, whose frames here are shorter than 64 KiB.
fn first_bytes(mut bytes: &[u8]) -> Vec<u8> {
    let mut first = Vec::new();
    while let [opcode, length, rest @ ..] = bytes {
        let (length, rest) = match (length, rest) {
            (126, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
            (length, rest) => (usize::from(*length), rest),
        };
        first.push(*opcode);
        bytes = rest.get(length..).unwrap_or_default();
    }
    first
}

/// How much memory one of the peers below may cost, whatever it sends.
const GROWTH_KIB_MAX: u64 = 32 * 1024;

/// Runs an attack; the node's memory must hardly notice, and its other peers not at all.
fn costs_little(what: &str, attack: impl FnOnce(&Hub)) {
    let hub = Hub::start();
    let before = resident_kib(hub.node.pid());
    attack(&hub);
    hub.good_packet_passes(what);
    let grown = resident_kib(hub.node.pid()).saturating_sub(before);
    println!("{what}: the node grew by {grown} KiB");
    assert!(grown < GROWTH_KIB_MAX, "{what}: the node grew by {grown} KiB");
}

/// Writes until the node reads no more, or 100 MB.
fn write_all_it_takes(address: SocketAddr, before: &[u8], repeated: &[u8]) -> usize {
    let mut stream = TcpStream::connect(address).expect("the node accepts");
    let limit = Some(Duration::from_secs(1));
    stream.set_write_timeout(limit).expect("a limit is not zero");
    stream.write_all(before).expect("open");
    let repeated = repeated.repeat(200);
    let mut written = 0;
    while written < 100_000_000 {
        match stream.write(&repeated) {
            Ok(count) => written += count,
            Err(_) => break,
        }
    }
    written
}

#[test]
fn a_client_that_does_not_read_its_answers_is_read_no_more() {
    for (target, body) in [
        ("/", Vec::new()),
        ("/accounts/alice/ilp", Prepare::new("test.hub.nobody", 1).encode()),
    ] {
        costs_little(&format!("requests to {target} without reading"), |hub| {
            let method = if body.is_empty() { "GET" } else { "POST" };
            let headers = [("Authorization", "Bearer alice-http")];
            let request = request_bytes(method, target, &headers, &body);
            let written = write_all_it_takes(hub.node.address(), b"", &request);
            assert!(
                written < 100_000_000,
                "the node stops reading from a client that does not read"
            );
        });
    }
}

#[test]
fn a_flood_of_pings_is_not_kept() {
    costs_little("pings without reading the pongs", |hub| {
        let upgrade = request_bytes("GET", "/ilp/btp", &UPGRADE, b"");
        let ping: Vec<u8> = [&[0x89, 0x80 | 125, 0, 0, 0, 0][..], &[b'p'; 125]].concat();
        write_all_it_takes(hub.node.address(), &upgrade, &ping);
    });
}

/// 120 MB of Prepares for a peer that does not read them.
#[test]
fn packets_for_a_peer_that_does_not_read_are_turned_away() {
    costs_little("packets for a deaf peer", |hub| {
        let _deaf = deaf_peer(hub);
        hub.node.add_account("mallory", &json!({}));
        let mallory = BtpPeer::connect(hub.node.address(), "mallory", Rule::always(Answer::Nothing));
        let waiting: Vec<_> = (0..4000)
            .map(|_| {
                let mut prepare = Prepare::new("test.hub.deaf", 1).expires_in(Duration::from_secs(4));
                prepare.data.resize(30_000, 0);
                mallory.start_prepare(&prepare)
            })
            .collect();
        let mut busy = 0;
        for reply in waiting {
            let reply = packet_of(&reply);
            assert!(["T03", "T01", "R00", "R02"].contains(&reply.code()), "{reply:?}");
            busy += usize::from(reply.code() == "T03");
        }
        println!("{busy} of 4000 were turned away at once");
        expect_balance(&hub.node.api(), "mallory", 0);
    });
}

/// A peer that reads nothing of itself, authenticated as the account `deaf`.
fn deaf_peer(hub: &Hub) -> WebSocket<TcpStream> {
    hub.node.add_account("deaf", &json!({}));
    let mut deaf = upgrade(hub.node.address(), "/ilp/btp");
    let auth = Frame::auth(1, Some("deaf"), "deaf-btp");
    deaf.send(Message::binary(auth.encode())).expect("open");
    assert_eq!(next_frame(&mut deaf), Some(Frame::new(RESPONSE, 1)));
    deaf
}

/// While 2 MiB wait for a next hop that does not take them, more is refused at once; then the link is one like any other.
#[test]
fn a_link_that_takes_no_packets_is_t03_until_it_takes_them_again() {
    // 60 MB: far more than what waits in the node and in the kernel's buffers of both sockets.
    const LARGE_MAX: usize = 2000;
    let hub = Hub::start();
    let mut deaf = deaf_peer(&hub);
    hub.node.add_account("carol", &json!({}));
    let carol = BtpPeer::connect(hub.node.address(), "carol", Rule::fulfill());
    let small = Prepare::new("test.hub.deaf", 1);
    let mut large = Prepare::new("test.hub.deaf", 1);
    large.data.resize(30_000, 0);
    let mut waiting = Vec::new();
    let refused = loop {
        assert!(
            waiting.len() < LARGE_MAX,
            "{LARGE_MAX} packets for a peer that reads none"
        );
        waiting.push(carol.start_prepare(&large));
        // No faster than the node deals with them.
        assert_eq!(carol.prepare(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
        if let Some(BtpReply::Packet(reply)) = waiting.iter().find_map(|reply| reply.try_recv().ok()) {
            break reply;
        }
    };
    let Reply::Reject { code, triggered_by, .. } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((code.as_str(), triggered_by.as_str()), ("T03", "test.hub"));
    assert_eq!(carol.prepare(&small).code(), "T03");
    hub.good_packet_passes("a link that takes no packets");

    // It reads again, and answers small ones.
    let listening = std::thread::spawn(move || {
        let mut large = 0;
        loop {
            let frame = next_frame(&mut deaf).expect("the node keeps the connection");
            let Some(prepare) = frame.entry("ilp").and_then(Prepare::decode) else {
                continue;
            };
            if prepare.data.len() == 32 {
                let answer = Frame::ilp(RESPONSE, frame.request_id, &prepare.fulfilled().encode());
                deaf.send(Message::binary(answer.encode())).expect("open");
                return (large, deaf);
            }
            large += 1;
        }
    });
    let reply = eventually("the link takes packets", || {
        Some(carol.prepare(&small)).filter(|reply| reply.code() != "T03")
    });
    assert!(reply.fulfills(&small), "{reply:?}");
    let (arrived, _deaf) = listening.join().expect("the peer was served");
    // One was looked at above. What was refused behind it was so before the last one passed.
    let refused = 1 + waiting.iter().filter(|reply| reply.try_recv().is_ok()).count();
    assert_eq!(arrived + refused, waiting.len(), "what was not refused has arrived");
    expect_balance(&hub.node.api(), "deaf", 1);
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("Linux says so");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("a number")
}

#[test]
fn ten_thousand_idle_connections_do_not_disturb() {
    const IDLE: usize = 10_000;
    raise_open_files_limit(IDLE as u64 + 2000);
    let hub = Hub::start();
    let median_of_packets = || {
        let mut times: Vec<Duration> = (0..300)
            .map(|_| {
                let begun = Instant::now();
                hub.good_packet_passes("idle connections");
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let alone = median_of_packets();
    let memory_before = resident_kib(hub.node.pid());
    let mut idle: Vec<Connection> = (0..IDLE)
        .map(|number| {
            let mut connection = hub.node.connection();
            // Half of them never say a word, the others are kept alive after a request.
            if number % 2 == 0 {
                assert_eq!(connection.request("GET", "/", &[], b"").expect("an answer").status, 200);
            }
            connection
        })
        .collect();
    let crowded = median_of_packets();
    let memory = resident_kib(hub.node.pid()).saturating_sub(memory_before);
    println!("median of a packet: {alone:?} alone, {crowded:?} with {IDLE} idle connections, {memory} KiB for them");
    // Not a measurement, which this machine may spoil: a node that looks at every idle connection would be far off.
    assert!(
        crowded < alone * 10 + Duration::from_millis(20),
        "{alone:?} alone, {crowded:?} in company"
    );

    for connection in idle.iter_mut().step_by(50) {
        let prepare = Prepare::new("test.hub.bob", 1);
        let answer = connection
            .post("/accounts/alice/ilp", "alice-http", &prepare)
            .expect("still open");
        assert!(answer.reply().fulfills(&prepare), "an idle connection still serves");
    }
    drop(idle);
    hub.good_packet_passes("ten thousand leave at once");
}

/// As many open files as the test needs, for this process and, by inheritance, for the node.
fn raise_open_files_limit(needed: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls read or write one rlimit, which lives on this stack.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        assert!(
            limit.rlim_max >= needed,
            "this test needs {needed} open files, the hard limit is {}",
            limit.rlim_max
        );
        limit.rlim_cur = limit.rlim_cur.max(needed);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}
