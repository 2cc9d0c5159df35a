//! Every reason for which a Prepare is rejected here, in the order in which they are checked, and the ILP error code
//! of each (RFC 27; protocols.md 2.7 and 4.1).
//!
//! Peers may rely on the order: a Prepare that is wrong in two ways is answered with the first. Up to the incoming
//! account's balance the checks are made where that account lives; from `LinkDown` on, where the next hop does. What can
//! go wrong only after the packet has left (from `TimedOut` on) comes last.

use crate::wire::packet::{ErrorCode, RejectBuilder, amount_too_large_data};

/// Why a Prepare goes no further. The order of the variants is the order of the checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RejectReason {
    /// F01: not a Prepare as RFC 27 defines it.
    InvalidPacket,
    /// T03: the node is stopping, or the account is being closed.
    Stopping,
    /// T00: the store has failed; the node promises nothing any more.
    CannotCommit,
    /// T03: a queue or the table of packets in flight is full.
    ConnectorBusy,
    /// T05: more packets in a minute than the account may send.
    RateLimited,
    /// R02: expired on arrival.
    Expired,
    /// F08, with what arrived and what is allowed, both in units of the incoming account.
    AmountTooLarge { received: u64, maximum: u64 },
    /// T04: more money in a minute than the account may send.
    AmountRateLimited,
    /// F02: no local service at this address, or an address that is never forwarded.
    NoSuchService,
    /// F00: money for a service of neighbours, which takes none.
    PaidService,
    /// F01: a condition that a service of neighbours cannot fulfill, or the payload of a local service is not what it
    /// takes.
    InvalidServiceRequest,
    /// F00: a local service does not serve this account.
    ServiceRefused,
    /// F02: no route.
    NoRoute,
    /// F02: the way onward is the way back, and reflection is off.
    Reflected,
    /// T00: no exchange rate for the pair of assets.
    NoRate,
    /// R01: nothing was left of the amount when it was converted and what we keep was taken off.
    AmountBecameZero,
    /// R02: too little time is left to forward the packet.
    InsufficientTimeout,
    /// T04: the incoming account's balance would fall below its minimum.
    IncomingLiquidity,
    /// T01: the next hop is configured, but there is no connection to it.
    LinkDown,
    /// T04: we would owe the outgoing account more than its maximum.
    OutgoingLiquidity,
    /// T03: the link to the next hop takes no more for now.
    LinkBusy,
    /// F01: the packet is longer than the next hop's link can carry.
    PacketTooLarge,
    /// R00: no response before the outgoing expiry.
    TimedOut,
    /// F05: the next hop's fulfillment does not hash to the condition.
    WrongFulfillment,
    /// T00: the next hop answered, but not with an ILP packet.
    GarbageResponse,
    /// T01: the link to the next hop broke, or answered with an error of its own.
    LinkFailed,
    /// T03: the next hop's link says that it is overloaded.
    LinkOverloaded,
    /// T04: the next hop's link says that our balance with it does not allow the packet.
    PeerLiquidity,
}

impl RejectReason {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidPacket | Self::InvalidServiceRequest | Self::PacketTooLarge => ErrorCode::F01_INVALID_PACKET,
            Self::Stopping | Self::ConnectorBusy | Self::LinkBusy | Self::LinkOverloaded => {
                ErrorCode::T03_CONNECTOR_BUSY
            }
            Self::CannotCommit | Self::NoRate | Self::GarbageResponse => ErrorCode::T00_INTERNAL_ERROR,
            Self::RateLimited => ErrorCode::T05_RATE_LIMITED,
            Self::Expired | Self::InsufficientTimeout => ErrorCode::R02_INSUFFICIENT_TIMEOUT,
            Self::AmountTooLarge { .. } => ErrorCode::F08_AMOUNT_TOO_LARGE,
            Self::AmountRateLimited | Self::IncomingLiquidity | Self::OutgoingLiquidity | Self::PeerLiquidity => {
                ErrorCode::T04_INSUFFICIENT_LIQUIDITY
            }
            Self::NoSuchService | Self::NoRoute | Self::Reflected => ErrorCode::F02_UNREACHABLE,
            Self::PaidService | Self::ServiceRefused => ErrorCode::F00_BAD_REQUEST,
            Self::LinkDown | Self::LinkFailed => ErrorCode::T01_PEER_UNREACHABLE,
            Self::AmountBecameZero => ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT,
            Self::TimedOut => ErrorCode::R00_TRANSFER_TIMED_OUT,
            Self::WrongFulfillment => ErrorCode::F05_WRONG_CONDITION,
        }
    }

    /// For the human who debugs; names no account and no secret.
    pub fn message(&self) -> &'static str {
        match self {
            Self::InvalidPacket => "not a valid Prepare",
            Self::Stopping => "not accepting packets now",
            Self::CannotCommit => "the ledger cannot commit",
            Self::ConnectorBusy => "too many packets in flight",
            Self::RateLimited => "too many packets per minute",
            Self::Expired => "the packet has expired",
            Self::AmountTooLarge { .. } => "the amount is larger than the maximum",
            Self::AmountRateLimited => "too much money per minute",
            Self::NoSuchService => "no such local address",
            Self::PaidService => "this address takes no money",
            Self::InvalidServiceRequest => "not a valid request for this address",
            Self::ServiceRefused => "not served for this account",
            Self::NoRoute => "no route to the destination",
            Self::Reflected => "the route leads back to the sender",
            Self::LinkDown => "no connection to the next hop",
            Self::NoRate => "no exchange rate for this pair of assets",
            Self::AmountBecameZero => "the amount is too small: nothing of it would be left to send on",
            Self::InsufficientTimeout => "too little time left to forward the packet",
            // Word for word: ilp-connector raises an operator's alert on exactly this text.
            Self::IncomingLiquidity => "exceeded maximum balance.",
            Self::OutgoingLiquidity => "the next hop's credit is used up",
            Self::LinkBusy => "the next hop is not taking packets fast enough",
            Self::PacketTooLarge => "the packet is too large for the next hop",
            Self::TimedOut => "no response before the expiry",
            Self::WrongFulfillment => "the fulfillment does not match the condition",
            Self::GarbageResponse => "the next hop's response is not an ILP packet",
            Self::LinkFailed => "the next hop could not be reached",
            Self::LinkOverloaded => "the next hop is overloaded",
            Self::PeerLiquidity => "the next hop refused for lack of liquidity",
        }
    }

    /// The Reject that goes back, `triggered_by` the node's own address.
    pub fn encode(&self, triggered_by: &str, out: &mut Vec<u8>) {
        let amounts;
        let data: &[u8] = match *self {
            Self::AmountTooLarge { received, maximum } => {
                // Senders divide by the first and compare with the second.
                assert!(received > maximum, "F08 is for amounts above the maximum");
                amounts = amount_too_large_data(received, maximum);
                &amounts
            }
            _ => &[],
        };
        RejectBuilder {
            code: self.code(),
            triggered_by,
            message: self.message(),
            data,
        }
        .encode(out);
    }
}
