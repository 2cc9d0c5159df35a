//! Rates that maintain themselves: providers are polled, and what they say is kept and published.
//!
//! Owns when providers are asked, and every change of the rates: by a poll, by the operator, by a confirmation. Which
//! rates are in force then is [`desk`]'s to say. Leaves the asking to [`crate::client::rates`].
//!
//! # What always holds
//! - No packet waits for a poll, and no poll for a packet: one thread asks, both providers at the same time.
//! - What is in force is durable first. Nothing is written or published that is as it was.
//! - What a change is worth a log line for is said once, when it changes, not with every poll that finds it so.

pub mod desk;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::client::rates::{Answer, PollError, RateClient};
use crate::pipeline::rates::{Decimal, Rates};
use crate::shard::clock;
use crate::shard::control::Change;
use crate::store::Mutation;

use super::{Control, ControlError};
use desk::{CannotConfirm, Desk, Event, Source, State};

/// Codes that one log line names.
const CODES_SHOWN_MAX: usize = 8;

/// How providers are polled, and what is believed of them.
#[derive(Clone, Debug)]
pub struct Policy {
    pub poll_interval: Duration,
    /// Polls that may fail in a row; one more, and the provider's rates are dropped.
    pub failures_max: u32,
    /// A value that is further than this from the last one is held, see [`Decimal::is_near`]. `None`: none is.
    pub max_change: Option<Decimal>,
}

/// Somebody who can be polled.
pub trait Provider: Send + Sync {
    /// For people and programs; says nothing of keys and places.
    fn kind(&self) -> &'static str;

    /// Blocks for some seconds at most.
    fn poll(&self) -> Result<Answer, PollError>;
}

/// One that is asked over HTTP.
pub struct HttpProvider {
    pub kind: &'static str,
    pub client: RateClient,
}

impl Provider for HttpProvider {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn poll(&self) -> Result<Answer, PollError> {
        self.client.poll()
    }
}

/// The providers of a node, in the order in which they are believed. The second only beside a first.
pub type Providers = [Option<Box<dyn Provider>>; 2];

/// What is wrong with the rates, for whoever watches the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trouble {
    /// Providers that failed more often in a row than tolerated.
    pub failed: Vec<Source>,
    /// Codes without a rate because of that.
    pub dropped: usize,
    pub held: usize,
}

/// Polls until it is dropped. A poll that is under way then ends by itself and changes nothing any more.
pub struct Poller {
    _stop: Sender<()>,
}

impl Poller {
    /// Polls at once, then in intervals. `None`: there is nobody to poll.
    pub fn start(control: &Arc<Control>, policy: Policy, providers: Providers) -> io::Result<Option<Self>> {
        let kinds = providers
            .each_ref()
            .map(|provider| provider.as_ref().map(|provider| provider.kind()));
        control.follow_providers(kinds, &policy);
        if providers.iter().all(Option::is_none) {
            return Ok(None);
        }
        let (stop, stopped) = bounded(0);
        let control = Arc::clone(control);
        thread::Builder::new()
            .name("clearway-rates".to_owned())
            .spawn(move || poll_until(&stopped, &control, policy.poll_interval, &providers))?;
        Ok(Some(Self { _stop: stop }))
    }
}

fn poll_until(stopped: &Receiver<()>, control: &Control, interval: Duration, providers: &Providers) {
    loop {
        let began = Instant::now();
        let round = ask(providers);
        // Refused only by a node that stops or cannot commit; it says so itself.
        let _ = control.take_round(round);
        let left = interval.saturating_sub(began.elapsed());
        if stopped.recv_timeout(left) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Asks all providers at the same time.
fn ask(providers: &Providers) -> [Option<Result<Answer, PollError>>; 2] {
    let [first, second] = providers.each_ref().map(|provider| provider.as_deref());
    let Some(second) = second else {
        return [first.map(Provider::poll), None];
    };
    thread::scope(|scope| {
        let beside = thread::Builder::new()
            .name("clearway-rates".to_owned())
            .spawn_scoped(scope, || second.poll());
        let first = first.map(Provider::poll);
        let second = match beside {
            Ok(beside) => beside.join().unwrap_or(Err(PollError::NoThread)),
            Err(_) => Err(PollError::NoThread),
        };
        [first, Some(second)]
    })
}

impl Control {
    /// The rates in force.
    pub fn rates(&self) -> Arc<Rates> {
        Arc::clone(&self.read().rates)
    }

    /// Where they came from, and what is held.
    pub fn rate_desk(&self) -> Arc<Desk> {
        Arc::clone(&self.read().rate_desk)
    }

    /// Replaces all rates by what the operator says.
    pub fn set_rates(&self, rates: Rates) -> Result<Arc<Rates>, ControlError> {
        let now_ms = clock::wall().as_millis();
        let ((), rates) = self.change_rates(|desk| {
            desk.replace(now_ms, &rates);
            Ok(())
        })?;
        Ok(rates)
    }

    /// Puts held values in force: of each code the one that is held, or only if it is near a value. All or none.
    pub fn confirm_rates(&self, codes: &BTreeMap<Box<str>, Option<Decimal>>) -> Result<Arc<Rates>, ControlError> {
        let ((), rates) = self.change_rates(|desk| Ok(desk.confirm(codes)?))?;
        Ok(rates)
    }

    /// What is wrong with the rates; `None`: nothing.
    pub fn rate_trouble(&self) -> Option<Trouble> {
        let desk = self.rate_desk();
        let mut trouble = Trouble::default();
        let failed = desk.providers().filter(|(_, provider)| desk.has_failed(provider));
        trouble.failed = failed.map(|(source, _)| source).collect();
        for (_, entry) in desk.entries() {
            match desk.state(entry) {
                State::Held => trouble.held += 1,
                State::Dropped if trouble.failed.contains(&entry.source) => trouble.dropped += 1,
                _ => {}
            }
        }
        (trouble != Trouble::default()).then_some(trouble)
    }

    /// Says who is polled. Before that, all rates are as stored.
    fn follow_providers(&self, kinds: [Option<&'static str>; 2], policy: &Policy) {
        let _changes = self.changes.lock().expect("no change panics halfway");
        let mut desk = Desk::clone(&self.rate_desk());
        let orphans = desk.follow(kinds, policy.failures_max, policy.max_change.clone());
        self.write().rate_desk = Arc::new(desk);
        if orphans > 0 {
            tracing::warn!(
                target: "rates",
                rates = orphans,
                "rates in force came from a provider that is not polled any more: nobody keeps them up to date",
            );
        }
    }

    /// What one round of polls has brought, in the order of [`desk::PROVIDERS`].
    fn take_round(&self, round: [Option<Result<Answer, PollError>>; 2]) -> Result<(), ControlError> {
        let now_ms = clock::wall().as_millis();
        let (events, _) = self.change_rates(|desk| Ok(desk.take_round(now_ms, round)))?;
        let desk = self.rate_desk();
        for event in &events {
            log(event, &desk);
        }
        Ok(())
    }

    /// Makes a change of the rates durable and public, and says which are in force then. Refused, it has changed nothing.
    fn change_rates<T>(
        &self,
        change: impl FnOnce(&mut Desk) -> Result<T, ControlError>,
    ) -> Result<(T, Arc<Rates>), ControlError> {
        let _changes = self.begin()?;
        let (before, rates_before) = (self.rate_desk(), self.rates());
        let mut desk = Desk::clone(&before);
        let changed = change(&mut desk)?;
        let stored = desk.stored();
        if stored != before.stored() {
            self.bookkeeper.apply(vec![Mutation::PutRates(stored)])?;
        }
        // Durable: nothing below can fail.
        let rates = desk.rates();
        let is_news = rates != *rates_before;
        let rates = if is_news { Arc::new(rates) } else { rates_before };
        {
            let mut state = self.write();
            state.rates = Arc::clone(&rates);
            state.rate_desk = Arc::new(desk);
        }
        if is_news {
            self.shards.publish(&[Change::Rates(Arc::clone(&rates))]);
        }
        Ok((changed, rates))
    }
}

impl From<CannotConfirm> for ControlError {
    fn from(error: CannotConfirm) -> Self {
        match error {
            CannotConfirm::Unknown { code } => Self::RateNotFound { code: code.into() },
            CannotConfirm::NotHeld { code } => Self::RateNotHeld { code: code.into() },
            CannotConfirm::Moved { code, held } => Self::RateMoved {
                code: code.into(),
                held,
            },
        }
    }
}

/// One line for what an operator should hear.
fn log(event: &Event, desk: &Desk) {
    let kind = |source: &Source| {
        let provider = desk.providers().find(|(known, _)| known == source);
        provider.map_or("", |(_, provider)| provider.kind)
    };
    match event {
        Event::Answers { source, rates } => {
            tracing::info!(target: "rates", source = source.as_str(), kind = kind(source), rates, "answers");
        }
        Event::Fails {
            source,
            error,
            failures_left,
        } => tracing::warn!(
            target: "rates",
            source = source.as_str(),
            kind = kind(source),
            failures_left,
            "{error}; its rates stay in force until it has failed so many times more",
        ),
        Event::Dropped { source, error } => tracing::error!(
            target: "rates",
            source = source.as_str(),
            kind = kind(source),
            "{error}, too often in a row: its rates are dropped, and packets that need them are rejected with T00",
        ),
        Event::Skips { source, count, first } => tracing::warn!(
            target: "rates",
            source = source.as_str(),
            kind = kind(source),
            entries = count,
            "entries of its answer are left out; the first: {first}",
        ),
        Event::Held { codes } => tracing::warn!(
            target: "rates",
            "held, because they moved too far or the providers disagree: {}; see GET /rates?detail=true",
            some_of(codes),
        ),
        Event::Released { codes } => tracing::info!(target: "rates", "no longer held: {}", some_of(codes)),
    }
}

fn some_of(codes: &[String]) -> String {
    let shown = &codes[..codes.len().min(CODES_SHOWN_MAX)];
    match codes.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::fake::Node;
    use super::desk::PROVIDERS;
    use super::*;

    fn answer(rates: &[(&str, &str)]) -> Result<Answer, PollError> {
        let decimal = |text: &&str| Decimal::parse(text).unwrap();
        Ok(Answer {
            rates: rates
                .iter()
                .map(|(code, rate)| ((*code).to_owned(), decimal(rate)))
                .collect(),
            ..Answer::default()
        })
    }

    fn policy(max_change: &str) -> Policy {
        Policy {
            poll_interval: Duration::from_millis(1),
            failures_max: 1,
            max_change: Decimal::parse(max_change).ok(),
        }
    }

    #[test]
    fn only_what_is_new_is_written_and_published() {
        let node = Node::new("example.hub");
        node.control.follow_providers([Some("URL"), None], &policy("0.2"));
        let round = |result: Result<Answer, PollError>| {
            let commits = node.book.commits();
            node.control.take_round([Some(result), None]).unwrap();
            (node.book.commits() - commits, node.shards.take_published())
        };
        for (result, commits, published) in [
            (answer(&[("ABC", "1"), ("XYZ", "2")]), 1, "rates:2"),
            (answer(&[("ABC", "1"), ("XYZ", "2.0")]), 0, ""),
            (Err(PollError::Late), 0, ""),
            (answer(&[("ABC", "1"), ("XYZ", "2")]), 0, ""),
            (answer(&[("ABC", "1"), ("XYZ", "0.5")]), 1, "rates:1"),
            (answer(&[("ABC", "1"), ("XYZ", "0.51")]), 0, ""),
            (Err(PollError::Late), 0, ""),
            (Err(PollError::Late), 1, "rates:0"),
            (Err(PollError::Late), 0, ""),
            (answer(&[("ABC", "1"), ("XYZ", "2")]), 1, "rates:2"),
        ] {
            let row = format!("{result:?}");
            assert_eq!(round(result), (commits, published.to_owned()), "{row}");
        }
    }

    #[test]
    fn trouble_is_said() {
        let node = Node::new("example.hub");
        let control = &node.control;
        control.follow_providers([Some("URL"), Some("URL")], &policy("0.2"));
        let late = || Some(Err(PollError::Late));
        assert_eq!(control.rate_trouble(), None);
        let first = || answer(&[("ABC", "1"), ("XYZ", "2")]);
        control
            .take_round([Some(first()), Some(answer(&[("XYZ", "0.5")]))])
            .unwrap();
        let held = Trouble {
            held: 1,
            ..Trouble::default()
        };
        assert_eq!(control.rate_trouble(), Some(held));
        control.take_round([Some(first()), late()]).unwrap();
        assert_eq!(control.rate_trouble(), None, "a failure is tolerated");
        control.take_round([late(), late()]).unwrap();
        let failed = Trouble {
            failed: vec![Source::SecondProvider],
            ..Trouble::default()
        };
        assert_eq!(control.rate_trouble(), Some(failed));
        control.take_round([late(), late()]).unwrap();
        let failed = Trouble {
            failed: PROVIDERS.to_vec(),
            dropped: 2,
            held: 0,
        };
        assert_eq!(control.rate_trouble(), Some(failed));
    }

    #[test]
    fn what_is_not_durable_is_not_in_force() {
        let node = Node::new("example.hub");
        let control = &node.control;
        control.follow_providers([Some("URL"), None], &policy("0.2"));
        control.take_round([Some(answer(&[("ABC", "1")])), None]).unwrap();
        let before = control.rate_desk();
        node.book.fail("disk full");
        let refused = control.take_round([Some(answer(&[("ABC", "1.1")])), None]);
        assert!(matches!(refused, Err(ControlError::NotReady { .. })), "{refused:?}");
        assert_eq!(control.rate_desk(), before);
        assert_eq!(control.rates().get("ABC").unwrap().to_string(), "1");
    }

    /// Two providers that wait for each other: polled one after the other they would wait for ever.
    struct Meeting {
        here: Mutex<Receiver<()>>,
        there: Sender<()>,
        polls: Sender<Instant>,
    }

    impl Provider for Meeting {
        fn kind(&self) -> &'static str {
            "meeting"
        }

        fn poll(&self) -> Result<Answer, PollError> {
            let _ = self.polls.try_send(Instant::now());
            let _ = self.there.send(());
            let met = self.here.lock().unwrap().recv_timeout(Duration::from_secs(10));
            met.map_err(|_| PollError::Late)?;
            answer(&[("ABC", "1")])
        }
    }

    #[test]
    fn both_are_polled_at_the_same_time_at_once_and_again_until_the_end() {
        let node = Node::new("example.hub");
        let (polls, polled) = bounded(1_000);
        let ((one, other), (other_here, one_here)) = (bounded(1), bounded(1));
        let meeting = |here, there| -> Option<Box<dyn Provider>> {
            Some(Box::new(Meeting {
                here: Mutex::new(here),
                there,
                polls: polls.clone(),
            }))
        };
        let providers = [meeting(one_here, one), meeting(other, other_here)];
        drop(polls);
        let poller = Poller::start(&node.control, policy("-"), providers).unwrap();
        for _ in 0..6 {
            polled.recv_timeout(Duration::from_secs(10)).expect("it is polled");
        }
        drop(poller);
        // The thread is gone when it has dropped its providers.
        let end = Instant::now() + Duration::from_secs(10);
        while polled.recv_deadline(end).is_ok() {}
        assert!(Instant::now() < end, "it has stopped");
        let desk = node.control.rate_desk();
        assert!(desk.providers().all(|(_, provider)| provider.is_fresh()));
    }

    #[test]
    fn a_node_without_providers_has_no_poller() {
        let node = Node::new("example.hub");
        assert!(
            Poller::start(&node.control, policy("-"), [None, None])
                .unwrap()
                .is_none()
        );
    }
}
