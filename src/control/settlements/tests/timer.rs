//! Settling by time, and by order.

use super::*;

#[test]
fn what_waits_long_enough_is_settled() {
    let world = World::new();
    let ruled = |username: &str, threshold: i64, to: i64| {
        let edit = AccountEdit {
            settle_threshold: Edit::Set(threshold),
            settle_to: Edit::Set(to),
            settlement_engine_url: Edit::Set(ENGINE.into()),
            ..AccountEdit::default()
        };
        world.add(username, edit)
    };
    let alice = ruled("alice", 100, 10);
    let ahead = ruled("ahead", 100, -10);
    let bob = world.add_with_engine("bob", ENGINE);
    let settled = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&settled);
    world.node.shards.set_settler(move |account| {
        noted.lock().unwrap().push(account.get());
        SettleNow::Made { amount: 1 }
    });
    let mut timers = Timers::default();
    let mut look = |ms: u64, expected: &[u32]| {
        world.control().settling.ahead_ms.fetch_add(ms, Ordering::SeqCst);
        timers.look(world.control(), 60_000);
        assert_eq!(std::mem::take(&mut *settled.lock().unwrap()), expected);
    };
    world.node.book.credit(alice.id, 11);
    world.node.book.credit(bob.id, 99);
    look(0, &[]);
    look(50_000, &[]);
    // Back at what it settles to, and above it again: the time begins anew.
    world.node.book.credit(alice.id, -1);
    look(1_000, &[]);
    world.node.book.credit(alice.id, 1);
    look(50_000, &[]);
    look(50_000, &[]);
    look(10_000, &[alice.id.get()]);
    look(10_000, &[]);
    // What is paid ahead is not paid by the timer alone.
    look(120_000, &[alice.id.get()]);
    world.node.book.credit(ahead.id, 1);
    look(0, &[]);
    look(60_000, &[alice.id.get(), ahead.id.get()]);
    world.node.book.credit(ahead.id, -1);
    look(60_000, &[]);
    look(60_000, &[alice.id.get()]);
    // Of what the peer has brought, the shard knows how much is prepaid.
    receive(&world, &bob, "x", "1", 2).unwrap();
    receive(&world, &ahead, "x", "50", 2).unwrap();
    look(0, &[]);
    look(120_000, &[alice.id.get(), ahead.id.get()]);
    // Without a rule there is nothing to look at.
    let edit = AccountEdit {
        settle_to: Edit::Clear,
        ..AccountEdit::default()
    };
    world.control().update_account("alice", edit).unwrap();
    look(120_000, &[]);
    assert_eq!(world.control().settling.ruled().len(), 1);
}

#[test]
fn settling_now_says_what_came_of_it() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    assert_eq!(world.control().settle_now(&alice), Err(ControlError::NothingToSettle));
    let book = Arc::clone(&world.node.book);
    world.node.shards.set_settler(move |account| {
        book.transfer(&transfer_of(account, 33));
        SettleNow::Made { amount: 33 }
    });
    let made = world.control().settle_now(&alice).unwrap();
    assert_eq!((made.amount, made.state.as_str()), (33, "pending"));
    assert_eq!(
        world.control().settlements(alice.id, None, 10).unwrap(),
        std::slice::from_ref(&made)
    );
    for (said, error) in [
        (SettleNow::NoRule, ControlError::NoSettlementRule),
        (SettleNow::NoEngine, ControlError::NoSettlementEngine),
        (SettleNow::Open, ControlError::SettlementPending),
    ] {
        world.node.shards.set_settler(move |_| said);
        assert_eq!(world.control().settle_now(&alice), Err(error));
    }
    let id = Uuid::from_bytes(made.id);
    assert_eq!(world.control().settlements(alice.id, Some(id), 10).unwrap(), []);
}
