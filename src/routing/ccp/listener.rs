//! Asks one neighbour for its routes, keeps those it believes, and says what changed.
//!
//! Owns what the neighbour has told, how far, and how long that is good (protocols.md 8.7). Leaves what to believe of a
//! single route to `filter`, and which of several routes is best to [`crate::routing::table`].
//! Always: what is kept is what was announced and not withdrawn; routes and their bytes, updates and prefixes per
//! second have limits; an update is applied whole or not at all; a neighbour is asked at most every [`ASK_PAUSE_MS`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::filter::{DROP_REASONS, DropReason, Filter, normalized};
use super::{Answer, Neighbour, PATH_BYTES_MAX, Path, Refusal};
use crate::ledger::account::RoutingRelation;
use crate::wire::address::ADDRESS_BYTES_MAX;
use crate::wire::ccp::{self, AUTH_BYTES, Control, Mode, NO_TABLE, Route, TableId, Update};
use crate::wire::timestamp::Timestamp;

/// Routes of one neighbour, unless the operator wants another limit. The limit of the node is the caller's.
pub const ROUTES_MAX: usize = 100_000;

/// Bytes of routes, for each route that may be kept: far more than routes have on average, and far less than the
/// longest.
const ROUTE_BYTES_AVERAGE_MAX: usize = 512;
/// What a route takes besides its texts.
const ROUTE_OVERHEAD_BYTES: usize = 96;
const ROUTE_BYTES_MAX: usize = ADDRESS_BYTES_MAX + PATH_BYTES_MAX + AUTH_BYTES + ROUTE_OVERHEAD_BYTES;

/// Between two questions.
const ASK_PAUSE_MS: u64 = 5_000;
/// Until the same question is asked again if nobody answers it.
const ASK_AGAIN_MS: u64 = 30_000;
/// How long a neighbour may be silent before it is asked, whatever it says itself. Routes are dropped when it was
/// silent for twice as long: a widely used node sends every 30 s and says that its routes are good for 30 s, so taking
/// it at its word would drop them all at each short delay.
const SILENCE_MS_MIN: u64 = 30_000;
/// Nobody's routes stay longer than 20 minutes after its last word.
const SILENCE_MS_MAX: u64 = 600_000;

/// Updates per second that a neighbour may send for long: three times as many as a [`super::Speaker`] does.
const UPDATES_PER_SECOND: u64 = 20;
/// Updates at once, after a silence.
const UPDATES_AT_ONCE: u64 = 40;
/// Prefixes per second that a neighbour may announce or withdraw for long: half as many again as a [`super::Speaker`]
/// does. Each may be a change that all our neighbours hear of.
const PREFIXES_PER_SECOND: u64 = 500;
/// Prefixes at once: twice all the routes that it may tell, for a node that starts again, and at least any two updates.
const PREFIXES_AT_ONCE_MIN: u64 = 2 * (ccp::ROUTES_MAX + ccp::WITHDRAWN_MAX) as u64;
/// And at most so many, whatever limit the operator sets: as many routes as a node has.
const PREFIXES_AT_ONCE_MAX: u64 = 1 << 20;

/// A route that a neighbour told and that we believe. Copies share the path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Learned {
    /// The neighbour is its first hop, if it wrote itself there.
    pub path: Path,
    /// As it was told. Nobody verifies it; it is hashed when the route is told on.
    pub auth: [u8; AUTH_BYTES],
}

/// What the neighbour's routes are now that they were not before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It leads to this prefix, or leads there another way.
    Announce { prefix: Arc<str>, learned: Learned },
    /// It leads there no more.
    Withdraw { prefix: Arc<str> },
}

/// What a listener depends on. A change of any field makes another listener; the one before is emptied with
/// [`Listener::forget`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerConfig {
    /// Our own address.
    pub own: Arc<str>,
    pub neighbour: Neighbour,
    /// Children may tell routes too.
    pub hears_children: bool,
    pub routes_max: usize,
}

/// How much of something a neighbour may still send: it saves up what it does not use.
struct Allowance {
    per_second: u64,
    at_once: u64,
    /// Thousandths.
    saved: u64,
    counted_at: Timestamp,
}

impl Allowance {
    fn new(per_second: u64, at_once: u64) -> Self {
        Self {
            per_second,
            at_once,
            saved: at_once * 1_000,
            counted_at: Timestamp::default(),
        }
    }

    fn has(&mut self, now: Timestamp, count: u64) -> bool {
        let passed_ms = now.as_millis().saturating_sub(self.counted_at.as_millis());
        let saved = self.saved.saturating_add(passed_ms.saturating_mul(self.per_second));
        self.saved = saved.min(self.at_once * 1_000);
        self.counted_at = now;
        self.saved >= count * 1_000
    }

    /// Of what it [has](Self::has).
    fn spend(&mut self, count: u64) {
        self.saved -= count * 1_000;
    }
}

/// Hears the routes of one neighbour.
pub struct Listener {
    filter: Filter,
    is_allowed: bool,
    routes_max: usize,

    routes: BTreeMap<Arc<str>, Learned>,
    route_bytes: usize,
    /// Since the table began, routes were left out for lack of room.
    is_cut: bool,
    dropped: [u64; DROP_REASONS.len()],

    /// What was heard: this table, up to this epoch.
    table_id: TableId,
    epoch: u32,
    /// Of the last update that was applied.
    heard_at: Option<Timestamp>,
    silence_ms: u64,
    updates_left: Allowance,
    prefixes_left: Allowance,

    is_up: bool,
    /// The neighbour said that it tells us nothing.
    is_refused: bool,
    ask_at: Option<Timestamp>,
    asked_at: Option<Timestamp>,
    in_flight: Option<u32>,
    next_request: u32,
}

impl Listener {
    /// For a neighbour whose link is down.
    pub fn new(config: ListenerConfig) -> Self {
        let ListenerConfig {
            own,
            neighbour,
            hears_children,
            routes_max,
        } = config;
        let relation = neighbour.relation;
        Self {
            filter: Filter::new(own, relation, neighbour.address),
            is_allowed: match relation {
                RoutingRelation::Parent | RoutingRelation::Peer => true,
                RoutingRelation::Child => hears_children,
                RoutingRelation::NonRoutingAccount => false,
            },
            routes_max,
            routes: BTreeMap::new(),
            route_bytes: 0,
            is_cut: false,
            dropped: [0; DROP_REASONS.len()],
            table_id: NO_TABLE,
            epoch: 0,
            heard_at: None,
            silence_ms: SILENCE_MS_MIN,
            updates_left: Allowance::new(UPDATES_PER_SECOND, UPDATES_AT_ONCE),
            prefixes_left: Allowance::new(
                PREFIXES_PER_SECOND,
                (routes_max as u64)
                    .saturating_mul(2)
                    .clamp(PREFIXES_AT_ONCE_MIN, PREFIXES_AT_ONCE_MAX),
            ),
            is_up: false,
            is_refused: false,
            ask_at: None,
            asked_at: None,
            in_flight: None,
            next_request: 1,
        }
    }

    // Getters.

    /// What the neighbour told of exactly this prefix.
    pub fn get(&self, prefix: &str) -> Option<&Learned> {
        self.routes.get(prefix)
    }

    /// Which table of the neighbour was heard, and from which epoch on it is to be asked for after a restart: from the
    /// first if routes were left out, for there may be room then.
    pub const fn heard(&self) -> (TableId, u32) {
        (self.table_id, if self.is_cut { 0 } else { self.epoch })
    }

    /// The routes that are kept, in the order of their prefixes.
    pub fn routes(&self) -> impl Iterator<Item = (&Arc<str>, &Learned)> {
        self.routes.iter()
    }

    pub fn len(&self) -> usize {
        self.routes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// How often a route was not believed for this reason.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// When to call [`Self::handle_time`] and [`Self::poll_control`] again, if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        [self.ask_due(), self.expires_at()].into_iter().flatten().min()
    }

    // What happened.

    /// The link is up: the neighbour is asked for routes.
    pub fn handle_up(&mut self, now: Timestamp) {
        self.is_up = true;
        self.is_refused = false;
        self.ask_at = Some(now);
        if self.is_cut {
            // There may be room by now for what was left out, and the neighbour will not tell it again by itself.
            self.is_cut = false;
            self.epoch = 0;
        }
    }

    /// The link is down. The routes stay as long as if the neighbour were silent, for it may be back at once.
    pub fn handle_down(&mut self) {
        self.is_up = false;
        self.ask_at = None;
        self.in_flight = None;
    }

    /// Time has passed. Drops all routes of a neighbour that has been silent too long.
    pub fn handle_time(&mut self, now: Timestamp) -> Vec<Change> {
        if self.expires_at().is_some_and(|at| at <= now) {
            self.forget()
        } else {
            Vec::new()
        }
    }

    /// An update. `room` is how many more routes the node may keep, of whatever neighbour.
    pub fn handle_update(&mut self, now: Timestamp, update: &Update<'_>, room: usize) -> Result<Vec<Change>, Refusal> {
        if !self.is_allowed {
            return Err(Refusal::NotAllowed);
        }
        let prefixes = (update.new_routes.len() + update.withdrawn.len()) as u64;
        if !self.updates_left.has(now, 1) || !self.prefixes_left.has(now, prefixes) {
            return Err(Refusal::TooMany);
        }
        // From here on the update is accepted: nothing below can fail.
        self.updates_left.spend(1);
        self.prefixes_left.spend(prefixes);
        let head = &update.head;
        let routes_max = self.routes_max.min(self.routes.len().saturating_add(room));
        let mut changes = Vec::new();
        if head.table_id != self.table_id {
            // It has started again. What it told before may be gone, and only this table will say.
            changes = self.forget();
            self.table_id = head.table_id;
        }
        if head.from_epoch > self.epoch {
            self.ask(now);
        } else if head.to_epoch >= self.epoch {
            self.apply(update, routes_max, &mut changes);
            self.epoch = head.to_epoch;
            self.heard_at = Some(now);
            self.silence_ms = u64::from(head.hold_down_ms).clamp(SILENCE_MS_MIN, SILENCE_MS_MAX);
        } // else it says what we know
        Ok(changes)
    }

    /// The answer to a question. One to a question that is not under way (any more) is ignored.
    pub fn handle_answer(&mut self, request: u32, answer: Answer) {
        if self.in_flight.take_if(|in_flight| *in_flight == request).is_none() {
            return;
        }
        if answer == Answer::Fulfilled {
            self.ask_at = None;
        } else if answer.is_refusal() {
            self.is_refused = true;
        } // else the question stays open
    }

    // Commands.

    /// Takes back what a listener before this one had heard and kept, by the rules of this one. The neighbour has the
    /// usual time to speak, and is asked for what follows. Gives the prefixes that are not believed any more. `room` is
    /// as in [`Self::handle_update`]. For a listener that has heard nothing yet.
    pub fn restore(
        &mut self,
        now: Timestamp,
        (table_id, epoch): (TableId, u32),
        routes: impl IntoIterator<Item = (Arc<str>, Learned)>,
        room: usize,
    ) -> Vec<Arc<str>> {
        debug_assert!(self.routes.is_empty() && self.table_id == NO_TABLE);
        let routes_max = self.routes_max.min(room);
        let mut refused = Vec::new();
        for (prefix, learned) in routes {
            let is_believed = self.is_allowed && self.filter.check_kept(&prefix, &learned.path).is_ok();
            let route_bytes = self.route_bytes + bytes_of(&prefix, &learned.path);
            let is_full = self.routes.len() >= routes_max || route_bytes > self.bytes_max();
            if !is_believed || is_full {
                self.is_cut |= is_believed;
                refused.push(prefix);
                continue;
            }
            self.route_bytes = route_bytes;
            self.routes.insert(prefix, learned);
        }
        (self.table_id, self.epoch) = (table_id, epoch);
        self.heard_at = Some(now);
        refused
    }

    /// Drops all routes, and asks for all of them when the neighbour speaks again.
    pub fn forget(&mut self) -> Vec<Change> {
        self.table_id = NO_TABLE;
        self.epoch = 0;
        self.heard_at = None;
        self.route_bytes = 0;
        self.is_cut = false;
        let prefixes = std::mem::take(&mut self.routes).into_keys();
        prefixes.map(|prefix| Change::Withdraw { prefix }).collect()
    }

    // What must go out.

    /// The question to ask now, if there is one, and its number.
    pub fn poll_control(&mut self, now: Timestamp) -> Option<(u32, Control)> {
        if self.ask_due()? > now {
            return None;
        }
        let request = self.next_request;
        self.next_request = request.wrapping_add(1);
        self.in_flight = Some(request);
        self.asked_at = Some(now);
        self.ask_at = Some(now.plus_ms(ASK_AGAIN_MS));
        let control = Control {
            mode: Mode::Sync,
            table_id: self.table_id,
            epoch: self.epoch,
        };
        Some((request, control))
    }

    fn ask(&mut self, now: Timestamp) {
        self.ask_at = Some(self.ask_at.map_or(now, |at| at.min(now)));
    }

    /// When the neighbour is asked: because we want to, or because it is silent.
    fn ask_due(&self) -> Option<Timestamp> {
        if !self.is_up || !self.is_allowed || self.is_refused {
            return None;
        }
        let last_word = self.heard_at.max(self.asked_at);
        let silent_at = last_word.map(|at| at.plus_ms(self.silence_ms));
        let due = [self.ask_at, silent_at].into_iter().flatten().min()?;
        let earliest = self.asked_at.map(|at| at.plus_ms(ASK_PAUSE_MS));
        Some(earliest.map_or(due, |earliest| earliest.max(due)))
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.heard_at.map(|at| at.plus_ms(2 * self.silence_ms))
    }

    fn apply(&mut self, update: &Update<'_>, routes_max: usize, changes: &mut Vec<Change>) {
        for prefix in update.withdrawn.iter().filter_map(normalized) {
            self.remove(prefix, changes);
        }
        for route in update.new_routes.iter() {
            let result = self.filter.check(&route);
            match result.and_then(|prefix| self.keep(prefix, &route, routes_max, changes)) {
                Ok(()) => {}
                Err(reason) => {
                    self.dropped[reason as usize] += 1;
                    self.is_cut |= reason == DropReason::Full;
                    // It took the place of another that is no more.
                    if let Some(prefix) = normalized(route.prefix) {
                        self.remove(prefix, changes);
                    }
                }
            }
        }
    }

    fn bytes_max(&self) -> usize {
        let average = self.routes_max.saturating_mul(ROUTE_BYTES_AVERAGE_MAX);
        average.max(ROUTE_BYTES_MAX)
    }

    fn keep(
        &mut self,
        prefix: &str,
        route: &Route<'_>,
        routes_max: usize,
        changes: &mut Vec<Change>,
    ) -> Result<(), DropReason> {
        let before = self.routes.get_key_value(prefix);
        let is_the_same =
            |(_, learned): (&Arc<str>, &Learned)| learned.path.texts() == route.path && learned.auth == *route.auth;
        if before.is_some_and(is_the_same) {
            return Ok(());
        }
        let bytes_before = before.map_or(0, |(_, learned)| bytes_of(prefix, &learned.path));
        let learned = Learned {
            path: Path::of_checked(route.path),
            auth: *route.auth,
        };
        let bytes = bytes_of(prefix, &learned.path);
        let route_bytes = self.route_bytes - bytes_before + bytes;
        if before.is_none() && self.routes.len() >= routes_max || route_bytes > self.bytes_max() {
            return Err(DropReason::Full);
        }
        let prefix: Arc<str> = before.map_or_else(|| prefix.into(), |(prefix, _)| Arc::clone(prefix));
        self.routes.insert(Arc::clone(&prefix), learned.clone());
        self.route_bytes = route_bytes;
        changes.push(Change::Announce { prefix, learned });
        Ok(())
    }

    fn remove(&mut self, prefix: &str, changes: &mut Vec<Change>) {
        if let Some((prefix, learned)) = self.routes.remove_entry(prefix) {
            self.route_bytes -= bytes_of(&prefix, &learned.path);
            changes.push(Change::Withdraw { prefix });
        }
    }
}

/// What a route counts against the limit of bytes.
fn bytes_of(prefix: &str, path: &Path) -> usize {
    prefix.len() + path.byte_len() + AUTH_BYTES + ROUTE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::account::AccountId;
    use crate::wire::address::Address;
    use crate::wire::ccp::{NewRoute, UpdateHead, UpdateWriter};
    use crate::wire::packet::ErrorCode;

    const BOB: Address<'static> = Address::from_static("test.bob");

    fn listener(relation: RoutingRelation, routes_max: usize) -> Listener {
        Listener::new(ListenerConfig {
            own: "test.me".into(),
            neighbour: Neighbour {
                account: AccountId::new(1),
                relation,
                address: BOB.as_str().into(),
            },
            hears_children: false,
            routes_max,
        })
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    /// `table from-to`, then `+prefix` and `-prefix`. A prefix may have a path: `+prefix/hop/hop`.
    fn update(text: &str) -> Vec<u8> {
        let mut words = text.split_whitespace();
        let table: u8 = words.next().unwrap().parse().unwrap();
        let (from, to) = words.next().unwrap().split_once('-').unwrap();
        let mut writer = UpdateWriter::new(BOB);
        for word in words {
            match word.split_at(1) {
                ("+", route) => {
                    let mut parts = route.split('/');
                    let prefix = parts.next().unwrap();
                    let path = Path::new(parts.map(|hop| Address::parse(hop.as_bytes()).unwrap()));
                    writer.announce(&NewRoute {
                        prefix,
                        path: path.texts(),
                        auth: &[0; 32],
                    });
                }
                ("-", prefix) => writer.withdraw(prefix),
                _ => panic!("{word}"),
            }
        }
        let head = UpdateHead {
            table_id: [table; 16],
            current_epoch: to.parse().unwrap(),
            from_epoch: from.parse().unwrap(),
            to_epoch: to.parse().unwrap(),
            hold_down_ms: 45_000,
            speaker: BOB,
        };
        let mut data = Vec::new();
        writer.finish(&head, &mut data);
        data
    }

    fn show(changes: &[Change]) -> String {
        let show = |change: &Change| match change {
            Change::Announce { prefix, .. } => format!("+{prefix}"),
            Change::Withdraw { prefix } => format!("-{prefix}"),
        };
        changes.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    fn hear(listener: &mut Listener, now: Timestamp, text: &str) -> String {
        let data = update(text);
        match listener.handle_update(now, &Update::parse(&data).unwrap(), usize::MAX) {
            Ok(changes) => show(&changes),
            Err(refusal) => format!("{refusal:?}"),
        }
    }

    /// One line per update, a second apart: `update = changes @epoch`, and `?` if the neighbour is asked then.
    fn check(listener: &mut Listener, lines: &str) {
        listener.handle_up(at(0));
        let (request, _) = listener.poll_control(at(0)).expect("a new link is asked");
        listener.handle_answer(request, Answer::Fulfilled);
        for (second, line) in (10..).step_by(10).zip(lines.lines()) {
            let (text, expected) = line.split_once('=').unwrap();
            let mut found = hear(listener, at(second * 1_000), text);
            found += &format!(" @{}", listener.epoch);
            if let Some((request, control)) = listener.poll_control(at(second * 1_000)) {
                assert_eq!((control.table_id, control.epoch), (listener.table_id, listener.epoch));
                listener.handle_answer(request, Answer::Fulfilled);
                found += " ?";
            }
            assert_eq!(found.trim(), expected.trim(), "{line}");
            let routes = listener.routes();
            let counted: usize = routes.map(|(prefix, learned)| bytes_of(prefix, &learned.path)).sum();
            assert_eq!(listener.route_bytes, counted, "{line}");
        }
    }

    #[test]
    fn what_was_kept_is_taken_back_as_far_as_it_is_believed() {
        let mut before = listener(RoutingRelation::Peer, 100);
        hear(
            &mut before,
            at(0),
            "1 0-4 +test.a +test.b/test.x +test.me2 +test.you.z/test.you",
        );
        assert_eq!(before.get("test.b").unwrap().path.len(), 2);
        assert_eq!(before.get("test.x"), None);
        let kept = || {
            before
                .routes()
                .map(|(prefix, learned)| (Arc::clone(prefix), learned.clone()))
        };
        let config = |own: &str, relation, routes_max| ListenerConfig {
            own: own.into(),
            neighbour: Neighbour {
                account: AccountId::new(1),
                relation,
                address: BOB.as_str().into(),
            },
            hears_children: false,
            routes_max,
        };
        use RoutingRelation::{Child, Peer};
        for (own, relation, routes_max, refused, epoch) in [
            ("test.me", Peer, 100, "", 4),
            ("test.me2", Peer, 100, "test.me2", 4),
            ("test.you", Peer, 100, "test.you.z", 4),
            ("test.x", Peer, 100, "test.b", 4),
            ("g.me", Peer, 100, "test.a test.b test.me2 test.you.z", 4),
            ("test.me", Child, 100, "test.a test.b test.me2 test.you.z", 4),
            // There may be room for the others later.
            ("test.me", Peer, 3, "test.you.z", 0),
        ] {
            let mut after = Listener::new(config(own, relation, routes_max));
            let found = after.restore(at(0), before.heard(), kept(), usize::MAX);
            assert_eq!(found.join(" "), refused, "{own} {relation:?}");
            assert_eq!(
                (after.heard(), after.len()),
                (([1; 16], epoch), 4 - found.len()),
                "{own}"
            );
            assert_eq!(after.handle_time(at(2 * SILENCE_MS_MIN - 1)), []);
            assert_eq!(
                after.handle_time(at(2 * SILENCE_MS_MIN)).len(),
                4 - found.len(),
                "{own}"
            );
        }
        let mut after = Listener::new(config("test.me", Peer, 100));
        let refused = after.restore(at(0), before.heard(), kept(), 1);
        assert_eq!(
            (refused.len(), after.len()),
            (3, 1),
            "there is no more room in the node"
        );
        // It goes on where it was.
        let mut after = Listener::new(config("test.me", Peer, 100));
        assert!(after.restore(at(0), before.heard(), kept(), 100).is_empty());
        assert_eq!(hear(&mut after, at(1), "1 4-5 -test.a"), "-test.a");
        assert_eq!(
            after.route_bytes + bytes_of("test.a", &before.get("test.a").unwrap().path),
            before.route_bytes
        );
    }

    #[test]
    fn updates_are_applied_where_they_fit() {
        check(
            &mut listener(RoutingRelation::Peer, 100),
            "1 0-2 +test.a +test.b        = +test.a +test.b @2
             1 0-2 +test.a +test.b        =  @2
             1 2-3 -test.a                = -test.a @3
             1 3-3                        =  @3
             1 4-5 +test.gap              =  @3 ?
             1 1-2 +test.a                =  @3
             1 1-5 -test.b +test.b +test.c = -test.b +test.b +test.c @5
             1 5-6 +test.c/test.x         = +test.c @6
             1 6-7 +test.c/test.me        = -test.c @7
             1 7-8 +test.me +g.x -g.y     =  @8
             2 0-1 +test.d                = -test.b +test.d @1
             3 1-2 +test.e                = -test.d @0 ?
             3 0-2 +test.e                = +test.e @2",
        );
    }

    #[test]
    fn what_is_not_believed_is_counted() {
        let mut listener = listener(RoutingRelation::Peer, 2);
        let routes = "1 0-9 +test.a +test.b +test.c +test +g.a +test.me.x +test.d/test.me";
        assert_eq!(hear(&mut listener, at(0), routes), "+test.a +test.b");
        for (reason, count) in DROP_REASONS.into_iter().zip([0, 1, 1, 1, 0, 0, 0, 1, 1]) {
            assert_eq!(listener.dropped(reason), count, "{reason:?}");
        }
        // One goes, one may come; and one that is there may change.
        assert_eq!(
            hear(&mut listener, at(0), "1 9-10 -test.a +test.b/test.x +test.c +test.d"),
            "-test.a +test.b +test.c"
        );
        // After a new link all is told again, because something was left out.
        listener.handle_up(at(1));
        assert_eq!(listener.poll_control(at(1)).unwrap().1.epoch, 0);
        assert_eq!(listener.len(), 2);
    }

    #[test]
    fn the_room_of_the_node_is_kept_to() {
        let mut listener = listener(RoutingRelation::Peer, 100);
        let data = update("1 0-1 +test.a +test.b +test.c");
        let changes = listener
            .handle_update(at(0), &Update::parse(&data).unwrap(), 2)
            .unwrap();
        assert_eq!(show(&changes), "+test.a +test.b");
        let data = update("1 1-2 -test.a +test.c +test.d");
        let changes = listener
            .handle_update(at(0), &Update::parse(&data).unwrap(), 0)
            .unwrap();
        assert_eq!(show(&changes), "-test.a +test.c");
    }

    #[test]
    fn long_paths_count_by_their_bytes() {
        let mut listener = listener(RoutingRelation::Peer, 20);
        let hop = format!("/test.{}", "x".repeat(1_000));
        for number in 0..20 {
            hear(
                &mut listener,
                at(number),
                &format!("1 {number}-{} +test.{number}{hop}{hop}", number + 1),
            );
        }
        assert_eq!(
            listener.len(),
            20 * ROUTE_BYTES_AVERAGE_MAX / (7 + 2 * 1_007 + 10 + 32 + 96)
        );
        assert!(listener.dropped(DropReason::Full) > 0);
        let counted: usize = listener
            .routes()
            .map(|(prefix, learned)| bytes_of(prefix, &learned.path))
            .sum();
        assert_eq!(listener.route_bytes, counted);
        listener.forget();
        assert_eq!((listener.route_bytes, listener.len()), (0, 0));
    }

    #[test]
    fn who_may_tell_routes() {
        for (relation, expected) in [
            (RoutingRelation::Parent, "+test.a"),
            (RoutingRelation::Peer, "+test.a"),
            (RoutingRelation::Child, "NotAllowed"),
            (RoutingRelation::NonRoutingAccount, "NotAllowed"),
        ] {
            let mut listener = listener(relation, 10);
            assert_eq!(hear(&mut listener, at(0), "1 0-1 +test.a"), expected);
            listener.handle_up(at(0));
            let is_asked = listener.poll_control(at(0)).is_some();
            assert_eq!(is_asked, expected != "NotAllowed", "{relation:?}");
        }
        assert_eq!(Refusal::NotAllowed.code(), ErrorCode::F00_BAD_REQUEST);
    }

    #[test]
    fn a_silent_neighbour_is_asked_and_then_forgotten() {
        let mut listener = listener(RoutingRelation::Peer, 10);
        listener.handle_up(at(0));
        let (request, _) = listener.poll_control(at(0)).unwrap();
        listener.handle_answer(request, Answer::Fulfilled);
        hear(&mut listener, at(0), "1 0-1 +test.a");
        assert_eq!(listener.next_wakeup(), Some(at(45_000)));
        assert_eq!(listener.poll_control(at(44_999)), None);
        let (_, control) = listener.poll_control(at(45_000)).unwrap();
        assert_eq!((control.table_id, control.epoch), ([1; 16], 1));
        assert_eq!(show(&listener.handle_time(at(89_999))), "");
        assert_eq!(show(&listener.handle_time(at(90_000))), "-test.a");
        // Whatever comes next, all is asked for.
        assert_eq!(hear(&mut listener, at(90_001), "1 1-2 +test.b"), "");
        let (_, control) = listener.poll_control(at(90_001)).unwrap();
        assert_eq!((control.table_id, control.epoch), ([1; 16], 0));
        assert_eq!(listener.handle_time(at(1_000_000)), [], "nothing to forget");
    }

    #[test]
    fn routes_outlive_a_short_break_of_the_link() {
        let mut listener = listener(RoutingRelation::Peer, 10);
        listener.handle_up(at(0));
        hear(&mut listener, at(0), "1 0-1 +test.a");
        listener.handle_down();
        assert_eq!(listener.poll_control(at(1)), None);
        assert_eq!(listener.next_wakeup(), Some(at(90_000)));
        listener.handle_up(at(2));
        assert_eq!(listener.poll_control(at(2)).unwrap().1.epoch, 1);
        assert_eq!(listener.len(), 1);
        listener.handle_down();
        assert_eq!(show(&listener.handle_time(at(90_000))), "-test.a");
        assert_eq!(listener.next_wakeup(), None);
    }

    #[test]
    fn questions_have_pauses_and_an_end() {
        let mut listener = listener(RoutingRelation::Peer, 10);
        listener.handle_up(at(0));
        let (first, _) = listener.poll_control(at(0)).unwrap();
        assert_eq!(listener.poll_control(at(0)), None);
        // A gap asks again, but not at once.
        for ms in 0..4 {
            hear(&mut listener, at(ms * 1_000), "1 5-6 +test.a");
            assert_eq!(listener.poll_control(at(ms * 1_000)), None);
        }
        assert_eq!(listener.next_wakeup(), Some(at(ASK_PAUSE_MS)));
        let (second, _) = listener.poll_control(at(ASK_PAUSE_MS)).unwrap();
        // An answer to the first question says nothing about the second.
        listener.handle_answer(first, Answer::Rejected(ErrorCode::F00_BAD_REQUEST));
        listener.handle_answer(second, Answer::Missing);
        assert_eq!(listener.next_wakeup(), Some(at(ASK_PAUSE_MS + ASK_AGAIN_MS)));
        let (third, _) = listener.poll_control(at(60_000)).unwrap();
        listener.handle_answer(third, Answer::Rejected(ErrorCode::F00_BAD_REQUEST));
        assert_eq!(listener.next_wakeup(), None, "it does not tell us routes");
        listener.handle_down();
        listener.handle_up(at(70_000));
        assert!(
            listener.poll_control(at(70_000)).is_some(),
            "it may have changed its mind"
        );
    }

    #[test]
    fn a_flood_of_updates_is_refused() {
        let mut listener = listener(RoutingRelation::Peer, 10);
        let mut heard = 0;
        for ms in 0..10_000 {
            if hear(&mut listener, at(ms), "1 0-0") != "TooMany" {
                heard += 1;
            }
        }
        assert_eq!(heard, UPDATES_AT_ONCE + 10 * UPDATES_PER_SECOND - 1);
        assert_eq!(
            hear(&mut listener, at(0), "1 0-0"),
            "TooMany",
            "no clock that goes back helps"
        );
        assert_eq!(hear(&mut listener, at(100_000), "1 0-1 +test.a"), "+test.a");
        assert_eq!(Refusal::TooMany.code(), ErrorCode::T05_RATE_LIMITED);
    }

    #[test]
    fn a_flood_of_changes_is_refused() {
        let mut listener = listener(RoutingRelation::Peer, 10);
        let announced: String = (0..500).map(|number| format!(" +test.{number}")).collect();
        let withdrawn: String = (0..500).map(|number| format!(" -test.{number}")).collect();
        let mut heard = 0;
        for second in 0..100 {
            for (half, routes) in [(0, &announced), (500, &withdrawn)] {
                let epoch = 2 * second;
                let found = hear(
                    &mut listener,
                    at(second * 1_000 + half),
                    &format!("1 0-{} {routes}", epoch + 1),
                );
                heard += if found == "TooMany" { 0 } else { 500 };
            }
        }
        assert!(heard <= PREFIXES_AT_ONCE_MIN + 100 * PREFIXES_PER_SECOND, "{heard}");
        assert!(heard >= PREFIXES_AT_ONCE_MIN + 90 * PREFIXES_PER_SECOND, "{heard}");
    }

    #[test]
    fn a_hold_time_is_believed_within_bounds() {
        for (hold_down_ms, silence_ms) in [(0, 30_000), (60_000, 60_000), (u32::MAX, 600_000)] {
            let mut listener = listener(RoutingRelation::Peer, 10);
            let mut data = update("1 0-1");
            data[28..32].copy_from_slice(&hold_down_ms.to_be_bytes());
            listener
                .handle_update(at(0), &Update::parse(&data).unwrap(), 1)
                .unwrap();
            assert_eq!(listener.next_wakeup(), Some(at(2 * silence_ms)));
        }
    }
}
