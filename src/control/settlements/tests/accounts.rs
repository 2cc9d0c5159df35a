//! What engines are told of accounts.

use super::*;

#[test]
fn engines_know_the_accounts_that_they_serve() {
    let world = World::new();
    world.engines.set(ENGINE, Mode::Down);
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add("bob", AccountEdit::default());
    let (alice_id, bob_id) = (Uuid::from_bytes(alice.uuid), Uuid::from_bytes(bob.uuid));
    let id = world.settle(&alice, 5);
    world.pass(HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 0, "it does not know the account yet");
    let standing = world.control().engine_standing(&alice).unwrap();
    assert!(!standing.acknowledged && standing.attempts > 10, "{standing:?}");
    assert_eq!(standing.last_error.as_deref(), Some("as the test says"));
    assert_eq!(world.control().engine_standing(&bob), None);
    let world = world.restart();
    world.engines.set(ENGINE, Mode::Up);
    world.pass(HOUR_MS);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![5]));
    assert!(world.control().engine_standing(&alice).unwrap().acknowledged);
    // The engine of an asset serves those without one of their own.
    let set = |engine: Option<&str>| {
        let edits = [("ABC".into(), engine.map(Box::from))];
        world.control().set_engines(&edits.into()).unwrap();
        world.pass(1);
    };
    set(Some(OTHER));
    assert!(world.engines.knows(OTHER, bob_id) && !world.engines.knows(OTHER, alice_id));
    set(Some(ENGINE));
    assert!(world.engines.knows(ENGINE, bob_id) && !world.engines.knows(OTHER, bob_id));
    set(None);
    assert!(!world.engines.knows(ENGINE, bob_id) && world.engines.knows(ENGINE, alice_id));
    // The end of an account is told, however long that takes.
    world.node.book.credit(alice.id, 5);
    world.engines.set(ENGINE, Mode::Broken);
    world.control().delete_account("alice", false).unwrap();
    world.pass(HOUR_MS);
    let world = world.restart();
    world.engines.set(ENGINE, Mode::Up);
    world.pass(HOUR_MS);
    assert!(!world.engines.knows(ENGINE, alice_id));
    assert_eq!(world.node.book.read_back().engine_tasks, []);
}

/// Engines that are out are to be told that they settle no more; of these only so many are remembered for one account.
#[test]
fn an_account_does_not_collect_engines_without_end() {
    let world = World::new();
    let name = |number: usize| format!("http://engine-{number}.example/");
    let change = |engine: &str| {
        let edit = AccountEdit {
            settlement_engine_url: Edit::Set(engine.into()),
            ..AccountEdit::default()
        };
        world.control().update_account("alice", edit)
    };
    world.engines.set(&name(0), Mode::Down);
    let alice = world.add_with_engine("alice", &name(0));
    let max = crate::store::ENGINES_OF_ACCOUNT_MAX;
    for number in 1..max {
        world.engines.set(&name(number), Mode::Down);
        assert!(change(&name(number)).is_ok(), "{number}");
    }
    let refused = change(ENGINE).map(|_| ());
    assert!(matches!(refused, Err(ControlError::NotReady { .. })), "{refused:?}");
    // It has the engine that it had, and goes on with it.
    let engine = || {
        world
            .control()
            .engine_of(&world.control().find_account("alice").unwrap())
    };
    assert_eq!(engine().as_deref(), Some(&*name(max - 1)));
    let id = world.settle(&alice, 5);
    for number in 0..max {
        world.engines.set(&name(number), Mode::Up);
    }
    world.pass(HOUR_MS + 1);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![5]));
    assert!(change(ENGINE).is_ok());
    world.pass(1);
    assert!(world.engines.knows(ENGINE, Uuid::from_bytes(alice.uuid)));
    assert_eq!(world.node.book.read_back().engine_tasks, []);
}
