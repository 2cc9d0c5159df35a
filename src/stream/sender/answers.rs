//! What comes back: what an answer proves, what it says of path and receiver, and what follows from each code.

use super::window::UnderWay;
use super::{
    ASSET_CODE_BYTES_MAX, Asset, Bounds, Claim, EXPIRED_MAX, Failure, InFlight, Kind, Phase, STREAM_ID, Sender,
};
use crate::stream::frame::{Frame, Packet};
use crate::stream::ratio::Ratio;
use crate::stream::receipt::{self, RECEIPT_BYTES};
use crate::wire::packet::{ErrorClass, ErrorCode, PacketType};
use crate::wire::timestamp::Timestamp;
impl Sender {
    /// Decrypts the data of an answer and takes from it what it says of receiver and path. `None`: somebody else wrote
    /// it, or it answers another packet.
    pub(super) fn read_claim(&mut self, sequence: u32, data: &[u8], answered_with: PacketType) -> Option<Claim> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(data);
        let claim = self.read_plaintext(sequence, self.keys.open(&mut scratch).map(|data| &*data), answered_with);
        self.scratch = scratch;
        self.is_connected |= claim.is_some();
        claim
    }

    fn read_plaintext(&mut self, sequence: u32, plaintext: Option<&[u8]>, answered_with: PacketType) -> Option<Claim> {
        let packet = Packet::parse(plaintext?).ok()?;
        let is_answer = match packet.packet_type {
            PacketType::Prepare => false,
            // It can happen on a Reject: a connector had reasons of its own to keep the Fulfill.
            PacketType::Fulfill => true,
            PacketType::Reject => answered_with == PacketType::Reject,
        };
        if !is_answer || packet.sequence != u64::from(sequence) {
            return None;
        }
        let mut is_closed = false;
        for frame in packet.frames() {
            match frame {
                Frame::ConnectionAssetDetails { code, scale } => self.learn_asset(code, scale),
                Frame::ConnectionClose { .. } => is_closed = true,
                Frame::StreamClose { stream, .. } => is_closed |= stream == STREAM_ID,
                Frame::StreamReceipt { stream, receipt } if stream == STREAM_ID => self.keep_receipt(receipt),
                _ => {}
            }
        }
        Some(Claim {
            arrived: packet.prepare_amount,
            is_closed,
        })
    }

    fn learn_asset(&mut self, code: &[u8], scale: u8) {
        let Some(code) = str::from_utf8(code)
            .ok()
            .filter(|code| code.len() <= ASSET_CODE_BYTES_MAX)
        else {
            return;
        };
        match &self.asset {
            None => {
                self.asset = Some(Asset {
                    code: code.into(),
                    scale,
                });
            }
            Some(asset) if *asset.code == *code && asset.scale == scale => {}
            // All amounts that it named so far have lost their meaning.
            Some(_) => self.fail(Failure::ReceiverMisbehaved),
        }
    }

    fn keep_receipt(&mut self, receipt: &[u8]) {
        let Ok(receipt) = <&[u8; RECEIPT_BYTES]>::try_from(receipt) else {
            return;
        };
        if let Some(total) = receipt::claimed_total(receipt)
            && self.receipt.is_none_or(|(known, _)| total > known)
        {
            self.receipt = Some((total, *receipt));
        }
    }

    pub(super) fn handle_fulfill(&mut self, now: Timestamp, sequence: u32, packet: &InFlight, claim: Option<Claim>) {
        self.release(sequence, packet);
        // The fulfillment proves that the receiver agreed to this much, whoever wrote or removed the data beside it.
        let arrived = claim.map_or(0, |claim| claim.arrived).max(packet.prepare_amount);
        self.amounts.fulfilled += packet.amount;
        self.amounts.delivered = self.amounts.delivered.saturating_add(arrived);
        self.window.handle_fulfill(packet.amount);
        self.idle_since = now;
        self.expired = 0;
        let Some(claim) = claim else { return };
        self.learn_path(packet.amount, claim.arrived);
        if claim.arrived < packet.prepare_amount {
            self.fail(Failure::ReceiverMisbehaved);
        } else if claim.is_closed && !self.is_paid() {
            self.fail(Failure::ClosedByReceiver);
        }
    }

    pub(super) fn handle_reject(
        &mut self,
        now: Timestamp,
        sequence: u32,
        packet: &InFlight,
        code: ErrorCode,
        data: &[u8],
    ) {
        let under_way = UnderWay {
            count: u32::try_from(self.in_flight.len())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
            amount: self.amounts.in_flight,
        };
        self.release(sequence, packet);
        if let Kind::Money { has_grace: true, .. } = packet.kind {
            self.has_spent_grace = false;
        }
        self.last_reject = Some(code);
        let claim = self.read_claim(sequence, data, PacketType::Reject);
        if let Some(claim) = claim {
            self.learn_path(packet.amount, claim.arrived);
            if claim.is_closed {
                self.fail(Failure::ClosedByReceiver);
            }
        }
        let next = self.next_sequence;
        match code {
            ErrorCode::F99_APPLICATION_ERROR => self.handle_refusal(now, sequence, packet, under_way, claim),
            ErrorCode::F08_AMOUNT_TOO_LARGE => {
                if self.capacity.handle_too_large(packet.amount, data).is_err() {
                    self.fail(Failure::Rejected(code));
                }
            }
            ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT => match packet.kind {
                Kind::Money { .. } => self.handle_rounding(packet, Failure::Rejected(code)),
                // The smallest of a volley are expected to be.
                Kind::Handshake | Kind::Probe => {}
            },
            ErrorCode::T04_INSUFFICIENT_LIQUIDITY => match packet.kind {
                Kind::Money { .. } => {
                    self.window
                        .handle_liquidity(now, sequence, next, under_way, self.jitter);
                }
                // What passed before is as much as can be said.
                Kind::Probe if self.phase == Phase::Search => self.phase = Phase::Done,
                // The largest of a volley are expected to be too much.
                Kind::Handshake | Kind::Probe => self.try_again(now, packet),
            },
            ErrorCode::R00_TRANSFER_TIMED_OUT => {
                if sequence >= self.expired_at {
                    self.expired += 1;
                    self.expired_at = next;
                }
                if self.expired > EXPIRED_MAX {
                    self.fail(Failure::Rejected(code));
                } else {
                    self.handle_busy(now, sequence, packet, under_way);
                }
            }
            _ if code.class() == ErrorClass::Temporary => self.handle_busy(now, sequence, packet, under_way),
            _ => self.fail(Failure::Rejected(code)),
        }
    }

    /// A packet failed for a reason that passes with time.
    fn handle_busy(&mut self, now: Timestamp, sequence: u32, packet: &InFlight, under_way: UnderWay) {
        match packet.kind {
            Kind::Money { .. } => {
                self.window
                    .handle_busy(now, sequence, self.next_sequence, under_way, self.jitter);
            }
            Kind::Handshake | Kind::Probe => self.try_again(now, packet),
        }
    }

    /// A packet without money did not get through.
    fn try_again(&mut self, now: Timestamp, packet: &InFlight) {
        match packet.kind {
            Kind::Handshake => self.window.pause(now, self.jitter),
            _ => self.probes_failed.push(packet.amount),
        }
    }

    /// The receiver refused a packet, or somebody who says so.
    fn handle_refusal(
        &mut self,
        now: Timestamp,
        sequence: u32,
        packet: &InFlight,
        under_way: UnderWay,
        claim: Option<Claim>,
    ) {
        if !packet.is_money() && claim.is_some() {
            // What it was sent for.
            return;
        }
        let arrived_short = claim
            .map(|claim| claim.arrived)
            .filter(|&arrived| arrived < packet.prepare_amount);
        let Some(arrived) = arrived_short else {
            // Perhaps it may not take so much at the moment. We cannot know; it ends when nothing is fulfilled for long.
            self.handle_busy(now, sequence, packet, under_way);
            return;
        };
        let is_rate = Ratio::bounds(packet.amount, arrived)
            .zip(self.rate_min)
            .is_none_or(|((_, upper), rate_min)| upper <= rate_min);
        if is_rate {
            self.fail(Failure::RateTooLow);
        } else {
            self.handle_rounding(packet, Failure::RateTooLow);
        }
    }

    /// A packet was too small to survive rounding. The last one may ask for a little less, all others have to be larger;
    /// if there can be no larger one, that is a failure.
    fn handle_rounding(&mut self, packet: &InFlight, failure: Failure) {
        // What is under way may come back and be sent together with the rest.
        let rest = self.amounts.left() + self.amounts.in_flight;
        let limit = self.capacity.limit().min(rest);
        let may_have_grace = match packet.kind {
            Kind::Money { is_last, has_grace, .. } => (is_last || packet.amount >= rest) && !has_grace,
            Kind::Handshake | Kind::Probe => false,
        };
        if may_have_grace && !self.has_spent_grace {
            self.needs_grace = true;
        } else if packet.amount >= limit {
            self.fail(failure);
        } else {
            let doubled = packet.amount.saturating_mul(2).min(limit);
            self.packet_amount_min = self.packet_amount_min.max(doubled);
        }
    }

    /// A packet is no longer under way.
    fn release(&mut self, sequence: u32, packet: &InFlight) {
        self.capacity.handle_answered(sequence);
        if let Kind::Money { delivered_max, .. } = packet.kind {
            self.amounts.in_flight -= packet.amount;
            self.delivered_in_flight = self.delivered_in_flight.saturating_sub(delivered_max);
        }
    }

    /// So much of `amount` reached the receiver.
    fn learn_path(&mut self, amount: u64, arrived: u64) {
        Bounds::learn(&mut self.bounds, amount, arrived);
        self.capacity.handle_passed(amount);
    }
}
