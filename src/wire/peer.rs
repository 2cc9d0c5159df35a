//! Requests between neighbours: Prepares to an address under `peer.`, which no node ever forwards (protocols.md 3.4).
//!
//! Owns what they have in common, whatever is asked: no money, a condition that everybody can fulfill, a minute to live;
//! and which services there are. Leaves what is asked and answered to [`super::ildcp`] and [`super::ccp`], the messages
//! between settlement engines to the engines, and who gets an answer to the pipeline.

use super::address::Address;
use super::ccp;
use super::packet::{CONDITION_BYTES, PEER_CONDITION, Prepare, PrepareBuilder};
use super::timestamp::Timestamp;

/// Where a settlement engine's message to that of a neighbour goes (RFC 38).
pub const SETTLE_DESTINATION: Address<'static> = Address::from_static("peer.settle");
/// How long a request between neighbours may take: what every implementation grants.
pub const REQUEST_LIFETIME_MS: u64 = 60_000;

/// The condition that RFC 38 prints for messages between settlement engines: the SHA-256 of nothing. No fulfillment fits
/// it, but who sends it takes the usual one.
const SETTLE_CONDITION_PRINTED: [u8; CONDITION_BYTES] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// What a neighbour can ask for, beside its own address, which has [`super::ildcp`] and takes nobody's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Our routes, see [`super::ccp`].
    RouteControl,
    /// To believe its routes.
    RouteUpdate,
    /// To hand a message to the settlement engine of its account.
    Settle,
}

impl Service {
    /// The service at an address; `None` if there is none.
    pub fn at(destination: Address<'_>) -> Option<Self> {
        [
            (ccp::CONTROL_DESTINATION, Self::RouteControl),
            (ccp::UPDATE_DESTINATION, Self::RouteUpdate),
            (SETTLE_DESTINATION, Self::Settle),
        ]
        .into_iter()
        .find_map(|(address, service)| (address == destination).then_some(service))
    }
}

/// Why a Prepare under `peer.` is not a request between neighbours; in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// Nobody is paid for an answer, and money that came along would be lost.
    #[error("a request between neighbours carries no money")]
    Amount,
    /// It cannot be fulfilled with [`super::packet::PEER_FULFILLMENT`].
    #[error("a request between neighbours has the condition that zeros fulfill")]
    Condition,
    /// Whoever sent it does not wait any more.
    #[error("the request has expired")]
    Expired,
}

/// Checks what every request between neighbours has in common, whatever it asks.
pub fn check_request(prepare: &Prepare<'_>, now: Timestamp) -> Result<(), InvalidRequest> {
    let condition = prepare.condition();
    if prepare.amount() != 0 {
        Err(InvalidRequest::Amount)
    } else if *condition != PEER_CONDITION
        && !(prepare.destination() == SETTLE_DESTINATION && *condition == SETTLE_CONDITION_PRINTED)
    {
        Err(InvalidRequest::Condition)
    } else if prepare.expires_at() <= now {
        Err(InvalidRequest::Expired)
    } else {
        Ok(())
    }
}

/// Appends a request between neighbours to `out`: the Prepare, sent at `now`.
///
/// # Panics
/// If `data` has more bytes than a packet may.
pub fn encode_request(out: &mut Vec<u8>, now: Timestamp, destination: Address<'_>, data: &[u8]) {
    encode_request_until(out, now.plus_ms(REQUEST_LIFETIME_MS), destination, data);
}

/// The same with an end of its own.
///
/// # Panics
/// If `data` has more bytes than a packet may.
pub fn encode_request_until(out: &mut Vec<u8>, expires_at: Timestamp, destination: Address<'_>, data: &[u8]) {
    PrepareBuilder {
        amount: 0,
        expires_at,
        execution_condition: &PEER_CONDITION,
        destination,
        data,
    }
    .encode(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hex;
    use crate::wire::ildcp;
    use crate::wire::packet::PEER_FULFILLMENT;

    /// 2015-06-16T00:00:00Z, a minute before the vectors expire.
    fn sent_at() -> Timestamp {
        Timestamp::from_millis(1_434_412_800_000)
    }

    #[test]
    fn every_service_has_its_address() {
        for (destination, service) in [
            ("peer.config", None),
            ("peer.route.control", Some(Service::RouteControl)),
            ("peer.route.update", Some(Service::RouteUpdate)),
            ("peer.settle", Some(Service::Settle)),
            ("peer.bonfig", None),
            ("peer.Config", None),
            ("peer.config.more", None),
            ("peer.route", None),
            ("peer.settl", None),
            ("test.peer.config", None),
        ] {
            let address = Address::parse(destination.as_bytes()).unwrap();
            assert_eq!(Service::at(address), service, "{destination}");
        }
    }

    #[test]
    fn a_request_with_money_or_another_condition_is_none() {
        let (config, settle) = (ildcp::DESTINATION, SETTLE_DESTINATION);
        for (destination, amount, condition, expected) in [
            (config, 0, PEER_CONDITION, Ok(())),
            (config, 1, PEER_CONDITION, Err(InvalidRequest::Amount)),
            (config, 0, PEER_FULFILLMENT, Err(InvalidRequest::Condition)),
            (config, 1, PEER_FULFILLMENT, Err(InvalidRequest::Amount)),
            (config, 0, SETTLE_CONDITION_PRINTED, Err(InvalidRequest::Condition)),
            (settle, 0, PEER_CONDITION, Ok(())),
            (settle, 0, SETTLE_CONDITION_PRINTED, Ok(())),
            (settle, 1, SETTLE_CONDITION_PRINTED, Err(InvalidRequest::Amount)),
            (settle, 0, PEER_FULFILLMENT, Err(InvalidRequest::Condition)),
        ] {
            let mut bytes = Vec::new();
            PrepareBuilder {
                amount,
                expires_at: sent_at().plus_ms(1),
                execution_condition: &condition,
                destination,
                data: &[],
            }
            .encode(&mut bytes);
            let prepare = Prepare::parse(&bytes).unwrap();
            assert_eq!(check_request(&prepare, sent_at()), expected, "{destination:?}");
            let late = check_request(&prepare, sent_at().plus_ms(1));
            assert_eq!(late, expected.and(Err(InvalidRequest::Expired)));
        }
    }

    #[test]
    fn a_request_is_written_as_everybody_does() {
        let mut out = Vec::new();
        encode_request(
            &mut out,
            Timestamp::from_millis(1_893_553_385_678),
            SETTLE_DESTINATION,
            br#"{"x":1}"#,
        );
        let expected = "0c4d0000000000000000323033303031303230333034303536373866687aadf862bd776c8fc18b8e9f8e20089714\
            856ee233b3902a591d0d5f29250b706565722e736574746c65077b2278223a317d";
        assert_eq!(out, hex(expected));
    }
}
