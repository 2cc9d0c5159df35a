//! What goes out: which packet is next, how much it carries, and what it says.

use super::{BARE_TOKEN_BYTES, Failure, Kind, Phase, SEQUENCE_MAX, STREAM_ID, Sender, Target};
use crate::stream::crypto::NONCE_BYTES;
use crate::stream::frame::{Frame, PacketBuilder, close_code};
use crate::wire::packet::PacketType;
use crate::wire::timestamp::Timestamp;
impl Sender {
    /// The kind of the next packet (none for the close), its amount, and the least that may arrive of it.
    pub(super) fn next_packet(&mut self, now: Timestamp) -> Option<(Option<Kind>, u64, u64)> {
        match self.phase {
            Phase::AwaitingRate | Phase::Ending | Phase::Done => return None,
            Phase::Closing => {
                self.phase = Phase::Done;
                return Some((None, 0, 0));
            }
            Phase::Handshake | Phase::Volley | Phase::Search | Phase::Paying => {}
        }
        if self.window.is_paused(now) {
            return None;
        }
        let packet = match self.phase {
            Phase::Handshake if self.in_flight.is_empty() => (Kind::Handshake, 0, 0),
            Phase::Volley if self.is_probing_alone && !self.in_flight.is_empty() => return None,
            Phase::Volley | Phase::Search => (Kind::Probe, self.probes.pop()?, 0),
            Phase::Paying => self.next_money()?,
            _ => return None,
        };
        if self.next_sequence > SEQUENCE_MAX {
            self.fail(Failure::TooManyPackets);
            return self.next_packet(now);
        }
        let (kind, amount, prepare_amount) = packet;
        Some((Some(kind), amount, prepare_amount))
    }

    /// The next packet with money: as large as the path allows, but so that what is left falls into packets of one size,
    /// because a small rest would be lost to rounding.
    fn next_money(&mut self) -> Option<(Kind, u64, u64)> {
        let rate_min = self.rate_min?;
        if self.in_flight.len() >= self.window.count() as usize {
            return None;
        }
        let wanted = self.wanted();
        let limit = self.capacity.next_amount();
        if wanted == 0 || limit == 0 {
            return None;
        }
        let in_parts = |limit: u64| wanted.div_ceil(wanted.div_ceil(limit));
        let amount = in_parts(limit.min(self.window.amount())).max(self.packet_amount_min.min(limit).min(wanted));
        let room = self.window.amount().saturating_sub(self.amounts.in_flight);
        if amount > room && self.amounts.in_flight > 0 {
            return None;
        }
        let is_last = amount == wanted;
        let has_grace = is_last && self.needs_grace && !self.has_spent_grace;
        // It is the last only if nothing comes back before it.
        if has_grace && self.amounts.in_flight > 0 {
            return None;
        }
        let prepare_amount = rate_min.times_ceil(amount - u64::from(has_grace));
        let kind = Kind::Money {
            is_last,
            has_grace,
            delivered_max: self
                .bounds
                .map_or(0, |bounds| bounds.delivered_max(amount))
                .max(prepare_amount),
        };
        Some((kind, amount, prepare_amount))
    }

    /// What should be sent now if one packet could carry it, in source units.
    pub(super) fn wanted(&self) -> u64 {
        let left = self.amounts.left();
        let Target::Destination { amount, .. } = self.target else {
            return left;
        };
        let missing = amount
            .saturating_sub(self.amounts.delivered)
            .saturating_sub(self.delivered_in_flight);
        if missing == 0 {
            return 0;
        }
        let source = if self.needs_grace && self.amounts.in_flight == 0 {
            // All that the minimum rate and the one unit of grace allow: so little is missing that rounding matters.
            self.rate_min
                .and_then(|rate_min| rate_min.divide_floor(missing))
                .map(|source| source.saturating_add(1))
        } else {
            self.bounds.and_then(|bounds| bounds.lower.divide_ceil(missing))
        };
        // None: nothing arrives of what is sent.
        source.map_or(0, |source| source.min(left))
    }

    /// Notes that a packet leaves.
    pub(super) fn hold(&mut self, sequence: u32, kind: Kind, amount: u64) {
        self.capacity.handle_sent(sequence, amount);
        if let Kind::Money {
            has_grace,
            delivered_max,
            ..
        } = kind
        {
            assert!(amount > 0 && amount <= self.amounts.left(), "never more than there is");
            self.amounts.in_flight += amount;
            self.delivered_in_flight = self.delivered_in_flight.saturating_add(delivered_max);
            self.has_spent_grace |= has_grace;
        }
    }

    pub(super) fn write_data(
        &mut self,
        nonce: [u8; NONCE_BYTES],
        sequence: u32,
        kind: Option<Kind>,
        prepare_amount: u64,
    ) {
        let mut data = std::mem::take(&mut self.data);
        data.clear();
        let handshake = [
            Frame::ConnectionNewAddress {
                address: self.handshake_address().as_bytes(),
            },
            Frame::ConnectionAssetDetails {
                code: self.source_asset.code.as_bytes(),
                scale: self.source_asset.scale,
            },
        ];
        const MONEY: [Frame<'static>; 1] = [Frame::StreamMoney {
            stream: STREAM_ID,
            shares: 1,
        }];
        const CLOSE: [Frame<'static>; 1] = [Frame::ConnectionClose {
            code: close_code::NO_ERROR,
            message: b"",
        }];
        let frames: &[Frame<'_>] = match kind {
            Some(Kind::Handshake) => &handshake,
            Some(Kind::Probe) => &[],
            Some(Kind::Money { .. }) => &MONEY,
            None => &CLOSE,
        };
        let packet = PacketBuilder {
            packet_type: PacketType::Prepare,
            sequence: sequence.into(),
            prepare_amount,
            frames,
        };
        self.keys.seal(nonce, &mut data, |out| packet.encode(out));
        self.data = data;
    }

    /// What we say our address is, to be told the receiver's asset. A receiver that can send back begins to, with packets
    /// that nobody here takes, and gives the connection up when they fail: so it gets no address. A widely used node
    /// refuses that; it never sends back, and its tokens have a length of their own.
    fn handshake_address(&self) -> &str {
        match self.destination.rsplit_once('.') {
            Some((_, token)) if token.len() == BARE_TOKEN_BYTES => &self.source_address,
            _ => "",
        }
    }
}
