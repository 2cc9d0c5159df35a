//! Which rates are in force: what the operator set, what two providers say, and which of it can be believed.
//!
//! Owns the choice, without a clock, a socket or a disk: answers of polls and words of the operator go in, rates come
//! out. Leaves asking, keeping and publishing to [`super`].
//!
//! # Rules
//! - The first provider's value is used. The second's is used for codes that the first does not give, and for all that
//!   it gives while the first one's last poll failed. What neither has said just now stays as it was last said.
//! - A provider that failed more often in a row than tolerated has said nothing: its rates are dropped.
//! - A successful poll takes the place of what the operator set. What the operator sets takes the place of everything.
//! - With a largest change, a value is held if it is further than that from the one last trusted for its code, or if both
//!   providers have just said values that are further apart. A held code has no rate: packets that need one are T00.
//! - What is held is released when the providers come back to what was trusted, or when the operator confirms it.
//!
//! Always: a value that was held or dropped does not become the measure of the next one, also not across a restart: the
//! last trusted value is kept until another one is trusted, or the operator replaces all.

use std::collections::{BTreeMap, btree_map};

use crate::client::rates::{Answer, PollError};
use crate::pipeline::rates::{Decimal, RATES_MAX, Rates};
use crate::store::Texts;

/// Who said what an asset is worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    Operator,
    Provider,
    SecondProvider,
}

/// The sources that are polled, in the order in which they are believed.
pub const PROVIDERS: [Source; 2] = [Source::Provider, Source::SecondProvider];

impl Source {
    /// As answers, log lines and records have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Provider => "provider",
            Self::SecondProvider => "second_provider",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Operator, Self::Provider, Self::SecondProvider]
            .into_iter()
            .find(|source| source.as_str() == text)
    }
}

/// What is known of one asset's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// In force, or the last that was. `None`: none was ever trusted.
    pub trusted: Option<Decimal>,
    pub source: Source,
    pub is_in_force: bool,
    /// When it was last said, in milliseconds since 1970. `None`: before the process started.
    pub said_at_ms: Option<u64>,
    pub held: Option<Held>,
    /// The provider that is right, as the operator has said while they disagree.
    settled: Option<Source>,
}

/// A value that nobody trades on yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub rate: Decimal,
    pub source: Source,
    /// What the second provider says instead, if that is why.
    pub other: Option<Decimal>,
    pub since_ms: u64,
}

/// Whether a rate is in force, and how sure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Set by the operator, or said by its source in the last poll.
    Fresh,
    /// In force, but its source's last poll failed, or none has ended since the start, or nobody polls it any more.
    Stale,
    /// Not in force until confirmed.
    Held,
    /// Not in force: its source failed for too long, or does not give it any more.
    Dropped,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Held => "held",
            Self::Dropped => "dropped",
        }
    }
}

/// One provider, and what it has said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provider {
    pub kind: &'static str,
    /// What it said last, unless it was dropped or replaced.
    rates: BTreeMap<String, Decimal>,
    /// In milliseconds since 1970; since the start of the process.
    pub last_success_ms: Option<u64>,
    /// Failed polls since the last success.
    pub failures: u32,
    pub last_error: Option<PollError>,
    /// Entries of its last answer that were no rates.
    pub skipped: usize,
}

impl Provider {
    /// Whether its last poll succeeded.
    pub fn is_fresh(&self) -> bool {
        self.failures == 0 && self.last_success_ms.is_some()
    }
}

/// What an operator should hear of a round of polls. There is none for what is as it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The first success, or the first after a failure.
    Answers {
        source: Source,
        rates: usize,
    },
    Fails {
        source: Source,
        error: PollError,
        failures_left: u32,
    },
    /// Too often.
    Dropped {
        source: Source,
        error: PollError,
    },
    /// How many entries of its answers are no rates has changed.
    Skips {
        source: Source,
        count: usize,
        first: String,
    },
    Held {
        codes: Vec<String>,
    },
    /// In force again, without anybody's help.
    Released {
        codes: Vec<String>,
    },
}

/// Why a confirmation cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CannotConfirm {
    /// Nobody gives a rate of this code.
    Unknown {
        code: String,
    },
    NotHeld {
        code: String,
    },
    /// What is held by now, and it is not near what was confirmed.
    Moved {
        code: String,
        held: String,
    },
}

/// What of the held values an operator means.
struct Meant {
    rate: Decimal,
    source: Source,
    /// Who is right from now on, if the providers disagree.
    settled: Option<Source>,
}

/// What the providers say of one code, the most believed first.
struct Said<'a> {
    rate: &'a Decimal,
    source: Source,
    /// What the second provider says, if both have just said something.
    other: Option<&'a Decimal>,
}

/// All that was said, and what came of it. Immutable for its readers; a change makes a new one.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Desk {
    entries: BTreeMap<String, Entry>,
    /// As [`PROVIDERS`].
    providers: [Option<Provider>; 2],
    /// See [`Decimal::is_near`]. `None`: every value is believed.
    max_change: Option<Decimal>,
    failures_max: u32,
}

impl Desk {
    /// Reads what [`Self::stored`] has written; the error is the code of the text that it has not.
    pub fn restore(texts: &Texts) -> Result<Self, Box<str>> {
        let mut entries = BTreeMap::new();
        for (code, text) in texts {
            let entry = read_entry(text).ok_or_else(|| code.clone())?;
            entries.insert(code.to_string(), entry);
        }
        if entries.len() > RATES_MAX {
            return Err(format!("all {} assets", entries.len()).into());
        }
        Ok(Self {
            entries,
            ..Self::default()
        })
    }

    /// For each code with a trusted value: the value; behind it the source, unless the operator set what is in force, and
    /// `out` if it is not in force. What is held is not kept: it is held again after the first poll.
    pub fn stored(&self) -> Texts {
        let text = |(code, entry): (&String, &Entry)| {
            let value = entry.trusted.as_ref()?;
            let source = entry.source.as_str();
            let text = match (entry.source, entry.is_in_force) {
                (Source::Operator, true) => value.to_string(),
                (_, true) => format!("{value} {source}"),
                (_, false) => format!("{value} {source} out"),
            };
            Some((code.as_str().into(), text.into()))
        };
        self.entries.iter().filter_map(text).collect()
    }

    /// From now on these providers are polled, by their kinds. Says how many rates in force are those of a provider that
    /// is not polled any more.
    pub fn follow(
        &mut self,
        kinds: [Option<&'static str>; 2],
        failures_max: u32,
        max_change: Option<Decimal>,
    ) -> usize {
        self.max_change = max_change;
        self.failures_max = failures_max;
        let mut orphans: usize = self
            .entries
            .values()
            .filter(|entry| entry.is_in_force && entry.source != Source::Operator)
            .count();
        for ((place, kind), source) in self.providers.iter_mut().zip(kinds).zip(PROVIDERS) {
            let Some(kind) = kind else { continue };
            let in_force = self
                .entries
                .iter()
                .filter(|(_, entry)| entry.is_in_force && entry.source == source);
            // What it said before the restart, until it says something or fails too often.
            let rates: BTreeMap<_, _> = in_force
                .filter_map(|(code, entry)| Some((code.clone(), entry.trusted.clone()?)))
                .collect();
            orphans -= rates.len();
            *place = Some(Provider {
                kind,
                rates,
                last_success_ms: None,
                failures: 0,
                last_error: None,
                skipped: 0,
            });
        }
        orphans
    }

    /// All codes that anything is known of, in their order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(code, entry)| (code.as_str(), entry))
    }

    /// The providers that are polled, in the order in which they are believed.
    pub fn providers(&self) -> impl Iterator<Item = (Source, &Provider)> {
        let all = PROVIDERS.into_iter().zip(&self.providers);
        all.filter_map(|(source, provider)| Some((source, provider.as_ref()?)))
    }

    pub fn max_change(&self) -> Option<&Decimal> {
        self.max_change.as_ref()
    }

    /// Whether so many polls failed in a row that the provider's rates were dropped.
    pub fn has_failed(&self, provider: &Provider) -> bool {
        provider.failures > self.failures_max
    }

    pub fn state(&self, entry: &Entry) -> State {
        match entry.source {
            _ if entry.held.is_some() => State::Held,
            _ if !entry.is_in_force => State::Dropped,
            Source::Operator => State::Fresh,
            source if self.provider(source).is_some_and(Provider::is_fresh) => State::Fresh,
            _ => State::Stale,
        }
    }

    fn provider(&self, source: Source) -> Option<&Provider> {
        self.providers()
            .find(|(known, _)| *known == source)
            .map(|(_, provider)| provider)
    }

    /// What packets are converted with.
    pub fn rates(&self) -> Rates {
        let in_force = self.entries.iter().filter(|(_, entry)| entry.is_in_force);
        let rates = in_force.filter_map(|(code, entry)| Some((code.clone(), entry.trusted.clone()?)));
        Rates::new(rates.collect()).expect("all values were checked, and there are not too many")
    }

    /// The operator sets all rates. That confirms what is held near them.
    pub fn replace(&mut self, now_ms: u64, rates: &Rates) {
        let before = std::mem::take(&mut self.entries);
        for (code, rate) in rates.iter() {
            let held = before.get(code).and_then(|entry| entry.held.as_ref());
            let settled = held.and_then(|held| self.settle(held, rate)?.settled);
            let entry = Entry {
                trusted: Some(rate.clone()),
                source: Source::Operator,
                is_in_force: true,
                said_at_ms: Some(now_ms),
                held: None,
                settled,
            };
            self.entries.insert(code.to_owned(), entry);
        }
        // What they said is no answer to what the operator says now.
        for provider in self.providers.iter_mut().flatten() {
            provider.rates.clear();
        }
    }

    /// The operator believes what is held of these codes: whatever it is, or if it is near a value. All or none.
    pub fn confirm(&mut self, codes: &BTreeMap<Box<str>, Option<Decimal>>) -> Result<(), CannotConfirm> {
        let mut confirmed = Vec::new();
        for (code, near) in codes {
            let code = String::from(&**code);
            let Some(entry) = self.entries.get(&code) else {
                return Err(CannotConfirm::Unknown { code });
            };
            let Some(held) = &entry.held else {
                return Err(CannotConfirm::NotHeld { code });
            };
            let near = near.as_ref().unwrap_or(&held.rate);
            let Some(meant) = self.settle(held, near) else {
                let held = match &held.other {
                    None => held.rate.to_string(),
                    Some(other) => format!("{} or {other}", held.rate),
                };
                return Err(CannotConfirm::Moved { code, held });
            };
            confirmed.push(Entry {
                trusted: Some(meant.rate),
                source: meant.source,
                is_in_force: true,
                said_at_ms: self
                    .provider(meant.source)
                    .and_then(|provider| provider.last_success_ms),
                held: None,
                settled: meant.settled,
            });
        }
        for (code, entry) in codes.keys().zip(confirmed) {
            self.entries.insert(String::from(&**code), entry);
        }
        Ok(())
    }

    /// Which of the values that are held the operator means with `value`. `None`: it is near neither.
    fn settle(&self, held: &Held, value: &Decimal) -> Option<Meant> {
        let meant = |rate: &Decimal, source| Meant {
            rate: rate.clone(),
            source,
            settled: held.other.is_some().then_some(source),
        };
        let other = held.other.as_ref().filter(|other| self.is_near(other, value));
        if self.is_near(&held.rate, value) {
            Some(meant(&held.rate, held.source))
        } else {
            other.map(|other| meant(other, Source::SecondProvider))
        }
    }

    fn is_near(&self, one: &Decimal, other: &Decimal) -> bool {
        match &self.max_change {
            Some(max_change) => one.is_near(other, max_change),
            None => true,
        }
    }

    /// What the providers have answered in one round, in the order of [`PROVIDERS`]; nothing from one that is not polled.
    pub fn take_round(&mut self, now_ms: u64, round: [Option<Result<Answer, PollError>>; 2]) -> Vec<Event> {
        let mut events = Vec::new();
        let (mut has_success, mut has_dropped) = (false, false);
        for (index, result) in round.into_iter().enumerate() {
            let source = PROVIDERS[index];
            let (Some(provider), Some(result)) = (&mut self.providers[index], result) else {
                continue;
            };
            match result {
                Ok(answer) => {
                    has_success = true;
                    if !provider.is_fresh() {
                        let rates = answer.rates.len();
                        events.push(Event::Answers { source, rates });
                    }
                    if let Some(first) = answer.first_skipped
                        && provider.skipped != answer.skipped
                    {
                        let count = answer.skipped;
                        events.push(Event::Skips { source, count, first });
                    }
                    provider.rates = answer.rates;
                    provider.skipped = answer.skipped;
                    provider.last_success_ms = Some(now_ms);
                    provider.failures = 0;
                    provider.last_error = None;
                }
                Err(error) => {
                    provider.failures = provider.failures.saturating_add(1);
                    provider.last_error = Some(error);
                    if self.failures_max.checked_add(1) == Some(provider.failures) {
                        has_dropped = true;
                        provider.rates.clear();
                        events.push(Event::Dropped { source, error });
                    } else if provider.failures == 1 {
                        let failures_left = self.failures_max;
                        events.push(Event::Fails {
                            source,
                            error,
                            failures_left,
                        });
                    }
                }
            }
        }
        if has_success || has_dropped {
            self.choose(now_ms, has_success, &mut events);
        }
        events
    }

    /// Goes through all codes again. `has_success`: somebody has just answered, which replaces what the operator set.
    fn choose(&mut self, now_ms: u64, has_success: bool, events: &mut Vec<Event>) {
        let mut entries = BTreeMap::new();
        let (mut held, mut released) = (Vec::new(), Vec::new());
        for (code, said) in self.said() {
            let before = self.entries.get(code);
            let entry = self.choose_one(now_ms, &said, before);
            let was_held = before.is_some_and(|before| before.held.is_some());
            match (was_held, entry.held.is_some()) {
                (false, true) => held.push(code.clone()),
                (true, false) => released.push(code.clone()),
                _ => {}
            }
            entries.insert(code.clone(), entry);
        }
        for (code, before) in &self.entries {
            // Nobody gives it now. What was trusted stays the measure of what may come.
            if !entries.contains_key(code) && before.trusted.is_some() {
                let is_polled = self.provider(before.source).is_some();
                let entry = Entry {
                    is_in_force: before.is_in_force && !has_success && !is_polled,
                    held: None,
                    settled: None,
                    ..before.clone()
                };
                entries.insert(code.clone(), entry);
            }
        }
        forget_excess(&mut entries);
        self.entries = entries;
        if !held.is_empty() {
            events.push(Event::Held { codes: held });
        }
        if !released.is_empty() {
            events.push(Event::Released { codes: released });
        }
    }

    /// What the providers say of all codes that they give.
    fn said(&self) -> BTreeMap<&String, Said<'_>> {
        let mut in_order: Vec<_> = self.providers().collect();
        in_order.sort_by_key(|(_, provider)| !provider.is_fresh());
        let mut all = BTreeMap::new();
        for (source, provider) in in_order {
            for (code, rate) in &provider.rates {
                match all.entry(code) {
                    btree_map::Entry::Vacant(place) => {
                        let other = None;
                        place.insert(Said { rate, source, other });
                    }
                    // A value from before does not contradict one of now.
                    btree_map::Entry::Occupied(mut first) if provider.is_fresh() => first.get_mut().other = Some(rate),
                    btree_map::Entry::Occupied(_) => {}
                }
            }
        }
        all
    }

    fn choose_one(&self, now_ms: u64, said: &Said<'_>, before: Option<&Entry>) -> Entry {
        let (mut rate, mut source, mut other) = (said.rate, said.source, said.other);
        let mut settled = before.and_then(|before| before.settled);
        if let Some(second) = other {
            if self.is_near(rate, second) {
                (other, settled) = (None, None);
            } else if settled == Some(Source::SecondProvider) {
                (rate, source, other) = (second, Source::SecondProvider, None);
            } else if settled.is_some() {
                other = None;
            }
        }
        let trusted = before.and_then(|before| before.trusted.as_ref());
        let is_far = trusted.is_some_and(|trusted| !self.is_near(trusted, rate));
        if !is_far && other.is_none() {
            return Entry {
                trusted: Some(rate.clone()),
                source,
                is_in_force: true,
                said_at_ms: self.provider(source).and_then(|provider| provider.last_success_ms),
                held: None,
                settled,
            };
        }
        let held_before = before.and_then(|before| before.held.as_ref());
        Entry {
            trusted: trusted.cloned(),
            source: before.map_or(source, |before| before.source),
            is_in_force: false,
            said_at_ms: before.and_then(|before| before.said_at_ms),
            held: Some(Held {
                rate: rate.clone(),
                source,
                other: other.cloned(),
                since_ms: held_before.map_or(now_ms, |held| held.since_ms),
            }),
            settled,
        }
    }
}

/// Providers that change what they give every day must not fill the memory with what they gave once.
fn forget_excess(entries: &mut BTreeMap<String, Entry>) {
    let excess = entries.len().saturating_sub(RATES_MAX);
    if excess > 0 {
        let is_out = |entry: &Entry| !entry.is_in_force && entry.held.is_none();
        let out = entries.iter().filter(|(_, entry)| is_out(entry));
        let out: Vec<String> = out.map(|(code, _)| code.clone()).take(excess).collect();
        for code in &out {
            entries.remove(code);
        }
    }
}

fn read_entry(text: &str) -> Option<Entry> {
    let mut words = text.split(' ');
    let trusted = Decimal::parse(words.next()?).ok().filter(Decimal::is_positive)?;
    let source = words.next().map_or(Some(Source::Operator), Source::parse)?;
    let is_in_force = match words.next() {
        None => true,
        Some("out") => false,
        Some(_) => return None,
    };
    words.next().is_none().then_some(Entry {
        trusted: Some(trusted),
        source,
        is_in_force,
        said_at_ms: None,
        held: None,
        settled: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    /// `ABC=1.5`, separated by blanks.
    fn map(words: &str) -> BTreeMap<String, Decimal> {
        let pairs = words.split_whitespace().map(|word| word.split_once('=').unwrap());
        pairs.map(|(code, rate)| (code.to_owned(), decimal(rate))).collect()
    }

    /// What a provider answered: rates, `fails`, or `-` if it is not polled.
    fn result(words: &str) -> Option<Result<Answer, PollError>> {
        match words {
            "-" => None,
            "fails" => Some(Err(PollError::Late)),
            rates => Some(Ok(Answer {
                rates: map(rates),
                ..Answer::default()
            })),
        }
    }

    fn show(desk: &Desk) -> String {
        let show = |(code, entry): (&str, &Entry)| {
            let trusted = entry.trusted.as_ref().map_or("-".to_owned(), ToString::to_string);
            let source = match entry.source {
                Source::Operator => "o",
                Source::Provider => "1",
                Source::SecondProvider => "2",
            };
            let held = entry.held.as_ref().map_or(String::new(), |held| {
                let other = held.other.as_ref().map_or(String::new(), |other| format!("|{other}"));
                format!("?{}{other}", held.rate)
            });
            format!("{code}={trusted}{held}@{source}:{}", desk.state(entry).as_str())
        };
        desk.entries().map(show).collect::<Vec<_>>().join(" ")
    }

    fn show_events(events: &[Event]) -> String {
        let name = |source: &Source| source.as_str();
        let show = |event: &Event| match event {
            Event::Answers { source, rates } => format!("{} answers {rates}", name(source)),
            Event::Fails { source, .. } => format!("{} fails", name(source)),
            Event::Dropped { source, .. } => format!("{} dropped", name(source)),
            Event::Skips { source, count, .. } => format!("{} skips {count}", name(source)),
            Event::Held { codes } => format!("held {}", codes.join(" ")),
            Event::Released { codes } => format!("released {}", codes.join(" ")),
        };
        events.iter().map(show).collect::<Vec<_>>().join(", ")
    }

    /// One event per line, and what stands after it:
    /// `poll FIRST; SECOND`, `set RATES`, `confirm CODE[=RATE]...`, `restart`. Behind `!` what an operator hears.
    fn check(two: bool, failures_max: u32, max_change: &str, table: &str) {
        let follow = |desk: &mut Desk| {
            let max_change = Decimal::parse(max_change).ok();
            desk.follow([Some("URL"), two.then_some("URL")], failures_max, max_change)
        };
        let mut desk = Desk::default();
        follow(&mut desk);
        let mut now_ms = 0;
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            now_ms += 1_000;
            let (event, expected) = line.split_once("->").unwrap_or_else(|| panic!("{line}"));
            let (word, rest) = event.trim().split_once(' ').unwrap_or((event.trim(), ""));
            let mut heard = String::new();
            match word {
                "poll" => {
                    let (first, second) = rest.split_once(';').unwrap_or((rest, "-"));
                    let round = [result(first.trim()), result(second.trim())];
                    heard = show_events(&desk.take_round(now_ms, round));
                }
                "set" => desk.replace(now_ms, &Rates::new(map(rest)).unwrap()),
                "confirm" => {
                    let codes = rest.split_whitespace().map(|word| match word.split_once('=') {
                        Some((code, rate)) => (code.into(), Some(decimal(rate))),
                        None => (word.into(), None),
                    });
                    if let Err(error) = desk.confirm(&codes.collect()) {
                        heard = match error {
                            CannotConfirm::Unknown { code } => format!("unknown {code}"),
                            CannotConfirm::NotHeld { code } => format!("not held {code}"),
                            CannotConfirm::Moved { code, held } => format!("moved {code} {held}"),
                        };
                    }
                }
                "restart" => {
                    desk = Desk::restore(&desk.stored()).unwrap();
                    heard = match follow(&mut desk) {
                        0 => String::new(),
                        orphans => format!("{orphans} orphans"),
                    };
                }
                _ => panic!("{line}"),
            }
            let (expected, expected_heard) = expected.split_once('!').unwrap_or((expected, ""));
            assert_eq!(show(&desk), expected.trim(), "{line}");
            assert_eq!(heard, expected_heard.trim(), "{line}");
            let again = Desk::restore(&desk.stored()).unwrap();
            assert_eq!(again.rates(), desk.rates(), "what is kept is what is in force: {line}");
        }
    }

    #[test]
    fn one_provider() {
        check(
            false,
            2,
            "-",
            "set OP=5                -> OP=5@o:fresh
             restart                 -> OP=5@o:fresh
             poll fails              -> OP=5@o:fresh ! provider fails
             poll A=1 B=2            -> A=1@1:fresh B=2@1:fresh OP=5@o:dropped ! provider answers 2
             poll A=1 B=2            -> A=1@1:fresh B=2@1:fresh OP=5@o:dropped
             poll A=100 C=3          -> A=100@1:fresh B=2@1:dropped C=3@1:fresh OP=5@o:dropped
             set A=7                 -> A=7@o:fresh
             poll fails              -> A=7@o:fresh ! provider fails
             poll fails              -> A=7@o:fresh
             poll fails              -> A=7@o:fresh ! provider dropped
             poll fails              -> A=7@o:fresh
             poll A=1                -> A=1@1:fresh ! provider answers 1
             poll fails              -> A=1@1:stale ! provider fails
             poll fails              -> A=1@1:stale
             restart                 -> A=1@1:stale
             poll fails              -> A=1@1:stale ! provider fails
             poll fails              -> A=1@1:stale
             poll fails              -> A=1@1:dropped ! provider dropped
             restart                 -> A=1@1:dropped
             poll A=9                -> A=9@1:fresh ! provider answers 1
             confirm A               -> A=9@1:fresh ! not held A
             confirm B               -> A=9@1:fresh ! unknown B",
        );
        check(
            false,
            0,
            "-",
            "poll A=1                -> A=1@1:fresh ! provider answers 1
             poll fails              -> A=1@1:dropped ! provider dropped
             poll A=1                -> A=1@1:fresh ! provider answers 1",
        );
    }

    #[test]
    fn a_step_is_held_until_it_is_confirmed_or_taken_back() {
        check(
            false,
            1,
            "0.2",
            "poll A=2 B=4            -> A=2@1:fresh B=4@1:fresh ! provider answers 2
             poll A=2.4 B=4          -> A=2.4@1:fresh B=4@1:fresh
             poll A=2 B=0.25         -> A=2@1:fresh B=4?0.25@1:held ! held B
             poll A=2 B=0.26         -> A=2@1:fresh B=4?0.26@1:held
             confirm B=4             -> A=2@1:fresh B=4?0.26@1:held ! moved B 0.26
             confirm A B             -> A=2@1:fresh B=4?0.26@1:held ! not held A
             poll fails              -> A=2@1:stale B=4?0.26@1:held ! provider fails
             poll A=2 B=3.9          -> A=2@1:fresh B=3.9@1:fresh ! provider answers 2, released B
             poll A=2 B=0.25         -> A=2@1:fresh B=3.9?0.25@1:held ! held B
             restart                 -> A=2@1:stale B=3.9@1:dropped
             poll A=2 B=0.25         -> A=2@1:fresh B=3.9?0.25@1:held ! provider answers 2, held B
             confirm B=0.26          -> A=2@1:fresh B=0.25@1:fresh
             poll A=2 B=0.26         -> A=2@1:fresh B=0.26@1:fresh
             poll A=0.5 B=0.26       -> A=2?0.5@1:held B=0.26@1:fresh ! held A
             set A=0.6               -> A=0.6@o:fresh
             poll A=0.5 B=3          -> A=0.5@1:fresh B=3@1:fresh
             set A=2                 -> A=2@o:fresh
             poll A=0.5              -> A=2?0.5@o:held ! held A
             confirm A               -> A=0.5@1:fresh
             poll fails              -> A=0.5@1:stale ! provider fails
             poll fails              -> A=0.5@1:dropped ! provider dropped
             poll A=5                -> A=0.5?5@1:held ! provider answers 1, held A
             poll B=1                -> A=0.5@1:dropped B=1@1:fresh
             poll A=0.5 B=1          -> A=0.5@1:fresh B=1@1:fresh",
        );
    }

    #[test]
    fn a_second_provider() {
        check(
            true,
            1,
            "-",
            "poll A=1 B=2; A=1.5 C=3 -> A=1@1:fresh B=2@1:fresh C=3@2:fresh ! provider answers 2, second_provider answers 2
             poll fails; A=1.5 C=3   -> A=1.5@2:fresh B=2@1:stale C=3@2:fresh ! provider fails
             poll fails; A=1.6 C=3   -> A=1.6@2:fresh B=2@1:dropped C=3@2:fresh ! provider dropped
             poll A=1 B=2; fails     -> A=1@1:fresh B=2@1:fresh C=3@2:stale ! provider answers 2, second_provider fails
             poll fails; fails       -> A=1@1:stale B=2@1:stale C=3@2:dropped ! provider fails, second_provider dropped
             poll fails; A=9         -> A=9@2:fresh B=2@1:dropped C=3@2:dropped ! provider dropped, second_provider answers 1
             restart                 -> A=9@2:stale B=2@1:dropped C=3@2:dropped
             poll fails; fails       -> A=9@2:stale B=2@1:dropped C=3@2:dropped ! provider fails, second_provider fails
             poll A=1 B=2; fails     -> A=1@1:fresh B=2@1:fresh C=3@2:dropped ! provider answers 2, second_provider dropped",
        );
    }

    #[test]
    fn two_providers_that_disagree() {
        check(
            true,
            1,
            "0.2",
            "poll A=4; A=4.5         -> A=4@1:fresh ! provider answers 1, second_provider answers 1
             poll A=0.25; A=4        -> A=4?0.25|4@1:held ! held A
             poll A=4; A=4           -> A=4@1:fresh ! released A
             poll A=4; A=0.25        -> A=4?4|0.25@1:held ! held A
             confirm A=1             -> A=4?4|0.25@1:held ! moved A 4 or 0.25
             confirm A=4             -> A=4@1:fresh
             poll A=4.1; A=0.25      -> A=4.1@1:fresh
             poll A=9; A=0.25        -> A=4.1?9@1:held ! held A
             poll A=4.1; A=4.1       -> A=4.1@1:fresh ! released A
             poll A=4.1; A=0.25      -> A=4.1?4.1|0.25@1:held ! held A
             confirm A=0.26          -> A=0.25@2:fresh
             poll A=4.1; A=0.25      -> A=0.25@2:fresh
             restart                 -> A=0.25@2:stale
             poll A=4.1; A=0.25      -> A=0.25?4.1|0.25@2:held ! provider answers 1, second_provider answers 1, held A
             set A=0.25              -> A=0.25@o:fresh
             poll A=4.1; A=0.25      -> A=0.25@2:fresh
             poll fails; A=0.25      -> A=0.25@2:fresh ! provider fails
             poll A=4; fails         -> A=0.25?4@2:held ! provider answers 1, second_provider fails, held A",
        );
        check(
            true,
            1,
            "0.2",
            "poll A=4; A=0.25        -> A=-?4|0.25@1:held ! provider answers 1, second_provider answers 1, held A
             restart                 ->
             poll A=4; A=0.25        -> A=-?4|0.25@1:held ! provider answers 1, second_provider answers 1, held A
             confirm A               -> A=4@1:fresh",
        );
    }

    #[test]
    fn rates_of_a_provider_that_is_gone() {
        let mut desk = Desk::default();
        desk.follow([Some("URL"), Some("URL")], 1, None);
        desk.take_round(1, [result("A=1"), result("B=2")]);
        let mut again = Desk::restore(&desk.stored()).unwrap();
        assert_eq!(again.follow([Some("URL"), None], 0, None), 1);
        assert_eq!(show(&again), "A=1@1:stale B=2@2:stale");
        again.take_round(2, [result("fails"), None]);
        assert_eq!(
            show(&again),
            "A=1@1:dropped B=2@2:stale",
            "nobody says that it is wrong"
        );
        again.take_round(3, [result("A=1"), None]);
        assert_eq!(show(&again), "A=1@1:fresh B=2@2:dropped");
    }

    #[test]
    fn records() {
        for (text, expected) in [
            ("2.517", Some("A=2.517@o:fresh")),
            ("2.517 provider", Some("A=2.517@1:stale")),
            ("2.517 second_provider out", Some("A=2.517@2:dropped")),
            ("5e-7 operator out", Some("A=5e-7@o:dropped")),
            ("", None),
            ("0", None),
            ("-1", None),
            ("x", None),
            ("1 nobody", None),
            ("1 provider in", None),
            ("1 provider out x", None),
            ("1  provider", None),
        ] {
            let texts = vec![("A".into(), text.into())];
            let desk = Desk::restore(&texts);
            assert_eq!(desk.as_ref().ok().map(show).as_deref(), expected, "{text}");
            if let Ok(desk) = desk {
                assert_eq!(desk.stored(), texts);
            }
        }
    }

    #[test]
    fn what_is_out_does_not_pile_up() {
        let numbered = |first: usize| {
            let rates = (first..first + RATES_MAX / 2).map(|number| (number.to_string(), decimal("1")));
            Some(Ok(Answer {
                rates: rates.collect(),
                ..Answer::default()
            }))
        };
        let mut desk = Desk::default();
        desk.follow([Some("URL"), Some("URL")], 1, None);
        for round in 0..4 {
            let first = round * RATES_MAX;
            desk.take_round(1, [numbered(first), numbered(first + RATES_MAX / 2)]);
            assert_eq!(desk.rates().len(), RATES_MAX);
            assert_eq!(
                desk.stored().len(),
                RATES_MAX,
                "of the earlier ones there is no room for any"
            );
        }
    }
}
