//! What broken, careless and hostile peers put into WebSocket and BTP frames, and what they get for it. After each of
//! them a good packet passes. RFC 6455 section 7.4, RFC 23.

mod support;

use std::time::Duration;

use serde_json::json;
use support::PATIENCE;
use support::btp_peer::{BtpPeer, ERROR, Frame, MESSAGE, RESPONSE, next_frame, upgrade};
use support::hub::Hub;
use support::node::expect_balance;
use support::packet::Prepare;
use support::raw_websocket::RawWebSocket;
use support::rule::Rule;
use tungstenite::Message;

#[test]
fn violations_of_websocket_close_the_connection_with_their_code() {
    let hub = Hub::start();
    hub.node.add_account("mallory", &json!({}));
    let good = Frame::ilp(MESSAGE, 2, &Prepare::new("test.hub.bob", 1).encode()).encode();
    let unmasked = [&[0x82, 126, (good.len() >> 8) as u8, good.len() as u8], &good[..]].concat();
    let masked_head = |first: u8, length: &[u8]| [&[first], length, &[1, 2, 3, 4]].concat();
    let table: [(&str, Vec<u8>, u16); 11] = [
        ("not masked", unmasked, 1002),
        ("a reserved bit", masked_head(0xc2, &[0x81]), 1002),
        ("a reserved opcode", masked_head(0x83, &[0x81]), 1002),
        ("a reserved control opcode", masked_head(0x8b, &[0x80]), 1002),
        ("a ping of 126 bytes", masked_head(0x89, &[0x80 | 126, 0, 126]), 1002),
        ("a ping in fragments", masked_head(0x09, &[0x80]), 1002),
        ("a continuation of nothing", masked_head(0x80, &[0x80]), 1002),
        (
            "a length that is longer than needed",
            masked_head(0x82, &[0x80 | 126, 0, 5]),
            1002,
        ),
        (
            "a length with its highest bit set",
            masked_head(0x82, &[0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 1]),
            1002,
        ),
        (
            "a message of 2^40 bytes",
            masked_head(0x82, &[0x80 | 127, 0, 0, 1, 0, 0, 0, 0, 0]),
            1009,
        ),
        (
            "a message of 1 MiB",
            masked_head(0x82, &[0x80 | 127, 0, 0, 0, 0, 0, 16, 0, 0]),
            1009,
        ),
    ];
    for authenticated in [false, true] {
        for (what, bytes, expected) in &table {
            let mut socket = if authenticated {
                RawWebSocket::authenticated(&hub.node)
            } else {
                RawWebSocket::open(&hub.node)
            };
            socket.send(bytes);
            assert_eq!(socket.close_code(), *expected, "{what}, authenticated: {authenticated}");
            assert!(
                socket.0.is_closed_within(PATIENCE),
                "{what}, authenticated: {authenticated}"
            );
        }
    }
    // Many fragments that are together too long.
    let mut socket = RawWebSocket::authenticated(&hub.node);
    socket.send_frame(0x02, &[0; 60_000]);
    socket.send_frame(0x00, &[0; 60_000]);
    assert_eq!(socket.close_code(), 1009, "fragments of 120,000 bytes");
    // A new message inside an unfinished one.
    let mut socket = RawWebSocket::authenticated(&hub.node);
    socket.send_frame(0x02, b"unfinished");
    socket.send_frame(0x82, &good);
    assert_eq!(socket.close_code(), 1002, "a message inside another");
    hub.good_packet_passes("violations of WebSocket");
}

#[test]
fn text_and_unreadable_frames_are_ignored_up_to_a_limit() {
    let hub = Hub::start();
    hub.node.add_account("mallory", &json!({}));
    let mallory = BtpPeer::connect(hub.node.address(), "mallory", Rule::fulfill());
    let works = |what: &str| {
        let prepare = Prepare::new("test.hub.bob", 1);
        assert!(mallory.prepare(&prepare).fulfills(&prepare), "{what}");
    };
    let frame = Frame::ilp(MESSAGE, 9, &Prepare::new("test.hub.bob", 1).encode()).encode();
    for round in 0..50 {
        mallory.send(Message::text("{\"method\": \"hello\"}")).expect("open");
        mallory.send(Message::text("")).expect("open");
        if round % 10 == 0 {
            works("after text");
        }
    }
    let mut bad_length = frame.clone();
    bad_length[5] = 0x89;
    let mut bad_type = frame.clone();
    let unreadable: [&[u8]; 8] = [
        b"",
        b"\x06",
        b"\x06\0\0",
        &frame[..frame.len() - 1],
        &bad_length,
        b"GET / HTTP/1.1",
        &[0; 300],
        {
            bad_type[0] = 3; // PREPARE of BTP 1
            &bad_type
        },
    ];
    for bytes in unreadable {
        mallory.send(Message::binary(bytes.to_vec())).expect("open");
        works(&format!("after {bytes:02x?}"));
    }
    assert!(!mallory.is_closed());
    for _ in 0..10 {
        // The node may close before the last one is written.
        let _ = mallory.send(Message::binary(vec![0xff]));
    }
    mallory.expect_closed();
    hub.good_packet_passes("unreadable frames");
}

#[test]
fn a_btp_connection_begins_with_the_right_token_or_ends() {
    let hub = Hub::start();
    let prepare = Prepare::new("test.hub.bob", 1);
    let first_frames = [
        ("a wrong token", Frame::auth(5, Some("alice"), "guess")),
        ("a token of another kind", Frame::auth(5, Some("alice"), "alice-http")),
        ("no token", Frame::new(MESSAGE, 5).with("auth", 0, b"")),
        ("a packet", Frame::ilp(MESSAGE, 5, &prepare.encode())),
        ("a RESPONSE", Frame::new(RESPONSE, 5)),
    ];
    for (what, frame) in first_frames {
        let mut socket = upgrade(hub.node.address(), "/ilp/btp");
        socket.send(Message::binary(frame.encode())).expect("open");
        let answer = next_frame(&mut socket).unwrap_or_else(|| panic!("{what}: closed without an ERROR"));
        assert_eq!(
            (answer.kind, answer.request_id, answer.error_code.as_deref()),
            (ERROR, 5, Some("F00")),
            "{what}"
        );
        assert_eq!(next_frame(&mut socket), None, "{what}: and closed");
        std::thread::sleep(Duration::from_millis(250));
    }
    hub.good_packet_passes("wrong tokens");
    expect_balance(&hub.node.api(), "alice", -1);
}
