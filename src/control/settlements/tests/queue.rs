//! The order of calls and their pauses.

use super::*;

fn is_settle(job: &Job) -> bool {
    matches!(job.call, Call::Settle(_))
}

/// The settlement of this account, of which no engine has heard.
fn pending(account: u32) -> Settlement {
    let number = SettlementNumber::new(u64::from(account) + 1);
    Settlement::made(number, [0; 16], AccountId::new(account), 1, 0, 0)
}

/// However much waits for an engine that is out costs no more than one thing that does, and nothing new waits for it.
#[test]
fn an_engine_that_is_out_is_asked_about_once_a_second() {
    const WAITING: u32 = 10_000;
    let now = Now {
        wall: Timestamp::from_millis(1_000_000),
        monotonic_ms: 1_000,
    };
    let known: Vec<_> = (0..=WAITING)
        .map(|number| (AccountId::new(number), ENGINE.into()))
        .collect();
    let mut queue = Queue::new(now, 7, Vec::new(), &known, Vec::new());
    for number in 0..WAITING {
        queue.add(now, pending(number), Some(ENGINE.into()));
    }
    let mut now_ms = now.monotonic_ms;
    let mut take = |queue: &mut Queue, until_ms: u64| loop {
        match queue.take(now_ms) {
            Ok(job) => return Some((now_ms, job)),
            Err(wakeup_ms) => now_ms = wakeup_ms.filter(|at_ms| *at_ms <= until_ms)?,
        }
    };
    let minutes = |count: u64| now.monotonic_ms + count * 60_000;
    let mut calls = 0;
    while let Some((now_ms, job)) = take(&mut queue, minutes(10)) {
        calls += 1;
        queue.end(now_ms, &job, CallEnd::Failed);
        queue.settled(now_ms, &settlement_of(&job), settlement_of(&job));
    }
    assert!((590..620).contains(&calls), "{calls} calls in ten minutes");

    let added = Now {
        wall: now.wall,
        monotonic_ms: minutes(10),
    };
    queue.add(added, pending(WAITING), Some(ENGINE.into()));
    let (back_ms, job) = take(&mut queue, minutes(10) + 1_000).expect("the next call");
    assert_eq!(settlement_of(&job).account, AccountId::new(WAITING), "the newest");
    queue.end(back_ms, &job, CallEnd::Answered);
    queue.ended(&settlement_of(&job));
    let mut paid = 0;
    while let Some((now_ms, job)) = take(&mut queue, back_ms) {
        queue.end(now_ms, &job, CallEnd::Answered);
        queue.ended(&settlement_of(&job));
        paid += 1;
    }
    assert_eq!(paid, WAITING, "all at once");
}

/// Engines that do not answer get few threads, and those that do get theirs.
#[test]
fn no_engine_holds_up_another() {
    let now = Now {
        wall: Timestamp::from_millis(1_000_000),
        monotonic_ms: 1_000,
    };
    let engine = |number: u32| format!("http://engine-{number}.example/");
    // A hundred accounts at each of twenty engines.
    let of = |account: u32| engine(account % 20);
    let known: Vec<_> = (0..2_000)
        .map(|number| (AccountId::new(number), of(number).into_boxed_str()))
        .collect();
    let mut queue = Queue::new(now, 7, Vec::new(), &known, Vec::new());
    for number in 0..2_000 {
        queue.add(now, pending(number), Some(of(number).into()));
    }
    let mut running = Vec::new();
    for _ in 0..CALLS_MAX {
        running.push(queue.take(now.monotonic_ms).expect("there is much to do"));
    }
    assert!(running.iter().all(is_settle));
    let of_one = |running: &[Job], number| running.iter().filter(|job| *job.engine == *engine(number)).count();
    assert!((0..20).all(|number| of_one(&running, number) <= 2));
    // All engines but one hang, and each call ends after 5 s.
    let mut paid = 0;
    let mut now_ms = now.monotonic_ms;
    for _ in 0..100 {
        now_ms += 5_000;
        for job in running.drain(..) {
            let before = settlement_of(&job);
            let mut settlement = before.clone();
            if *job.engine == *engine(3) {
                queue.end(now_ms, &job, CallEnd::Answered);
                queue.ended(&settlement);
                paid += 1;
            } else {
                queue.end(now_ms, &job, CallEnd::Failed);
                settlement.sent_to = Some(SentTo {
                    engine: (*job.engine).into(),
                    since_ms: now_ms,
                });
                queue.settled(now_ms, &before, settlement);
            }
        }
        while running.len() < CALLS_MAX
            && let Ok(job) = queue.take(now_ms)
        {
            running.push(job);
        }
    }
    assert_eq!(paid, 100, "two at a time, as long as there are some");
    assert!(
        running.len() <= CALLS_MAX / 2,
        "{} threads wait for engines",
        running.len()
    );
}
