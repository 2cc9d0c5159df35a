//! What is called, how often, and what is known afterwards.

use super::*;

#[test]
fn an_engine_that_is_there_pays_once() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let id = world.settle(&alice, 90);
    world.node.shards.take_published();
    world.pass(100);
    let settlement = world.get(&alice, id);
    assert_eq!((settlement.state.as_str(), settlement.attempts), ("confirmed", 1));
    assert!(settlement.ended_ms.is_some() && settlement.last_error.is_none());
    assert_eq!(world.engines.paid(), [90]);
    assert_eq!(world.node.shards.take_published(), "settled:0+0");
    world.pass(HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 1);
}

#[test]
fn whatever_is_wrong_for_an_hour_one_settlement_is_paid() {
    for (mode, state) in [
        (Mode::Down, "pending"),
        (Mode::Broken, "sent"),
        (Mode::AnswerLost, "sent"),
    ] {
        for restarts in [false, true] {
            let mut world = World::new();
            let alice = world.add_with_engine("alice", ENGINE);
            world.pass(1);
            world.engines.set(ENGINE, mode);
            let id = world.settle(&alice, 90);
            for _ in 0..60 {
                world.pass(HOUR_MS / 60);
                if restarts {
                    world = world.restart();
                }
            }
            let settlement = world.get(&alice, id);
            assert_eq!(settlement.state.as_str(), state, "{mode:?}");
            assert_eq!(settlement.last_error.as_deref(), Some("as the test says"));
            // 1 s, 2 s, 4 s and so on, half of it at least.
            let calls = world.engines.take_calls().len();
            assert!((11..=16).contains(&calls), "{mode:?}, {restarts}: {calls} calls");
            assert_eq!(settlement.attempts as usize, calls);
            assert_eq!(world.balance(&alice), -90, "it does not come back by itself");
            let next = world.control().next_attempt(&settlement).expect("it goes on");
            let now = world.control().settling.now().wall;
            assert!(now <= next && next <= now.plus_ms(PAUSE_MS_MAX), "{mode:?}");
            world.engines.set(ENGINE, Mode::Up);
            world.pass(PAUSE_MS_MAX + 1);
            assert_eq!(world.state(&alice, id), "confirmed", "{mode:?}");
            assert_eq!(world.engines.paid(), [90], "{mode:?}");
            assert_eq!(world.control().next_attempt(&world.get(&alice, id)), None);
        }
    }
}

#[test]
fn many_that_wait_for_one_engine_go_out_when_it_is_back() {
    let world = World::new();
    let accounts: Vec<_> = (0..50)
        .map(|number| world.add_with_engine(&format!("account_{number}"), ENGINE))
        .collect();
    world.pass(1);
    world.engines.set(ENGINE, Mode::Broken);
    let ids: Vec<_> = accounts.iter().map(|account| world.settle(account, 7)).collect();
    world.pass(3 * HOUR_MS);
    world.engines.set(ENGINE, Mode::Up);
    // The first that is tried shows that it is back.
    world.pass(HOUR_MS / 4);
    assert_eq!(world.engines.paid(), [7; 50]);
    for (account, id) in accounts.iter().zip(ids) {
        assert_eq!(world.state(account, id), "confirmed");
    }
}

/// Accounts take turns, so that each has numbers of its own kind: what is kept of one must not depend on which.
#[test]
fn of_settlements_that_have_ended_the_last_thousand_are_kept() {
    let world = World::new();
    let accounts = ["alice", "bob"].map(|username| world.add_with_engine(username, ENGINE));
    world.pass(1);
    let kept = |account: &Account| world.control().settlements(account.id, None, usize::MAX).unwrap();
    const ROUNDS: usize = 4 * ENDED_KEPT;
    let ids: Vec<[Uuid; 2]> = (0..ROUNDS)
        .map(|_| {
            let made = accounts.each_ref().map(|account| world.settle(account, 1));
            while let Ok(job) = world.take_due() {
                world.control().make_call(&*world.engines, &job);
            }
            made
        })
        .collect();
    // One that stays open, however old it gets, and those that have ended before it.
    world.engines.set(ENGINE, Mode::Refuses(400));
    let open = world.settle(&accounts[0], 1);
    world.pass(1);
    for (number, account) in accounts.iter().enumerate() {
        let kept = kept(account);
        let newest_first: Vec<Uuid> = kept.iter().map(|one| Uuid::from_bytes(one.id)).collect();
        let mut expected: Vec<Uuid> = ids.iter().map(|made| made[number]).collect();
        expected.extend((number == 0).then_some(open));
        expected.reverse();
        // Forgetting comes once in 64 on average: not once in 2,000 does not happen.
        assert!(
            (ENDED_KEPT..ENDED_KEPT + 2_000).contains(&kept.len()),
            "{} of account {number}",
            kept.len()
        );
        assert_eq!(newest_first, expected[..kept.len()], "the oldest go");
        assert!(kept.iter().skip(1).all(|one| !one.state.is_open()));
    }
    assert_eq!(world.state(&accounts[0], open), "failed");
    assert_eq!(world.engines.paid().len(), 2 * ROUNDS);
    assert!(world.control().audit().unwrap().adds_up());
}

/// An engine keeps a key for a day after its last use. If it has paid and nobody has heard of that for so long, another
/// try would pay again.
#[test]
fn what_an_engine_may_have_forgotten_is_not_tried_again() {
    for later in [Mode::Down, Mode::Broken] {
        let mut world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        world.pass(1);
        world.engines.set(ENGINE, Mode::AnswerLost);
        let id = world.settle(&alice, 90);
        world.pass(1);
        world.engines.set(ENGINE, later);
        for _ in 0..26 {
            world.pass(HOUR_MS);
            world = world.restart();
        }
        world.engines.forget_keys();
        world.engines.set(ENGINE, Mode::Up);
        world.pass(2 * HOUR_MS);
        let failed = world.get(&alice, id);
        assert_eq!(failed.state.as_str(), "failed", "{later:?}");
        assert_eq!(failed.sent_to.as_ref().map(|sent_to| &*sent_to.engine), Some(ENGINE));
        let error = failed.last_error.as_deref().unwrap();
        assert!(error.contains("key") && error.contains("as the test says"), "{error}");
        assert_eq!(world.engines.paid(), [90], "{later:?}");
        // Nor does the operator have it paid again without saying so.
        let (control, node) = (world.control(), &world.node);
        assert_eq!(
            control.retry_settlement(&alice, id, false),
            Err(ControlError::SettlementKeyForgotten)
        );
        assert_eq!(
            control.cancel_settlement(alice.id, id, false),
            Err(ControlError::SettlementSent)
        );
        node.shards.take_published();
        let confirmed = control.confirm_settlement(alice.id, id).unwrap();
        assert!(confirmed.state.as_str() == "confirmed" && confirmed.ended_ms.is_some());
        assert_eq!(
            (world.balance(&alice), &*node.shards.take_published()),
            (-90, "settled:0+0")
        );
        // The next one is open to be made.
        let next = world.settle(&alice, 5);
        world.pass(1);
        assert_eq!(world.state(&alice, next), "confirmed");
        assert_eq!(world.engines.paid().iter().sum::<u64>(), 95);
    }
}

/// A clock that was wrong when it was sent says nothing of how long an engine has had it.
#[test]
fn with_a_clock_that_was_set_back_it_is_not_tried_again() {
    const TEN_YEARS_MS: i64 = 87_600 * HOUR_MS as i64;
    const MINUTE_MS: i64 = 60_000;
    for (set_ms, state) in [
        (TEN_YEARS_MS, "failed"),
        (-TEN_YEARS_MS, "failed"),
        (11 * MINUTE_MS, "failed"),
        (9 * MINUTE_MS, "confirmed"),
        (-9 * MINUTE_MS, "confirmed"),
    ] {
        for restarts in [false, true] {
            let mut world = World::new();
            let alice = world.add_with_engine("alice", ENGINE);
            world.pass(1);
            world.control().settling.set_ms.store(set_ms, Ordering::SeqCst);
            world.engines.set(ENGINE, Mode::AnswerLost);
            let id = world.settle(&alice, 90);
            world.pass(1);
            assert_eq!((world.state(&alice, id), world.engines.paid()), ("sent", vec![90]));
            world.control().settling.set_ms.store(0, Ordering::SeqCst);
            if restarts {
                world = world.restart();
            }
            if state == "failed" {
                // The engine is out for as long as it keeps keys.
                world.engines.set(ENGINE, Mode::Down);
                world.pass(26 * HOUR_MS);
                world.engines.forget_keys();
            }
            world.engines.set(ENGINE, Mode::Up);
            world.pass(HOUR_MS + 1);
            assert_eq!(world.engines.paid(), [90], "{set_ms}, {restarts}");
            assert_eq!(world.state(&alice, id), state, "{set_ms}, {restarts}");
        }
    }
}

/// The book is a copy, whose original has paid meanwhile what is not sent in the copy.
#[test]
fn what_the_original_of_a_copy_may_have_paid_is_not_paid_again() {
    for (hours_later, state) in [(1, "confirmed"), (26, "failed")] {
        let mut world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        let bob = world.add("bob", AccountEdit::default());
        world.pass(1);
        world.engines.set(ENGINE, Mode::Down);
        let now_ms = world.control().settling.now().wall.as_millis();
        let made = world.node.book.transfer_at(&transfer_of(alice.id, 90), now_ms).unwrap();
        let id = Uuid::from_bytes(made.id);
        let nobodys = world.settle(&bob, 5);
        // The original pays it under its key.
        let paid = ((ENGINE.to_owned(), id.to_string()), 90);
        world.engines.inner.lock().unwrap().paid.extend([paid]);
        world
            .control()
            .settling
            .ahead_ms
            .fetch_add(hours_later * HOUR_MS, Ordering::SeqCst);
        if hours_later > 24 {
            world.engines.forget_keys();
        }
        world.engines.set(ENGINE, Mode::Up);
        world = world.restart();
        world.control().take_over_copy().unwrap();
        world.control().begin_settling();
        world.pass(HOUR_MS);
        assert_eq!((world.state(&alice, id), world.engines.paid()), (state, vec![90]));
        assert_eq!(world.state(&bob, nobodys), "pending");
        if state == "failed" {
            let control = world.control();
            assert_eq!(
                control.cancel_settlement(alice.id, id, false),
                Err(ControlError::SettlementSent)
            );
            assert!(control.confirm_settlement(alice.id, id).is_ok());
        }
    }
}

/// What surely never arrived is tried for ever: no engine can have forgotten it.
#[test]
fn what_no_engine_can_have_is_tried_for_days() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    world.engines.set(ENGINE, Mode::Down);
    let id = world.settle(&alice, 90);
    world.pass(24 * 7 * HOUR_MS);
    assert_eq!(world.state(&alice, id), "pending");
    let refused = world.control().confirm_settlement(alice.id, id);
    assert_eq!(refused, Err(ControlError::SettlementNotSent));
    world.engines.set(ENGINE, Mode::Up);
    world.pass(PAUSE_MS_MAX);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
}

/// Another engine would pay it again.
#[test]
fn what_an_engine_may_have_goes_to_no_other() {
    for (mode, pinned) in [(Mode::AnswerLost, true), (Mode::Down, false)] {
        let world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        let uuid = Uuid::from_bytes(alice.uuid);
        world.pass(1);
        assert!(world.engines.knows(ENGINE, uuid));
        world.engines.set(ENGINE, mode);
        let id = world.settle(&alice, 90);
        world.pass(1);
        world.engines.take_calls();
        world.set_engine("alice", OTHER);
        world.pass(HOUR_MS);
        let world = world.restart();
        world.pass(HOUR_MS);
        assert!(world.engines.knows(OTHER, uuid));
        let calls = world.engines.take_calls();
        let target = if pinned { ENGINE } else { OTHER };
        assert!(
            !calls.is_empty() && calls.iter().all(|engine| engine == target),
            "{calls:?}"
        );
        assert_eq!(world.state(&alice, id), if pinned { "sent" } else { "confirmed" });
        // Not before the settlement is over does the first engine hear that the account has left.
        assert!(world.engines.knows(ENGINE, uuid));
        world.engines.set(ENGINE, Mode::Up);
        world.pass(2 * HOUR_MS);
        assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
        assert!(!world.engines.knows(ENGINE, uuid));
    }
}

#[test]
fn nothing_is_sent_that_is_not_durable_before() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    let id = world.settle(&alice, 90);
    world.node.book.fail("the disk is full");
    let desk = &world.control().settling;
    let job = desk.queue().take(desk.now().monotonic_ms).expect("it is due");
    world.control().make_call(&*world.engines, &job);
    assert_eq!(world.engines.take_calls().len(), 0);
    assert_eq!(world.state(&alice, id), "pending");
}

#[test]
fn a_settlement_has_one_call_at_a_time() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(0);
    let take = || {
        world
            .control()
            .settling
            .queue()
            .take(world.control().settling.now().monotonic_ms)
    };
    let first = world.settle(&alice, 10);
    let call_of_first = take().unwrap();
    world.control().cancel_settlement(alice.id, first, false).unwrap();
    let second = world.settle(&alice, 20);
    let call_of_second = take().unwrap();
    // Whatever becomes of the call of one that has ended is no concern of the next.
    world.control().make_call(&*world.engines, &call_of_first);
    world.control().retry_settlement(&alice, second, false).unwrap();
    assert_eq!(take(), Err(None));
    world.control().make_call(&*world.engines, &call_of_second);
    let states = world.control().settlements(alice.id, None, 10).unwrap();
    let states: Vec<_> = states
        .iter()
        .map(|one| (one.amount, one.state.as_str(), one.attempts))
        .collect();
    assert_eq!(states, [(20, "confirmed", 1), (10, "cancelled", 0)]);
}
