//! What engines bring: one credit per key, whatever happens.

use super::*;

#[test]
fn what_engines_bring_is_credited_once() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add("bob", AccountEdit::default());
    let carol = world.add_with_engine("carol", ENGINE);
    world.node.shards.take_published();
    assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
    assert_eq!(world.node.shards.take_published(), "received:0+15");
    assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
    for (amount, scale) in [("151", 3), ("150", 2)] {
        assert_eq!(
            receive(&world, &alice, "a", amount, scale),
            Err(ControlError::SettlementKeyConflict)
        );
    }
    assert_eq!(
        (world.balance(&alice), world.node.shards.take_published()),
        (15, String::new())
    );
    // What is left over is in the next one; keys are the account's own.
    assert!(receive(&world, &alice, "b", "6", 3).is_ok());
    assert_eq!(world.balance(&alice), 15);
    assert!(receive(&world, &alice, "c", "4", 3).is_ok());
    assert_eq!(world.balance(&alice), 16);
    assert!(receive(&world, &carol, "a", "1", 2).is_ok());
    assert_eq!(world.balance(&carol), 1);
    assert_eq!(
        receive(&world, &alice, "d", "18446744073709551616", 2),
        Err(ControlError::SettlementTooLarge)
    );
    assert!(receive(&world, &alice, "d", "0", 2).is_ok());
    assert_eq!(receive(&world, &bob, "a", "1", 2), Err(ControlError::NoAccountToSettle));
    // Also after a restart, and for two days after the last use.
    let world = world.restart();
    assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
    for passed_hours in [47, 47, 49] {
        world.pass(passed_hours * HOUR_MS);
        world.control().forget_settlement_keys();
        assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
        let credited = if passed_hours == 49 { 31 } else { 16 };
        assert_eq!(world.balance(&alice), credited, "after {passed_hours} hours");
    }
    assert!(world.control().audit().unwrap().adds_up());
}

/// The time of day is wrong, for a while: nothing is credited a second time for that.
#[test]
fn no_clock_that_jumps_makes_a_key_forgotten() {
    const TEN_YEARS_MS: i64 = 87_600 * HOUR_MS as i64;
    for wrong_ms in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        for restarts in [false, true] {
            // The clock is wrong when the key comes first, when it comes again, when keys are forgotten.
            for wrong_at in 0..3 {
                let mut world = World::new();
                let alice = world.add_with_engine("alice", ENGINE);
                let at = format!("{wrong_ms}, {restarts}, {wrong_at}");
                let set = |world: &World, step| {
                    let set_ms = if step == wrong_at { wrong_ms } else { 0 };
                    world.control().settling.set_ms.store(set_ms, Ordering::SeqCst);
                };
                if !restarts {
                    world.pass(100 * HOUR_MS);
                }
                set(&world, 0);
                receive(&world, &alice, "a", "1", 2).unwrap();
                set(&world, 1);
                receive(&world, &alice, "a", "1", 2).unwrap();
                set(&world, 2);
                if restarts {
                    world = world.restart();
                    set(&world, 2);
                }
                world.control().forget_settlement_keys();
                set(&world, 3);
                world.pass(47 * HOUR_MS);
                world.control().forget_settlement_keys();
                receive(&world, &alice, "a", "1", 2).unwrap();
                assert_eq!(world.balance(&alice), 1, "{at}");
            }
        }
    }
}

/// What is kept for an engine's sake is bounded: beyond it the engine is told to come back, and nothing is credited.
#[test]
fn more_keys_than_are_kept_are_refused_until_the_oldest_is_a_day_old() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add_with_engine("bob", ENGINE);
    for number in 0..crate::store::SETTLEMENT_KEYS_MAX {
        assert!(receive(&world, &alice, &number.to_string(), "1", 2).is_ok());
    }
    let full = world.balance(&alice);
    let refused = receive(&world, &alice, "one more", "1", 2);
    assert!(matches!(refused, Err(ControlError::NotReady { .. })), "{refused:?}");
    assert_eq!(world.balance(&alice), full);
    assert!(receive(&world, &alice, "0", "1", 2).is_ok(), "it is answered as before");
    assert!(
        receive(&world, &bob, "one more", "1", 2).is_ok(),
        "others do not notice"
    );
    assert_eq!((world.balance(&alice), world.balance(&bob)), (full, 1));
    world.pass(24 * HOUR_MS + 1);
    assert!(receive(&world, &alice, "0", "1", 2).is_ok());
    assert_eq!(
        world.balance(&alice),
        full,
        "what was used lately is not what makes room"
    );
    assert!(receive(&world, &alice, "one more", "1", 2).is_ok());
    assert_eq!(world.balance(&alice), full + 1);
    assert!(receive(&world, &alice, "0", "1", 2).is_ok());
    assert_eq!(world.balance(&alice), full + 1);
}

/// An engine that hears of an error may bring the money again under another key.
#[test]
fn what_was_credited_is_said_again_whatever_has_become_of_the_node() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let known = Ok("201 150@3".to_owned());
    assert_eq!(receive(&world, &alice, "a", "150", 3), known);
    let no_engine = AccountEdit {
        settlement_engine_url: Edit::Clear,
        ..AccountEdit::default()
    };
    world.control().update_account("alice", no_engine).unwrap();
    assert_eq!(receive(&world, &alice, "a", "150", 3), known);
    assert_eq!(
        receive(&world, &alice, "b", "150", 3),
        Err(ControlError::NoAccountToSettle)
    );
    world.set_engine("alice", ENGINE);
    for readiness in [Readiness::Starting, Readiness::Stopping] {
        world.control().set_readiness(readiness);
        assert_eq!(receive(&world, &alice, "a", "150", 3), known, "{readiness:?}");
        assert!(
            matches!(
                receive(&world, &alice, "b", "150", 3),
                Err(ControlError::NotReady { .. })
            ),
            "{readiness:?}"
        );
    }
    assert_eq!(world.balance(&alice), 15);
}

#[test]
fn the_same_settlement_at_the_same_time_is_credited_once() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    std::thread::scope(|scope| {
        let ask = || receive(&world, &alice, "a", "150", 3);
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), Ok("201 150@3".to_owned()));
        }
    });
    assert_eq!(world.balance(&alice), 15);
}
