//! Tells one neighbour our routes: what is new since it last heard, and that we are there.
//!
//! Owns how far the neighbour has heard the [`Log`], when it hears more, and how much at once (protocols.md 8.6).
//! Leaves what is told to the log.
//! Always: one update is under way at a time, and the next begins where the last fulfilled one ended; updates are
//! [`PAUSE_MS`] apart, whatever the neighbour asks for, and none is longer than [`UPDATE_DATA_BYTES_MAX`].

use super::log::{Saying, table_after};
use super::{Answer, Log, Neighbour, PATH_BYTES_MAX, Refusal};
use crate::ledger::account::RoutingRelation;
use crate::wire::address::ADDRESS_BYTES_MAX;
use crate::wire::ccp::{Control, Mode, NO_TABLE, NewRoute, TableId, UpdateHead, UpdateWriter, route_bytes_max};
use crate::wire::packet::DATA_BYTES_MAX;
use crate::wire::timestamp::Timestamp;

/// From one update to the next when there is nothing new, unless the operator wants another interval.
pub const INTERVAL_MS: u32 = 30_000;

/// Between two updates, in any case.
const PAUSE_MS: u64 = 150;
/// Without an answer for so long, an update is lost.
const LOST_AFTER_MS: u64 = 30_000;
/// After an update that was lost or refused for a while: the first, the second ... pause.
const RETRY_MS: [u64; 4] = [5_000, 10_000, 20_000, 30_000];
/// Refusals in a row that mean: this neighbour takes no routes from us.
const REFUSALS_MAX: u32 = 2;
/// Prefixes in one update: what a widely used node sends, and all nodes therefore take.
const PREFIXES_MAX: usize = 50;
/// Entries of the log looked at for one update: a neighbour that may know little of a long log hears empty updates for
/// the rest, and no poll takes long.
const SCANNED_MAX: usize = 10_000;
/// Bytes of one update, with room below the limit of packets for what operators set lower.
const UPDATE_DATA_BYTES_MAX: usize = 30_000;
const _: () = assert!(UPDATE_DATA_BYTES_MAX <= DATA_BYTES_MAX);
const _: () = assert!(
    route_bytes_max(ADDRESS_BYTES_MAX, ADDRESS_BYTES_MAX, PATH_BYTES_MAX) + 2 * ADDRESS_BYTES_MAX
        <= UPDATE_DATA_BYTES_MAX,
    "every route fits into an update, so none can hold up the others"
);

/// An update without an answer.
struct InFlight {
    request: u32,
    to_epoch: u32,
    lost_at: Timestamp,
}

/// Tells one neighbour our routes.
pub struct Speaker {
    neighbour: Neighbour,
    interval_ms: u32,
    is_up: bool,
    /// The neighbour wants routes, as far as we know.
    is_wanted: bool,
    /// It asked, or the link is new: it hears something now even if nothing is new.
    is_asked: bool,
    /// What it has heard: this table, up to this epoch.
    table_id: TableId,
    epoch: u32,
    /// The table of the log that this is. It has another id for a neighbour that began anew.
    log_table_id: TableId,
    /// How much the log had forgotten when the table began.
    mark: u32,
    in_flight: Option<InFlight>,
    sent_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    /// In a row.
    failures: usize,
    refusals: u32,
    next_request: u32,
}

impl Speaker {
    /// For a neighbour whose link is down.
    pub fn new(neighbour: Neighbour, interval_ms: u32) -> Self {
        Self {
            neighbour,
            interval_ms,
            is_up: false,
            is_wanted: false,
            is_asked: false,
            table_id: NO_TABLE,
            epoch: 0,
            log_table_id: NO_TABLE,
            mark: 0,
            in_flight: None,
            sent_at: None,
            retry_at: None,
            failures: 0,
            refusals: 0,
            next_request: 1,
        }
    }

    // Getters.

    /// Whether the neighbour wants routes, as far as we know.
    pub const fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// How far the neighbour has heard the table of `log`.
    pub fn epoch(&self, log: &Log) -> u32 {
        if self.log_table_id == log.table_id() {
            self.epoch
        } else {
            0
        }
    }

    /// When to call [`Self::poll_update`] again, if nothing happens before; in the past if now. `None`: not before a
    /// request or a new link.
    pub fn next_wakeup(&self, log: &Log) -> Option<Timestamp> {
        if !self.is_up || !self.is_wanted {
            return None;
        }
        if let Some(in_flight) = &self.in_flight {
            return Some(in_flight.lost_at);
        }
        let since_sent = |ms| self.sent_at.map_or(Timestamp::default(), |at| at.plus_ms(ms));
        let has_news = self.is_asked || self.epoch(log) < log.epoch();
        let due = since_sent(if has_news {
            PAUSE_MS
        } else {
            u64::from(self.interval_ms).max(PAUSE_MS)
        });
        Some(self.retry_at.map_or(due, |retry_at| retry_at.max(since_sent(PAUSE_MS))))
    }

    // What happened.

    /// The link is up. A peer and a parent hear our routes unasked, because a widely used node asks its peers only when
    /// it starts; a child has to ask.
    pub fn handle_up(&mut self) {
        self.is_up = true;
        let is_asker = matches!(
            self.neighbour.relation,
            RoutingRelation::Child | RoutingRelation::NonRoutingAccount
        );
        if !is_asker && !self.is_wanted {
            self.begin_at(0);
        }
    }

    /// The link is down. What the neighbour has heard it may forget.
    pub fn handle_down(&mut self) {
        self.is_up = false;
        self.is_wanted = false;
        self.in_flight = None;
    }

    /// The neighbour asks for routes, or for none.
    pub fn handle_control(&mut self, control: &Control, log: &Log) -> Result<(), Refusal> {
        if self.neighbour.relation == RoutingRelation::NonRoutingAccount {
            return Err(Refusal::NotAllowed);
        }
        match control.mode {
            Mode::Idle => {
                self.is_wanted = false;
                self.in_flight = None;
            }
            Mode::Sync if control.table_id == self.table_id => self.begin_at(control.epoch.min(log.epoch())),
            Mode::Sync => self.begin_at(0),
        }
        Ok(())
    }

    /// The answer to an update. One to an update that is not under way (any more) is ignored.
    pub fn handle_answer(&mut self, now: Timestamp, request: u32, answer: Answer) {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.request == request) else {
            return;
        };
        if answer == Answer::Fulfilled {
            self.epoch = in_flight.to_epoch;
            self.failures = 0;
            self.refusals = 0;
            return;
        }
        self.is_asked = true; // the same again, even if it was empty
        self.refusals = if answer.is_refusal() { self.refusals + 1 } else { 0 };
        if self.refusals >= REFUSALS_MAX {
            self.is_wanted = false;
        }
        let pause = RETRY_MS[self.failures.min(RETRY_MS.len() - 1)];
        self.failures += 1;
        self.retry_at = Some(now.plus_ms(pause));
    }

    // What must go out.

    /// Appends the data of the update to send now to `data`, if there is one, and gives its number.
    pub fn poll_update(&mut self, now: Timestamp, log: &Log, data: &mut Vec<u8>) -> Option<u32> {
        if let Some(InFlight { request, lost_at, .. }) = self.in_flight
            && lost_at <= now
        {
            self.handle_answer(now, request, Answer::Missing);
        }
        if self.in_flight.is_some() || self.next_wakeup(log)? > now {
            return None;
        }
        if self.log_table_id != log.table_id() {
            self.log_table_id = log.table_id();
            self.begin_table(log, log.table_id());
        } else if log.has_lost(self.mark, self.epoch) {
            self.begin_table(log, table_after(&self.table_id, b"one"));
        }
        let to_epoch = self.write_update(log, data);
        let request = self.next_request;
        self.next_request = request.wrapping_add(1);
        self.in_flight = Some(InFlight {
            request,
            to_epoch,
            lost_at: now.plus_ms(LOST_AFTER_MS),
        });
        self.sent_at = Some(now);
        self.retry_at = None;
        self.is_asked = false;
        Some(request)
    }

    fn begin_table(&mut self, log: &Log, table_id: TableId) {
        self.table_id = table_id;
        self.mark = log.forgotten_before();
        self.epoch = 0;
    }

    fn begin_at(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.is_wanted = true;
        self.is_asked = true;
        self.in_flight = None;
        self.retry_at = None;
        self.failures = 0;
        self.refusals = 0;
    }

    /// Writes as much as fits, and says which epoch it reaches.
    fn write_update(&self, log: &Log, data: &mut Vec<u8>) -> u32 {
        let speaker = log.own();
        let mut writer = UpdateWriter::new(speaker);
        let mut to_epoch = log.epoch();
        let sayings = log.sayings_from(self.epoch, &self.neighbour);
        for (scanned, (epoch, saying)) in sayings.enumerate() {
            let (prefix_bytes, path_bytes) = match &saying {
                Saying::Announce { prefix, path, .. } => (prefix.len(), path.byte_len()),
                Saying::Withdraw { prefix } => (prefix.len(), 0),
                Saying::Nothing => (0, 0),
            };
            let bytes = route_bytes_max(prefix_bytes, speaker.as_bytes().len(), path_bytes);
            let is_full = writer.len() == PREFIXES_MAX || writer.data_bytes() + bytes > UPDATE_DATA_BYTES_MAX;
            if is_full || scanned == SCANNED_MAX {
                to_epoch = epoch;
                break;
            }
            match saying {
                Saying::Announce { prefix, path, auth } => writer.announce(&NewRoute {
                    prefix,
                    path: path.texts(),
                    auth,
                }),
                Saying::Withdraw { prefix } => writer.withdraw(prefix),
                Saying::Nothing => {}
            }
        }
        let head = UpdateHead {
            table_id: self.table_id,
            current_epoch: log.epoch(),
            from_epoch: self.epoch,
            to_epoch,
            // One update may be late by half an interval.
            hold_down_ms: self.interval_ms.saturating_add(self.interval_ms / 2),
            speaker,
        };
        writer.finish(&head, data);
        to_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Learned, LogLimits, NextHop, Path};
    use super::*;
    use crate::ledger::account::AccountId;
    use crate::wire::address::Address;
    use crate::wire::ccp::Update;
    use crate::wire::packet::ErrorCode;

    fn log(routes: usize) -> Log {
        let mut log = Log::new(Address::from_static("test.me"), [7; 16], &[1; 32], LogLimits::default());
        for number in 0..routes {
            announce(&mut log, &format!("test.{number:04}"));
        }
        log
    }

    fn announce(log: &mut Log, prefix: &str) {
        let next_hop = NextHop {
            account: AccountId::new(2),
            relation: RoutingRelation::Peer,
        };
        assert!(log.announce(&prefix.into(), next_hop, None));
    }

    fn speaker(relation: RoutingRelation) -> Speaker {
        let neighbour = Neighbour {
            account: AccountId::new(1),
            relation,
            address: "test.bob".into(),
        };
        Speaker::new(neighbour, INTERVAL_MS)
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    fn sync(table_id: TableId, epoch: u32) -> Control {
        Control {
            mode: Mode::Sync,
            table_id,
            epoch,
        }
    }

    /// The number of the update that is sent now, and `from-to +new -withdrawn`.
    fn poll(speaker: &mut Speaker, log: &Log, ms: u64) -> Option<(u32, String)> {
        let mut data = Vec::new();
        let request = speaker.poll_update(at(ms), log, &mut data)?;
        let update = Update::parse(&data).unwrap();
        assert!(data.len() <= UPDATE_DATA_BYTES_MAX);
        assert_eq!(update.head.table_id, speaker.table_id);
        assert_eq!(update.head.current_epoch, log.epoch());
        assert_eq!(update.head.hold_down_ms, 45_000);
        let (from, to) = (update.head.from_epoch, update.head.to_epoch);
        let (new, withdrawn) = (update.new_routes.len(), update.withdrawn.len());
        Some((request, format!("{from}-{to} +{new} -{withdrawn}")))
    }

    /// The same, fulfilled at once; empty if nothing is sent.
    fn tell(speaker: &mut Speaker, log: &Log, ms: u64) -> String {
        let Some((request, shown)) = poll(speaker, log, ms) else {
            return String::new();
        };
        speaker.handle_answer(at(ms), request, Answer::Fulfilled);
        shown
    }

    #[test]
    fn a_table_is_told_in_parts_and_then_kept_up_to_date() {
        let mut log = log(120);
        let mut speaker = speaker(RoutingRelation::Peer);
        assert_eq!(tell(&mut speaker, &log, 0), "", "the link is down");
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log, 0), "0-50 +50 -0");
        assert_eq!(tell(&mut speaker, &log, 149), "");
        assert_eq!(tell(&mut speaker, &log, 150), "50-100 +50 -0");
        assert_eq!(tell(&mut speaker, &log, 300), "100-121 +21 -0");
        assert_eq!(speaker.next_wakeup(&log), Some(at(30_300)));
        assert_eq!(tell(&mut speaker, &log, 30_299), "");
        assert_eq!(tell(&mut speaker, &log, 30_300), "121-121 +0 -0");
        log.withdraw(&"test.0003".into());
        announce(&mut log, "test.new");
        assert_eq!(tell(&mut speaker, &log, 30_400), "", "a moment later");
        assert_eq!(tell(&mut speaker, &log, 30_450), "121-123 +1 -1");
        assert_eq!(speaker.epoch(&log), log.epoch());
    }

    #[test]
    fn who_is_told_unasked() {
        let log = log(1);
        for (relation, unasked, asked) in [
            (RoutingRelation::Peer, true, true),
            (RoutingRelation::Parent, true, true),
            (RoutingRelation::Child, false, true),
            (RoutingRelation::NonRoutingAccount, false, false),
        ] {
            let mut speaker = speaker(relation);
            speaker.handle_up();
            assert_eq!(poll(&mut speaker, &log, 0).is_some(), unasked, "{relation:?}");
            let result = speaker.handle_control(&sync(NO_TABLE, 0), &log);
            assert_eq!(result.is_ok(), asked, "{relation:?}");
            assert_eq!(poll(&mut speaker, &log, 1_000).is_some(), asked, "{relation:?}");
        }
        // A child may ask before the node knows that the link is up.
        let mut speaker = speaker(RoutingRelation::Child);
        speaker.handle_control(&sync(NO_TABLE, 0), &log).unwrap();
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log, 0), "0-2 +2 -0");
        speaker.handle_down();
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log, 1_000), "", "it has to ask on every link");
        // What it knows it need not hear again.
        speaker.handle_control(&sync([7; 16], 1), &log).unwrap();
        assert_eq!(tell(&mut speaker, &log, 1_000), "1-2 +1 -0");
    }

    #[test]
    fn a_request_says_where_to_begin() {
        let log = log(9);
        let mut speaker = speaker(RoutingRelation::Peer);
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log, 0), "0-10 +10 -0");
        for (second, (table_id, epoch, expected)) in (1..).zip([
            ([7; 16], 4, "4-10 +6 -0"),
            ([7; 16], 10, "10-10 +0 -0"),
            ([7; 16], 99, "10-10 +0 -0"),
            ([8; 16], 4, "0-10 +10 -0"),
            (NO_TABLE, 0, "0-10 +10 -0"),
        ]) {
            speaker.handle_control(&sync(table_id, epoch), &log).unwrap();
            assert_eq!(tell(&mut speaker, &log, second * 1_000), expected);
        }
        let idle = Control {
            mode: Mode::Idle,
            ..sync(NO_TABLE, 0)
        };
        speaker.handle_control(&idle, &log).unwrap();
        assert_eq!(speaker.next_wakeup(&log), None);
        assert_eq!(tell(&mut speaker, &log, 100_000), "");
    }

    #[test]
    fn requests_do_not_make_updates_more_frequent() {
        let log = log(9);
        let mut speaker = speaker(RoutingRelation::Peer);
        speaker.handle_up();
        let mut updates = 0;
        for ms in 0..3_000 {
            speaker.handle_control(&sync(NO_TABLE, 0), &log).unwrap();
            updates += u64::from(poll(&mut speaker, &log, ms).is_some());
        }
        assert_eq!(updates, 3_000 / PAUSE_MS);
    }

    #[test]
    fn what_was_lost_is_told_again_after_growing_pauses() {
        let log = log(3);
        let mut speaker = speaker(RoutingRelation::Peer);
        speaker.handle_up();
        let mut now = 0;
        for pause in [5_000, 10_000, 20_000, 30_000, 30_000] {
            let (request, shown) = poll(&mut speaker, &log, now).unwrap();
            assert_eq!(shown, "0-4 +4 -0");
            speaker.handle_answer(at(now), request + 1, Answer::Fulfilled); // of another
            assert_eq!(speaker.epoch(&log), 0);
            speaker.handle_answer(at(now), request, Answer::Rejected(ErrorCode::T05_RATE_LIMITED));
            now += pause;
            assert_eq!(speaker.next_wakeup(&log), Some(at(now)));
        }
        // No answer at all: noticed after 30 s, and the pauses go on.
        let (late, _) = poll(&mut speaker, &log, now).unwrap();
        now += LOST_AFTER_MS;
        assert_eq!(speaker.next_wakeup(&log), Some(at(now)));
        assert_eq!(poll(&mut speaker, &log, now), None);
        now += 30_000;
        assert_eq!(speaker.next_wakeup(&log), Some(at(now)));
        let (request, _) = poll(&mut speaker, &log, now).unwrap();
        speaker.handle_answer(at(now), late, Answer::Rejected(ErrorCode::F00_BAD_REQUEST));
        speaker.handle_answer(at(now), request, Answer::Fulfilled);
        assert_eq!(speaker.epoch(&log), 4);
    }

    #[test]
    fn two_refusals_end_it() {
        let log = log(3);
        let refused = Answer::Rejected(ErrorCode::F00_BAD_REQUEST);
        let mut speaker = speaker(RoutingRelation::Parent);
        speaker.handle_up();
        for now in [0, 10_000] {
            let (request, _) = poll(&mut speaker, &log, now).unwrap();
            speaker.handle_answer(at(now), request, refused);
        }
        assert_eq!(speaker.next_wakeup(&log), None);
        speaker.handle_down();
        speaker.handle_up();
        let (request, _) = poll(&mut speaker, &log, 20_000).unwrap();
        speaker.handle_answer(at(20_000), request, refused);
        speaker.handle_control(&sync(NO_TABLE, 0), &log).unwrap();
        assert_eq!(tell(&mut speaker, &log, 20_150), "0-4 +1 -0");
    }

    #[test]
    fn another_table_is_told_from_its_beginning() {
        let mut speaker = speaker(RoutingRelation::Peer);
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log(3), 0), "0-4 +4 -0");
        let other = Log::new(Address::from_static("test.me"), [8; 16], &[1; 32], LogLimits::default());
        let (request, shown) = poll(&mut speaker, &other, 1_000).unwrap();
        assert_eq!(shown, "0-1 +1 -0");
        // The answer to an update of a table that is no more moves nothing in the new one.
        let third = Log::new(Address::from_static("test.me"), [9; 16], &[1; 32], LogLimits::default());
        speaker.handle_answer(at(1_000), request, Answer::Fulfilled);
        assert_eq!(speaker.epoch(&third), 0);
        assert_eq!(tell(&mut speaker, &third, 2_000), "0-1 +1 -0");
    }

    #[test]
    fn only_who_missed_forgotten_withdrawals_begins_anew() {
        let limits = LogLimits {
            withdrawn_spare: 10,
            ..LogLimits::default()
        };
        let mut log = Log::new(Address::from_static("test.me"), [7; 16], &[1; 32], limits);
        let [mut quick, mut slow, mut back] = [(); 3].map(|()| speaker(RoutingRelation::Peer));
        for speaker in [&mut quick, &mut slow, &mut back] {
            speaker.handle_up();
            assert_eq!(tell(speaker, &log, 0), "0-1 +1 -0");
        }
        for number in 0..20 {
            let prefix = format!("test.{number}");
            announce(&mut log, &prefix);
            log.withdraw(&(&*prefix).into());
            tell(&mut quick, &log, 1_000 * (number + 1));
            tell(&mut back, &log, 1_000 * (number + 1));
        }
        let begun_anew = table_after(&[7; 16], b"one");
        assert_eq!(tell(&mut quick, &log, 60_000), "41-41 +0 -0");
        assert_eq!(quick.table_id, [7; 16]);
        back.handle_control(&sync([7; 16], 1), &log).unwrap();
        for speaker in [&mut slow, &mut back] {
            let (request, shown) = poll(speaker, &log, 60_000).unwrap();
            assert!(shown.starts_with("0-41 +1 -"), "{shown}");
            assert_eq!(speaker.table_id, begun_anew);
            speaker.handle_answer(at(60_000), request, Answer::Fulfilled);
            // Once: the new table has lost nothing.
            speaker.handle_control(&sync(begun_anew, 2), &log).unwrap();
            assert!(tell(speaker, &log, 61_000).starts_with("2-41 +0 -"));
            assert_eq!(speaker.table_id, begun_anew);
        }
    }

    #[test]
    fn updates_are_as_long_as_they_may_be() {
        let mut log = log(0);
        let hop = format!("test.{}", "h".repeat(1_000));
        let hops = [hop.as_bytes(); 4].map(|hop| Address::parse(hop).unwrap());
        let learned = Learned {
            path: Path::new(hops),
            auth: [0; 32],
        };
        let next_hop = NextHop {
            account: AccountId::new(2),
            relation: RoutingRelation::Peer,
        };
        for number in 0..20 {
            let prefix = format!("test.{number:02}{}", "p".repeat(1_000));
            assert!(log.announce(&prefix.into(), next_hop, Some(&learned)));
        }
        let mut speaker = speaker(RoutingRelation::Peer);
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log, 0), "0-6 +6 -0");
        assert_eq!(tell(&mut speaker, &log, 150), "6-11 +5 -0");
    }

    #[test]
    fn a_parent_hears_little_of_a_long_log() {
        let log = log(2 * SCANNED_MAX);
        let mut speaker = speaker(RoutingRelation::Parent);
        speaker.handle_up();
        assert_eq!(tell(&mut speaker, &log, 0), "0-10000 +1 -0");
        assert_eq!(tell(&mut speaker, &log, 150), "10000-20000 +0 -0");
        assert_eq!(tell(&mut speaker, &log, 300), "20000-20001 +0 -0");
    }
}
