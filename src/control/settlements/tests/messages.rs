//! What engines tell each other, both ways.

use super::*;

#[test]
fn messages_of_peers_reach_their_engine() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add("bob", AccountEdit::default());
    let ask = |account: &Account| {
        let (sender, answer) = channel();
        let respond = Box::new(move |answer| sender.send(answer).unwrap());
        world
            .control()
            .take_peer_message(account.id, b"hello".to_vec(), respond);
        answer
    };
    let code = |answer| match answer {
        PeerAnswer::Reject { code, .. } => Some(code),
        PeerAnswer::Fulfill { .. } => None,
    };
    assert_eq!(code(ask(&bob).recv().unwrap()), Some(ErrorCode::F02_UNREACHABLE));
    // More than wait are told to come back: nobody answers them.
    let waiting: Vec<_> = (0..70).map(|_| ask(&alice)).collect();
    assert_eq!(
        waiting
            .iter()
            .filter(|answer| answer.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected))
            .count(),
        6
    );
    std::thread::scope(|scope| {
        for _ in 0..crate::control::settlements::messages::THREADS {
            scope.spawn(|| world.control().hand_over_messages(&*world.engines));
        }
        for answer in &waiting[..64] {
            let data = b"re: hello".to_vec();
            assert_eq!(answer.recv(), Ok(PeerAnswer::Fulfill { data }));
        }
        for (mode, expected) in [
            (Mode::Refuses(404), ErrorCode::F00_BAD_REQUEST),
            (Mode::Broken, ErrorCode::T00_INTERNAL_ERROR),
            (Mode::Down, ErrorCode::T00_INTERNAL_ERROR),
        ] {
            world.engines.set(ENGINE, mode);
            assert_eq!(code(ask(&alice).recv().unwrap()), Some(expected), "{mode:?}");
        }
        world.control().settling.messages.stop();
    });
}

#[test]
fn messages_of_engines_reach_the_peer() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let send = |message: &[u8]| {
        let (sender, answer) = channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        world.control().send_engine_message(alice.id, message, done);
        answer.recv().unwrap()
    };
    assert_eq!(send(b"hello"), Err(MessageError::NoAnswer));
    world.node.shards.set_neighbour(|_, prepare, done| {
        let prepare = Prepare::parse(prepare).expect("a Prepare");
        assert_eq!((prepare.amount(), prepare.destination()), (0, SETTLE_DESTINATION));
        let mut reply = Vec::new();
        match prepare.data() {
            b"refuse" => RejectBuilder {
                code: ErrorCode::F00_BAD_REQUEST,
                triggered_by: "peer.settle",
                message: "not that\n",
                data: b"",
            }
            .encode(&mut reply),
            data => encode_fulfill(&mut reply, &PEER_FULFILLMENT, &[b"re: ", data].concat()),
        }
        done(Some(reply));
    });
    assert_eq!(send(b"hello"), Ok(b"re: hello".to_vec()));
    assert_eq!(
        send(&[7; MESSAGE_BYTES_MAX - 4]).map(|reply| reply.len()),
        Ok(MESSAGE_BYTES_MAX)
    );
    let refused = send(b"refuse").unwrap_err().to_string();
    assert_eq!(refused, "the peer answered F00: not that");
}
