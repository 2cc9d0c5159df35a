//! What the operator decides of a settlement: cancel, confirm, retry, with force and without.

use super::*;

#[test]
fn what_an_engine_refuses_waits_for_the_operator() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    world.engines.set(ENGINE, Mode::Refuses(409));
    let id = world.settle(&alice, 90);
    world.pass(3 * HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 1);
    let failed = world.get(&alice, id);
    assert_eq!((failed.state.as_str(), failed.sent_to.clone()), ("failed", None));
    let error = failed.last_error.as_deref().unwrap();
    assert!(error.contains("409") && error.contains("as the test says"), "{error}");
    assert_eq!(world.control().next_attempt(&failed), None);
    // Over a restart, too.
    let world = world.restart();
    world.pass(HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 0);
    // Once more in vain, and once more.
    assert_eq!(
        world
            .control()
            .retry_settlement(&alice, id, false)
            .unwrap()
            .state
            .as_str(),
        "pending"
    );
    world.pass(HOUR_MS);
    assert_eq!(world.state(&alice, id), "failed");
    world.engines.set(ENGINE, Mode::Up);
    world.control().retry_settlement(&alice, id, false).unwrap();
    world.pass(1);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
    let ended = Err(ControlError::SettlementEnded {
        state: SettlementState::Confirmed,
    });
    assert_eq!(world.control().retry_settlement(&alice, id, false), ended);
    assert_eq!(world.control().cancel_settlement(alice.id, id, true), ended);
    assert_eq!(
        world.control().cancel_settlement(alice.id, Uuid::nil(), true),
        Err(ControlError::SettlementNotFound)
    );
}

#[test]
fn what_no_engine_has_can_be_cancelled() {
    for mode in [Mode::Down, Mode::Refuses(400)] {
        let world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        world.pass(1);
        world.engines.set(ENGINE, mode);
        let id = world.settle(&alice, 90);
        world.pass(HOUR_MS);
        assert_eq!(world.balance(&alice), -90);
        let refused = world.control().delete_account("alice", true);
        assert_eq!(refused, Err(ControlError::SettlementPending));
        world.node.shards.take_published();
        let cancelled = world.control().cancel_settlement(alice.id, id, false).unwrap();
        assert_eq!(cancelled.state.as_str(), "cancelled");
        assert_eq!(world.balance(&alice), 0);
        assert_eq!(world.node.shards.take_published(), "settled:0+90");
        world.engines.set(ENGINE, Mode::Up);
        world.pass(HOUR_MS);
        assert_eq!(world.engines.paid(), [0_u64; 0], "{mode:?}");
    }
}

/// An outcome that nobody knows is not undone by later tries that never arrive, or are refused.
#[test]
fn what_an_engine_may_have_is_cancelled_by_force_only() {
    for (later, state) in [
        (Mode::Broken, "sent"),
        (Mode::Down, "sent"),
        (Mode::Refuses(404), "failed"),
    ] {
        let world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        world.pass(1);
        world.engines.set(ENGINE, Mode::AnswerLost);
        let id = world.settle(&alice, 90);
        world.pass(1);
        world.engines.set(ENGINE, later);
        world.pass(HOUR_MS);
        let world = world.restart();
        assert_eq!(world.state(&alice, id), state, "{later:?}");
        assert_eq!(
            world.control().cancel_settlement(alice.id, id, false),
            Err(ControlError::SettlementSent),
            "{later:?}"
        );
        // The operator says it was not paid. Here it was, and so the money is there twice: it is the operator's word.
        world.control().cancel_settlement(alice.id, id, true).unwrap();
        assert_eq!((world.balance(&alice), world.state(&alice, id)), (0, "cancelled"));
        world.pass(HOUR_MS);
        assert!(world.control().audit().unwrap().adds_up());
    }
}

/// The operator has looked into the ledger before the engine has got to it.
#[test]
fn what_an_engine_is_asked_for_is_not_cancelled_meanwhile() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    let id = world.settle(&alice, 90);
    let job = world.take_due().unwrap();
    let before = settlement_of(&job);
    let sent = Settlement {
        state: SettlementState::Sent,
        sent_to: Some(SentTo {
            engine: ENGINE.into(),
            since_ms: world.control().settling.now().wall.as_millis(),
        }),
        attempts: 1,
        ..before.clone()
    };
    let control = world.control();
    control
        .bookkeeper
        .apply(vec![Mutation::UpdateSettlement(sent.clone())])
        .unwrap();
    assert_eq!(
        control.cancel_settlement(alice.id, id, true),
        Err(ControlError::SettlementCalled)
    );
    control.settling.change(|queue, now| {
        queue.end(now.monotonic_ms, &job, CallEnd::Failed);
        queue.settled(now.monotonic_ms, &before, sent);
    });
    control.cancel_settlement(alice.id, id, true).unwrap();
    world.pass(HOUR_MS);
    assert_eq!((world.balance(&alice), world.engines.paid()), (0, vec![]));
}

/// The operator may have it tried again when its refusal is in the book and the thread that noted it has not said so yet.
#[test]
fn a_retry_that_meets_the_end_of_a_call_is_not_lost() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    let id = world.settle(&alice, 90);
    let job = world.take_due().unwrap();
    let before = settlement_of(&job);
    let refused = Settlement {
        state: SettlementState::Failed,
        attempts: 1,
        last_error: Some("refused".into()),
        ..before.clone()
    };
    let control = world.control();
    control
        .bookkeeper
        .apply(vec![Mutation::UpdateSettlement(refused.clone())])
        .unwrap();
    control.retry_settlement(&alice, id, false).unwrap();
    control.settling.change(|queue, now| {
        queue.end(now.monotonic_ms, &job, CallEnd::Answered);
        queue.settled(now.monotonic_ms, &before, refused);
    });
    world.pass(1_000);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
}

/// The operator has looked: it was not paid. It is as if it had never been tried, and goes to whoever settles now.
#[test]
fn with_force_it_is_tried_again_under_the_same_key() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    world.engines.set(ENGINE, Mode::Broken);
    let id = world.settle(&alice, 90);
    world.pass(26 * HOUR_MS);
    assert_eq!(world.state(&alice, id), "failed");
    world.set_engine("alice", OTHER);
    world.pass(1);
    assert_eq!(world.engines.paid(), [0_u64; 0]);
    let again = world
        .control()
        .retry_settlement(&world.account("alice"), id, true)
        .unwrap();
    assert_eq!((again.state.as_str(), again.sent_to), ("pending", None));
    world.pass(1);
    let confirmed = world.get(&alice, id);
    assert_eq!(confirmed.state.as_str(), "confirmed");
    assert_eq!(confirmed.sent_to.map(|sent_to| sent_to.engine), Some(OTHER.into()));
    assert_eq!(world.engines.paid(), [90]);
}
