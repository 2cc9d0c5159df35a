//! Destinations that end here: the node's own address (echo) and the `peer.` addresses; and our own questions to those of
//! neighbours.
//!
//! Owns which requests of neighbours are served to whom, and that each waits for its answer in the table of packets in
//! flight like any other, so that it expires like any other. Answers `peer.config` (ILDCP, RFC 31) itself; routes and
//! messages between settlement engines are decided elsewhere. No `peer.` address is ever forwarded (protocols.md 3.4).
//!
//! Always: a request and a question carry no money. What they hold is a hold of nothing, and touches no balance.

use crate::ledger::{Account, AccountId, RoutingRelation};
use crate::wire::address::Address;
use crate::wire::ildcp;
use crate::wire::oer::Reader;
use crate::wire::packet::{Prepare, PrepareBuilder};
use crate::wire::peer::{self, InvalidRequest, Service};
use crate::wire::timestamp::Timestamp;

use super::in_flight::{HOLD_MS_MAX, IN_FLIGHT_MAX, InFlight, Origin, ReplyTo, RequestId};
use super::outgoing::LinkState;
use super::reject::RejectReason;
use super::{Now, Pipeline};

/// Characters of the segment that the addresses which our own accounts hand out to payers end in.
pub const TOKEN_CHARS: usize = 24;

/// Whether an address may be one that an account of ours has handed out. Most are not, and nobody else has to look.
pub fn ends_in_token(destination: &str) -> bool {
    let last = destination.len().checked_sub(TOKEN_CHARS + 1);
    last.is_some_and(|last| destination.as_bytes()[last] == b'.')
        && !destination.as_bytes()[destination.len() - TOKEN_CHARS..].contains(&b'.')
}

/// The first bytes of an echo request's data (protocols.md 4.8; in no RFC, but every connector answers it).
const ECHO_PREFIX: &[u8; 16] = b"ECHOECHOECHOECHO";
const ECHO_REQUEST: u8 = 0;
const ECHO_RESPONSE: u8 = 1;

/// A Prepare to the node's own address that asks for an echo: the same money, back to the address in its data.
pub fn is_echo(prepare: &Prepare<'_>) -> bool {
    prepare.data().starts_with(ECHO_PREFIX)
}

/// The Prepare that answers an echo request, to be routed as if it had come from the same account.
pub fn echo(prepare: &Prepare<'_>) -> Result<Vec<u8>, RejectReason> {
    let mut request = Reader::new(&prepare.data()[ECHO_PREFIX.len()..]);
    if request.read_u8() != Ok(ECHO_REQUEST) {
        return Err(RejectReason::InvalidServiceRequest);
    }
    let source = request
        .read_var_octets()
        .map_err(|_| RejectReason::InvalidServiceRequest)?;
    let source = Address::parse(source).map_err(|_| RejectReason::InvalidServiceRequest)?;
    let mut data = ECHO_PREFIX.to_vec();
    data.push(ECHO_RESPONSE);
    let mut packet = Vec::new();
    PrepareBuilder {
        amount: prepare.amount(),
        expires_at: prepare.expires_at(),
        execution_condition: prepare.condition(),
        destination: source,
        data: &data,
    }
    .encode(&mut packet);
    Ok(packet)
}

/// What a Prepare under `peer.` asks of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Local {
    /// What the account has with us.
    Config,
    /// Something that takes a decision.
    Service(Service),
}

/// Checks a Prepare under `peer.` from an account of this relation, in the order of [`RejectReason`].
pub fn check_request(prepare: &Prepare<'_>, relation: RoutingRelation, now: Timestamp) -> Result<Local, RejectReason> {
    let destination = prepare.destination();
    let local = match Service::at(destination) {
        Some(service) => Local::Service(service),
        None if destination == ildcp::DESTINATION => Local::Config,
        None => return Err(RejectReason::NoSuchService),
    };
    peer::check_request(prepare, now).map_err(|invalid| match invalid {
        InvalidRequest::Amount => RejectReason::PaidService,
        InvalidRequest::Condition => RejectReason::InvalidServiceRequest,
        InvalidRequest::Expired => RejectReason::Expired,
    })?;
    // An equal has its address from somebody else, and so does a parent.
    let is_below_us = matches!(relation, RoutingRelation::Child | RoutingRelation::NonRoutingAccount);
    if local == Local::Config && !is_below_us {
        return Err(RejectReason::ServiceRefused);
    }
    Ok(local)
}

/// Appends the Fulfill that tells an account its address and its asset.
pub fn encode_config(account: &Account, out: &mut Vec<u8>) {
    ildcp::Answer {
        client_address: Address::parse(account.ilp_address.as_bytes()).expect("an account's address is one"),
        asset_scale: account.asset.scale,
        asset_code: &account.asset.code,
    }
    .encode(out);
}

impl Pipeline {
    /// Notes a request of a neighbour in flight until it is answered or its time is over, which is no later than for a
    /// packet that goes on. `waiting` as for [`Pipeline::outgoing`].
    ///
    /// It waits as if it had been sent back to the neighbour. So the neighbour might answer itself, if it guesses the
    /// number: then it has what it wanted, and nothing has moved.
    pub fn await_answer(
        &mut self,
        now: Now,
        origin: Origin,
        prepare: &Prepare<'_>,
        waiting: usize,
    ) -> Result<RequestId, (Origin, RejectReason)> {
        match self.reserve(origin.from, 0, LinkState::Up { carrier: 0 }, waiting) {
            Ok((reservation, carrier)) => {
                let longest_ms = self.settings.windows.hold_ms_max;
                Ok(self.in_flight.insert(InFlight {
                    to: origin.from,
                    origin,
                    reservation,
                    condition: *prepare.condition(),
                    deadline_ms: deadline_ms(now, prepare, longest_ms),
                    carrier,
                }))
            }
            Err(reason) => {
                self.stats.rejected_here += 1;
                Err((origin, reason))
            }
        }
    }

    /// The request has its answer. `None`: its time was over.
    pub fn answered(&mut self, id: RequestId, from: AccountId) -> Option<Origin> {
        self.in_flight.get(id)?;
        let entry = self.take(id, from)?;
        Some(self.release(entry))
    }

    /// Notes a question of our own to the account `to`, which this shard owns, in flight. It counts against none of its
    /// limits.
    pub fn ask(
        &mut self,
        now: Now,
        to: AccountId,
        prepare: &Prepare<'_>,
        reply_to: ReplyTo,
        link: LinkState,
        waiting: usize,
    ) -> Result<RequestId, RejectReason> {
        assert!(prepare.amount() == 0, "a question carries no money");
        if self.stopping {
            return Err(RejectReason::Stopping);
        }
        if self.accepted >= IN_FLIGHT_MAX {
            return Err(RejectReason::ConnectorBusy);
        }
        if prepare.expires_at() <= now.wall {
            return Err(RejectReason::Expired);
        }
        let (reservation, carrier) = self.reserve(to, 0, link, waiting)?;
        // The last check was the first change.
        let member = self.member_mut(to).expect("looked at above");
        let hold = member.hold(0).expect("nothing can always be held");
        member.in_flight += 1;
        self.accepted += 1;
        Ok(self.in_flight.insert(InFlight {
            origin: Origin {
                from: to,
                hold,
                reply_to,
            },
            to,
            reservation,
            condition: *prepare.condition(),
            deadline_ms: deadline_ms(now, prepare, HOLD_MS_MAX),
            carrier,
        }))
    }
}

/// When the time of a packet is over that is not held longer than this, on the shard's monotonic clock.
fn deadline_ms(now: Now, prepare: &Prepare<'_>, longest_ms: u64) -> u64 {
    let remaining_ms = prepare.expires_at().as_millis().saturating_sub(now.wall.as_millis());
    now.monotonic_ms + remaining_ms.min(longest_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{AccountLimits, Standing};
    use crate::pipeline::Settings;
    use crate::pipeline::forward::Windows;
    use crate::pipeline::incoming::Incoming;
    use crate::pipeline::rates::Decimal;
    use crate::pipeline::response::{Answer, Outcome};
    use crate::wire::ccp;
    use crate::wire::packet::{Fulfill, PEER_CONDITION, encode_fulfill};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn prepare(data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PrepareBuilder {
            amount: 7,
            expires_at: Timestamp::from_millis(1_900_000_000_000),
            execution_condition: &PEER_CONDITION,
            destination: Address::parse(b"test.acme").unwrap(),
            data,
        }
        .encode(&mut packet);
        packet
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    /// One line per request: the relation of who asks, the address, amount, condition and time left; what becomes of it.
    #[test]
    fn who_is_served_what() {
        let conditions = |name: &str| match name {
            "zeros" => PEER_CONDITION,
            "printed" => bytes("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
                .try_into()
                .unwrap(),
            _ => [7; 32],
        };
        let now = Timestamp::from_millis(1_900_000_000_000);
        for line in "
            Child             peer.config         0  zeros    1  Config
            NonRoutingAccount peer.config         0  zeros    1  Config
            Peer              peer.config         0  zeros    1  F00
            Parent            peer.config         0  zeros    1  F00
            Child             peer.config         0  zeros    0  R02
            Peer              peer.config         0  zeros    0  R02
            Child             peer.config         1  zeros    1  F00
            Child             peer.config         0  other    1  F01
            Child             peer.config         0  printed  1  F01
            Peer              peer.config         0  other    1  F01
            Child             peer.config         1  other    0  F00
            Child             peer.config         0  other    0  F01
            NonRoutingAccount peer.route.control  0  zeros    1  RouteControl
            Peer              peer.route.control  0  zeros    1  RouteControl
            Parent            peer.route.update   0  zeros    1  RouteUpdate
            Child             peer.route.update   0  printed  1  F01
            Child             peer.settle         0  zeros    1  Settle
            Child             peer.settle         0  printed  1  Settle
            Child             peer.settle         1  printed  1  F00
            Child             peer.settle         0  other    1  F01
            Child             peer.settle         0  zeros    0  R02
            Child             peer.bonfig         0  zeros    1  F02
            Child             peer.config.x       0  zeros    1  F02
            Child             peer.route          1  other    0  F02
        "
        .lines()
        .filter(|line| !line.trim().is_empty())
        {
            let [relation, destination, amount, condition, left_ms, expected] =
                line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            let mut packet = Vec::new();
            PrepareBuilder {
                amount: amount.parse().unwrap(),
                expires_at: now.plus_ms(left_ms.parse().unwrap()),
                execution_condition: &conditions(condition),
                destination: Address::parse(destination.as_bytes()).unwrap(),
                data: b"whatever",
            }
            .encode(&mut packet);
            let relation = RoutingRelation::parse(relation).unwrap();
            let said = match check_request(&Prepare::parse(&packet).unwrap(), relation, now) {
                Ok(Local::Config) => "Config".to_owned(),
                Ok(Local::Service(service)) => format!("{service:?}"),
                Err(reason) => reason.code().to_string(),
            };
            assert_eq!(said, expected, "{line}");
        }
    }

    const ALICE: AccountId = AccountId::new(0);

    fn at(now_ms: u64) -> Now {
        Now {
            wall: Timestamp::from_millis(1_900_000_000_000 + now_ms),
            monotonic_ms: 5_000 + now_ms,
        }
    }

    /// A shard with one account, alice, who may send three packets a minute.
    fn pipeline() -> Pipeline {
        let settings = Settings {
            reflect: true,
            echo: true,
            windows: Windows {
                message_window_ms: 1_000,
                hold_ms_max: 30_000,
            },
            spread: Decimal::zero(),
        };
        let mut pipeline = Pipeline::new(settings, 0, 1, at(0));
        let mut alice = crate::store::tests::account(0, 0);
        alice.limits = AccountLimits {
            packets_per_minute: Some(3),
            balance_min: Some(0),
            balance_max: Some(0),
            ..AccountLimits::default()
        }
        .into();
        pipeline.put_account(Arc::new(alice), Standing::of(-7), at(0));
        pipeline
    }

    fn request(destination: Address<'static>) -> Vec<u8> {
        let mut packet = Vec::new();
        peer::encode_request(&mut packet, at(0).wall, destination, b"");
        packet
    }

    #[test]
    fn requests_count_as_packets_and_move_nothing() {
        let mut pipeline = pipeline();
        let config = request(ildcp::DESTINATION);
        let config = Prepare::parse(&config).unwrap();
        let update = request(ccp::UPDATE_DESTINATION);
        let update = Prepare::parse(&update).unwrap();
        let here = ReplyTo::default();
        // Below its minimum, and still served: nothing is asked of the balance.
        assert!(matches!(
            pipeline.incoming(at(0), ALICE, &config, here),
            Ok(Incoming::Config)
        ));
        assert_eq!(pipeline.accepted(), 0, "the answer is the end of it");
        let mut ids = Vec::new();
        for _ in 0..2 {
            let Ok(Incoming::Request { origin, service }) = pipeline.incoming(at(0), ALICE, &update, here) else {
                panic!("it may come in");
            };
            assert_eq!(service, Service::RouteUpdate);
            ids.push(pipeline.await_answer(at(0), origin, &update, 0).unwrap());
        }
        let limited = pipeline.incoming(at(0), ALICE, &config, here);
        assert_eq!(limited.err(), Some(RejectReason::RateLimited));
        let (balance, in_flight) = pipeline.state_of(ALICE).unwrap();
        assert_eq!((balance.available(), balance.reserved(), in_flight), (-7, 0, 4));

        let origin = pipeline.answered(ids[0], ALICE).unwrap();
        pipeline.finish(origin.from, origin.hold, Outcome::Fulfilled);
        assert_eq!(pipeline.answered(ids[0], ALICE), None, "once");
        // The other is held no longer than a packet that goes on, although it says a minute.
        assert!(pipeline.expire(at(29_999)).is_none());
        let Some((_, _, Answer::Refused { origin, reason })) = pipeline.expire(at(30_008)) else {
            panic!("its time is over");
        };
        assert_eq!(reason, RejectReason::TimedOut);
        pipeline.finish(origin.from, origin.hold, Outcome::Rejected);
        assert_eq!(pipeline.answered(ids[1], ALICE), None, "too late");
        let (balance, in_flight) = pipeline.state_of(ALICE).unwrap();
        assert_eq!((balance.booked(), balance.is_settled(), in_flight), (-7, true, 0));
        assert_eq!(pipeline.accepted(), 0);
    }

    #[test]
    fn questions_count_against_no_limit() {
        let mut pipeline = pipeline();
        let question = request(ccp::CONTROL_DESTINATION);
        let question = Prepare::parse(&question).unwrap();
        let up = LinkState::Up { carrier: 0 };
        let reply_to = |number| ReplyTo::to_question(0, number);
        assert_eq!((reply_to(9).question(), reply_to(9).payment()), (Some(9), None));
        let ids: Vec<_> = (0..5)
            .map(|number| pipeline.ask(at(0), ALICE, &question, reply_to(number), up, 0).unwrap())
            .collect();
        let Some(Answer::Fulfilled { origin, transfer: None }) =
            pipeline.fulfilled(ids[0], ALICE, &Fulfill::parse(&fulfill([0; 32])).unwrap())
        else {
            panic!("zeros fulfill it");
        };
        assert_eq!(origin.reply_to.question(), Some(0));
        pipeline.finish(origin.from, origin.hold, Outcome::Fulfilled);
        let answer = pipeline.fulfilled(ids[1], ALICE, &Fulfill::parse(&fulfill([1; 32])).unwrap());
        let Some(Answer::Refused { origin, reason }) = answer else {
            panic!("nothing else does");
        };
        assert_eq!(reason, RejectReason::WrongFulfillment);
        pipeline.finish(origin.from, origin.hold, Outcome::Rejected);
        while let Some((_, _, Answer::Refused { origin, .. })) = pipeline.expire(at(60_008)) {
            pipeline.finish(origin.from, origin.hold, Outcome::Rejected);
        }
        let (balance, in_flight) = pipeline.state_of(ALICE).unwrap();
        assert_eq!((balance.booked(), balance.is_settled(), in_flight), (-7, true, 0));
        assert_eq!(pipeline.accepted(), 0);

        for (link, refused) in [
            (LinkState::Down, RejectReason::LinkDown),
            (LinkState::Busy, RejectReason::LinkBusy),
            (LinkState::TooLong, RejectReason::PacketTooLarge),
        ] {
            let asked = pipeline.ask(at(0), ALICE, &question, reply_to(6), link, 0);
            assert_eq!(asked, Err(refused));
        }
        let late = pipeline.ask(at(60_000), ALICE, &question, reply_to(6), up, 0);
        assert_eq!(late, Err(RejectReason::Expired));
        pipeline.set_closing(ALICE, true);
        let closing = pipeline.ask(at(0), ALICE, &question, reply_to(6), up, 0);
        assert_eq!(closing, Err(RejectReason::Stopping));
        let nobody = pipeline.ask(at(0), AccountId::new(1), &question, reply_to(6), up, 0);
        assert_eq!(nobody, Err(RejectReason::NoRoute));
        assert_eq!((pipeline.accepted(), pipeline.in_flight().len()), (0, 0));
    }

    fn fulfill(fulfillment: [u8; 32]) -> Vec<u8> {
        let mut packet = Vec::new();
        encode_fulfill(&mut packet, &fulfillment, b"");
        packet
    }

    #[test]
    fn the_answer_to_peer_config_is_the_account() {
        let account = crate::store::tests::account(3, 0);
        let mut packet = Vec::new();
        encode_config(&account, &mut packet);
        let answer = ildcp::Answer::parse(&Fulfill::parse(&packet).unwrap()).unwrap();
        assert_eq!(answer.client_address.as_str(), &*account.ilp_address);
        assert_eq!(
            (answer.asset_scale, answer.asset_code),
            (account.asset.scale, &*account.asset.code)
        );
    }

    proptest! {
        #[test]
        fn no_request_panics(
            destination in "peer\\.(config|route\\.control|route\\.update|settle|[a-z]{1,9})",
            amount in 0u64..2,
            zeros: bool,
            at_ms in 0u64..3,
            data in vec(any::<u8>(), 0..60),
            relation in 0usize..4,
        ) {
            let now = Timestamp::from_millis(1);
            let mut packet = Vec::new();
            PrepareBuilder {
                amount,
                expires_at: Timestamp::from_millis(at_ms),
                execution_condition: if zeros { &PEER_CONDITION } else { &[9; 32] },
                destination: Address::parse(destination.as_bytes()).unwrap(),
                data: &data,
            }
            .encode(&mut packet);
            let prepare = Prepare::parse(&packet).unwrap();
            let served = check_request(&prepare, RoutingRelation::ALL[relation], now);
            prop_assert!(served.is_err() || (amount == 0 && zeros && at_ms == 2));
        }
    }

    #[test]
    fn addresses_of_payers() {
        let token = "AAECAwQFBgcICQoLDA0ODxAR";
        for (destination, may_be) in [
            (format!("g.alice.{token}"), true),
            (format!("g.{token}"), true),
            (format!("g.alice.{token}x"), false),
            (format!("g.alice.{}", &token[1..]), false),
            (format!("g.alice.{}.{}", &token[..11], &token[12..]), false),
            (format!("g.alice{token}"), false),
            (token.to_owned(), false),
            ("g".to_owned(), false),
        ] {
            assert_eq!(ends_in_token(&destination), may_be, "{destination}");
        }
    }

    #[test]
    fn an_echo_goes_back_with_the_same_money() {
        let request = prepare(&bytes(
            "4543484f4543484f4543484f4543484f0010746573742e61636d652e636c69656e74",
        ));
        let request = Prepare::parse(&request).unwrap();
        assert!(is_echo(&request));
        let answer = echo(&request).unwrap();
        let answer = Prepare::parse(&answer).unwrap();
        assert_eq!(answer.data(), bytes("4543484f4543484f4543484f4543484f01"));
        assert_eq!(answer.destination().as_str(), "test.acme.client");
        assert_eq!((answer.amount(), answer.expires_at()), (7, request.expires_at()));
        assert_eq!(answer.condition(), request.condition());
    }

    #[test]
    fn what_is_no_echo_request_is_refused() {
        for data in [
            "",
            "00",
            "0000",
            "0005746573",
            "01",
            "0210746573742e61636d652e636c69656e74",
            "00056120622063",
        ] {
            let data = [ECHO_PREFIX.to_vec(), bytes(data)].concat();
            let packet = prepare(&data);
            let refused = echo(&Prepare::parse(&packet).unwrap());
            assert_eq!(refused.err(), Some(RejectReason::InvalidServiceRequest), "{data:?}");
        }
        assert!(!is_echo(&Prepare::parse(&prepare(b"ECHOECHOECHOECH")).unwrap()));
    }
}
