//! The instruments before the measurement: the peers of these tests understand each other, without a node.

mod support;

use std::time::Duration;

use serde_json::json;
use support::btp_peer::{BtpPeer, BtpReply, BtpServer, Dialect, Frame, MESSAGE, TRANSFER};
use support::http::{Connection, chunked, whole};
use support::http_peer::HttpPeer;
use support::packet::{Cursor, Prepare, Reply, put_octets, sha256, timestamp_ms, timestamp_text};
use support::rule::{Answer, Rule};

#[test]
fn packets_are_read_as_they_were_written() {
    // 2024-02-29 23:59:59.999 UTC.
    assert_eq!(timestamp_text(1_709_251_199_999), "20240229235959999");
    assert_eq!(timestamp_ms("20240229235959999"), Some(1_709_251_199_999));
    for length in [32, 100, 200, 300, 32_767] {
        let mut prepare = Prepare::new("test.hub.bob", 1000);
        prepare.data.resize(length, 7);
        prepare.later = vec![9; length % 3];
        let bytes = prepare.encode();
        assert_eq!(Prepare::decode(&bytes).as_ref(), Some(&prepare));
        assert_eq!(Prepare::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Prepare::decode(&[&bytes[..], &[0]].concat()), None);
        assert!(prepare.fulfilled().fulfills(&prepare));
        assert!(!prepare.fulfilled().fulfills(&Prepare::new("test.hub.bob", 1000)));
    }
    let reject = Reply::reject("F02", "test.hub", "no route", b"x");
    assert_eq!(Reply::decode(&reject.encode()), Some(reject));
    let mut octets = Vec::new();
    put_octets(&mut octets, &[7; 300]);
    assert_eq!(&octets[..3], [0x82, 1, 44]);
    assert_eq!(Cursor(&octets).octets(), Some(&[7; 300][..]));
}

/// A MESSAGE with one `ilp` entry, counted by hand from RFC 23.
#[test]
fn a_btp_frame_has_the_bytes_of_the_rfc() {
    let frame = Frame::ilp(MESSAGE, 0x0102_0304, &[0xaa]);
    assert_eq!(
        frame.encode(),
        [6, 1, 2, 3, 4, 9, 1, 1, 3, b'i', b'l', b'p', 0, 1, 0xaa]
    );
    assert_eq!(Frame::decode(&frame.encode()), Some(frame));
    let error = Frame::error(9, "F00");
    assert_eq!(Frame::decode(&error.encode()), Some(error));
}

#[test]
fn an_http_peer_follows_its_rule() {
    let peer = HttpPeer::start(Rule::new(|prepare| match prepare.amount {
        1 => Answer::reject("F99"),
        2 => Answer::Status(503),
        3 => Answer::Close,
        4 => Answer::Fulfill.after(Duration::from_millis(20)),
        _ => Answer::Fulfill,
    }));
    let mut connection = Connection::open(peer.address);
    let send = |connection: &mut Connection, amount| {
        let prepare = Prepare::new("test.bob", amount);
        let answer = connection.post("/ilp", "secret", &prepare).ok()?;
        if answer.status != 200 {
            return Some(answer.status.to_string());
        }
        let reply = answer.reply();
        Some(if reply.fulfills(&prepare) {
            "paid".to_owned()
        } else {
            reply.code().to_owned()
        })
    };
    assert_eq!(send(&mut connection, 10).as_deref(), Some("paid"));
    assert_eq!(send(&mut connection, 4).as_deref(), Some("paid"));
    assert_eq!(send(&mut connection, 1).as_deref(), Some("F99"));
    assert_eq!(send(&mut connection, 2).as_deref(), Some("503"));
    assert_eq!(send(&mut connection, 3), None);
    assert!(connection.is_closed_within(Duration::from_secs(1)));
    assert_eq!((peer.rule.fulfilled(), peer.connections()), (14, 1));
    assert_eq!(peer.authorization().as_deref(), Some("Bearer secret"));
    assert_eq!(peer.rule.received().len(), 5);
}

#[test]
fn btp_peers_understand_each_other() {
    let server = BtpServer::start("secret", Rule::fulfill());
    let connect = |token| {
        let rule = Rule::always(Answer::reject("T99"));
        BtpPeer::connect_as(server.address, "/btp", Some("alice"), token, rule, Dialect::Conformant)
    };
    assert_eq!(connect("guess").err().as_deref(), Some("F00"));
    let client = connect("secret").expect("the token is right");
    let prepare = Prepare::new("test.bob", 5);
    assert!(client.prepare(&prepare).fulfills(&prepare));
    assert_eq!(server.peer().prepare(&prepare).code(), "T99");
    assert_eq!(server.rule.received_one(), prepare);
    assert_eq!(server.logins().len(), 2);
    assert_eq!(server.logins()[1].username.as_deref(), Some("alice"));

    let address = server.address;
    drop(server);
    client.expect_closed();
    assert!(
        client
            .start_prepare(&prepare)
            .recv_timeout(Duration::from_secs(1))
            .is_err()
    );
    drop(BtpServer::start_at(
        address,
        "secret",
        Rule::fulfill(),
        Dialect::Conformant,
    ));
}

#[test]
fn small_tools_do_what_they_say() {
    assert_eq!(chunked(b"abcde", 3), b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(whole(&json!(-5)), -5);
    assert_eq!(whole(&json!("170141183460469231731687303715884105727")), i128::MAX);
    assert_eq!(sha256(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    assert_eq!(Frame::new(TRANSFER, 1).encode()[..5], [7, 0, 0, 0, 1]);
    assert_ne!(BtpReply::Empty, BtpReply::Error("F00".to_owned()));
}
