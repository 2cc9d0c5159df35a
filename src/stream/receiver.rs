//! Answers a Prepare that is addressed to one of our own accounts (RFC 29; protocols.md 9.4).
//!
//! Owns the rules of a receiver that keeps nothing between two packets: all it needs is in the token of the address and
//! in the packet. Leaves to the caller whose address it is, the books, and the totals of streams if somebody asked for
//! receipts.
//!
//! # What a payer is told
//! Money is taken on any stream, up to any amount: every stream that carries some is answered with the largest maximum
//! and the total 0, which promises all and claims nothing. A sender that counts streams learns once that it may open
//! more than it can use. Data is taken on none: the money beside it is, and the answer says that the windows for data
//! are 0. Packets are not refused for their data, because the senders there are would send it again at once, forever.
//!
//! Always: a Fulfill is made only for a packet that whoever has the shared secret made, and whose amount is at least
//! what that packet asks for. Nothing is kept and nothing is promised here: until the caller has booked the amount, it
//! may drop the answer and reject instead.

use super::RandomSource;
use super::crypto::{ConnectionKeys, NONCE_BYTES, condition};
use super::frame::{Frame, Packet, PacketBuilder, close_code};
use super::receipt::{self, RECEIPT_BYTES};
use super::secret::ReceiptKeys;
use crate::wire::packet::{CONDITION_BYTES, ErrorCode, PacketType, Prepare};

/// Streams that one packet may bring money for. Senders have one, the most general one known ten. The answer has three
/// frames for each, so this also bounds its length.
pub const STREAMS_MAX: usize = 32;

/// The highest stream that we announce: a sender that makes 2^31 packets, the most there may be, never gets there.
const STREAM_ID_MAX: u64 = i32::MAX as u64;
/// The same, if receipts were asked for: they have one byte for it.
const STREAM_ID_WITH_RECEIPT_MAX: u64 = u8::MAX as u64;
/// Senders count from 0 or from 1. The first packet is answered with the asset, asked or not.
const FIRST_SEQUENCE_MAX: u64 = 1;

/// What an address was made with, and for whom.
pub struct Recipient<'a> {
    pub keys: &'a ConnectionKeys,
    /// Of the account that is paid.
    pub asset_code: &'a str,
    pub asset_scale: u8,
    pub receipts: Option<Receipts<'a>>,
}

/// For an address whose payer asked for receipts.
pub struct Receipts<'a> {
    pub keys: &'a ReceiptKeys,
    /// What a stream of this address has received so far, in units of the account.
    pub total: &'a dyn Fn(u8) -> u64,
}

/// What to answer. The data of the answer was appended to the buffer that [`Receiver::answer`] was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Take the money, then send the Fulfill.
    Fulfill(Acceptance),
    /// Take nothing.
    Reject(Refusal),
}

/// What a Fulfill stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// Worth the amount until it is sent.
    pub fulfillment: [u8; CONDITION_BYTES],
    /// In units of the account; may be zero.
    pub amount: u64,
    pub sequence: u64,
    /// The new totals of streams that were named in a receipt, to be kept together with the amount. Empty unless
    /// receipts were asked for.
    pub totals: Vec<(u8, u64)>,
}

impl std::fmt::Debug for Acceptance {
    // A fulfillment stays out of logs.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Acceptance")
            .field("amount", &self.amount)
            .field("sequence", &self.sequence)
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}

/// Why nothing is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Whoever sent it does not know the secret, or nothing that we can read. There is no data to answer with.
    Unexpected,
    /// The sender says that it is done. This is the end of a connection that was used as it should.
    Closed { sequence: u64 },
    /// Less arrived than the sender said is acceptable.
    BelowMinimum { sequence: u64 },
    /// It cannot be fulfilled, as its sender knows: it is there to be answered.
    Probe { sequence: u64 },
    /// More than [`STREAMS_MAX`] streams, or one that no receipt can name.
    Streams { sequence: u64 },
}

impl Refusal {
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Unexpected => ErrorCode::F06_UNEXPECTED_PAYMENT,
            // Senders read the data of no other code.
            _ => ErrorCode::F99_APPLICATION_ERROR,
        }
    }

    /// For people who look at packets.
    pub const fn message(self) -> &'static str {
        match self {
            // Nobody learns from us whether an address exists.
            Self::Unexpected => "",
            Self::Closed { .. } => "the connection is closed",
            Self::BelowMinimum { .. } => "less arrived than the sender accepts",
            Self::Probe { .. } => "the condition cannot be fulfilled",
            Self::Streams { .. } => "too many streams",
        }
    }
}

/// Answers packets one after the other.
#[derive(Default)]
pub struct Receiver {
    /// Where packets are decrypted; kept from one to the next.
    scratch: Vec<u8>,
}

impl Receiver {
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers a Prepare that has not expired, addressed to `recipient`, and appends the data of the answer to `out`.
    pub fn answer(
        &mut self,
        recipient: &Recipient<'_>,
        prepare: &Prepare<'_>,
        random: &mut RandomSource<'_>,
        out: &mut Vec<u8>,
    ) -> Answer {
        self.scratch.clear();
        self.scratch.extend_from_slice(prepare.data());
        let request = recipient
            .keys
            .open(&mut self.scratch)
            .and_then(|plaintext| Packet::parse(plaintext).ok())
            .filter(|packet| packet.packet_type == PacketType::Prepare);
        let Some(request) = request else {
            return Answer::Reject(Refusal::Unexpected);
        };

        let mut frames = Vec::new();
        let answer = decide(recipient, prepare, &request, &mut frames);
        let mut receipts = Vec::new();
        let packet_type = match &answer {
            Answer::Fulfill(acceptance) => {
                if let Some(Receipts { keys, .. }) = &recipient.receipts {
                    let signed = |&(stream, total): &(u8, u64)| (stream, receipt::sign(keys, stream, total));
                    receipts.extend(acceptance.totals.iter().map(signed));
                }
                PacketType::Fulfill
            }
            Answer::Reject(_) => PacketType::Reject,
        };
        frames.extend(receipts.iter().map(receipt_frame));
        let reply = PacketBuilder {
            packet_type,
            sequence: request.sequence,
            prepare_amount: prepare.amount(),
            frames: &frames,
        };
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce);
        recipient.keys.seal(nonce, out, |out| reply.encode(out));
        answer
    }
}

fn receipt_frame((stream, receipt): &(u8, [u8; RECEIPT_BYTES])) -> Frame<'_> {
    Frame::StreamReceipt {
        stream: u64::from(*stream),
        receipt,
    }
}

/// The rules, in their order. Puts all frames of the answer but receipts into `frames`.
fn decide<'a>(
    recipient: &Recipient<'a>,
    prepare: &Prepare<'_>,
    request: &Packet<'_>,
    frames: &mut Vec<Frame<'a>>,
) -> Answer {
    let sequence = request.sequence;
    let is_closed = announce(recipient, request, frames);
    if is_closed {
        frames.push(closed_with(close_code::NO_ERROR));
        return Answer::Reject(Refusal::Closed { sequence });
    }
    if request.prepare_amount > prepare.amount() {
        return Answer::Reject(Refusal::BelowMinimum { sequence });
    }
    let fulfillment = recipient.keys.fulfillment(prepare.data());
    if condition(&fulfillment) != *prepare.condition() {
        return Answer::Reject(Refusal::Probe { sequence });
    }
    let Some(totals) = totals(recipient, prepare.amount(), request) else {
        frames.push(closed_with(close_code::STREAM_ID));
        return Answer::Reject(Refusal::Streams { sequence });
    };
    Answer::Fulfill(Acceptance {
        fulfillment,
        amount: prepare.amount(),
        sequence,
        totals,
    })
}

/// What the frames of a packet are answered with, whether it is fulfilled or not; says whether one of them closes the
/// connection.
fn announce<'a>(recipient: &Recipient<'a>, request: &Packet<'_>, frames: &mut Vec<Frame<'a>>) -> bool {
    let (mut is_closed, mut is_first, mut has_data) = (false, request.sequence <= FIRST_SEQUENCE_MAX, false);
    for frame in request.frames() {
        match frame {
            Frame::ConnectionClose { .. } => is_closed = true,
            Frame::ConnectionNewAddress { .. } => is_first = true,
            Frame::ConnectionDataBlocked { .. } => has_data = true,
            Frame::StreamMoney { stream, .. } => {
                let answered =
                    |frame: &Frame<'_>| matches!(frame, Frame::StreamMaxMoney { stream: s, .. } if *s == stream);
                if frames.len() < STREAMS_MAX && !frames.iter().any(answered) {
                    frames.push(Frame::StreamMaxMoney {
                        stream,
                        receive_max: u64::MAX,
                        received: 0,
                    });
                }
            }
            Frame::StreamData { stream, .. } | Frame::StreamDataBlocked { stream, .. } => {
                has_data = true;
                let window = Frame::StreamMaxData { stream, offset_max: 0 };
                if frames.len() < STREAMS_MAX && !frames.contains(&window) {
                    frames.push(window);
                }
            }
            _ => {}
        }
    }
    if is_first || has_data {
        frames.push(Frame::ConnectionMaxData { offset_max: 0 });
    }
    if is_first {
        frames.push(Frame::ConnectionMaxStreamId {
            stream_max: match recipient.receipts {
                None => STREAM_ID_MAX,
                Some(_) => STREAM_ID_WITH_RECEIPT_MAX,
            },
        });
        frames.push(Frame::ConnectionAssetDetails {
            code: recipient.asset_code.as_bytes(),
            scale: recipient.asset_scale,
        });
    }
    is_closed
}

const fn closed_with(code: u8) -> Frame<'static> {
    Frame::ConnectionClose { code, message: b"" }
}

/// The new total of each stream that the packet has money for; empty if nobody asked for receipts. `None` if there are
/// too many, or one that no receipt can name.
fn totals(recipient: &Recipient<'_>, amount: u64, request: &Packet<'_>) -> Option<Vec<(u8, u64)>> {
    let money = request.frames().filter_map(|frame| match frame {
        Frame::StreamMoney { stream, shares } => Some((stream, shares)),
        _ => None,
    });
    if money.clone().count() > STREAMS_MAX {
        return None;
    }
    let Some(Receipts { total, .. }) = recipient.receipts else {
        return Some(Vec::new());
    };
    // At most 32 numbers of 64 bits.
    let shares_total: u128 = money.clone().map(|(_, shares)| u128::from(shares)).sum();
    let mut totals: Vec<(u8, u64)> = Vec::new();
    let mut left = amount;
    for (stream, shares) in money {
        let stream = u8::try_from(stream).ok()?;
        // At most `amount`. No shares at all: nothing is said of streams.
        let part = (u128::from(amount) * u128::from(shares))
            .checked_div(shares_total)
            .unwrap_or(0) as u64;
        left -= part;
        match totals.iter_mut().find(|(known, _)| *known == stream) {
            Some((_, total)) => *total = total.saturating_add(part),
            None => totals.push((stream, total(stream).saturating_add(part))),
        }
    }
    // What the rounding left over belongs to the lowest stream.
    if let Some((_, total)) = totals.iter_mut().min_by_key(|(stream, _)| *stream)
        && shares_total > 0
    {
        *total = total.saturating_add(left);
    }
    Some(totals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::secret::{RECEIPT_NONCE_BYTES, RECEIPT_SECRET_BYTES};
    use crate::wire::address::Address;
    use crate::wire::packet::PrepareBuilder;
    use crate::wire::timestamp::Timestamp;

    const RECEIPT_KEYS: ReceiptKeys = ReceiptKeys {
        nonce: [3; RECEIPT_NONCE_BYTES],
        secret: [4; RECEIPT_SECRET_BYTES],
    };

    fn keys() -> ConnectionKeys {
        ConnectionKeys::new(&[7; 32])
    }

    /// A Prepare of `amount` around `data`, under a condition that is fulfilled by whoever has the keys, or by nobody.
    fn answer(data: &[u8], amount: u64, is_fulfillable: bool, has_receipts: bool) -> (Answer, Vec<u8>) {
        let mut bytes = Vec::new();
        let condition = match is_fulfillable {
            true => condition(&keys().fulfillment(data)),
            false => [0; CONDITION_BYTES],
        };
        PrepareBuilder {
            amount,
            expires_at: Timestamp::from_millis(1),
            execution_condition: &condition,
            destination: Address::from_static("test.hub.bob.token"),
            data,
        }
        .encode(&mut bytes);
        let total = |stream: u8| u64::from(stream) * 1_000;
        let recipient = Recipient {
            keys: &keys(),
            asset_code: "XYZ",
            asset_scale: 9,
            receipts: has_receipts.then_some(Receipts {
                keys: &RECEIPT_KEYS,
                total: &total,
            }),
        };
        let mut out = Vec::new();
        let prepare = Prepare::parse(&bytes).unwrap();
        let mut counter = 0;
        let mut random = |bytes: &mut [u8]| {
            counter += 1;
            bytes.fill(counter);
        };
        let answer = Receiver::new().answer(&recipient, &prepare, &mut random, &mut out);
        (answer, out)
    }

    fn sealed(packet_type: PacketType, sequence: u64, minimum: u64, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut data = Vec::new();
        let packet = PacketBuilder {
            packet_type,
            sequence,
            prepare_amount: minimum,
            frames,
        };
        keys().seal([1; NONCE_BYTES], &mut data, |out| packet.encode(out));
        data
    }

    /// One line of what is answered, and the frames of the answer in words.
    fn said((answer, mut data): (Answer, Vec<u8>)) -> String {
        let taken = match &answer {
            Answer::Fulfill(acceptance) => {
                assert_eq!(acceptance.fulfillment.len(), 32);
                format!(
                    "takes {} of #{} {:?}",
                    acceptance.amount, acceptance.sequence, acceptance.totals
                )
            }
            Answer::Reject(refusal) => format!("{} {refusal:?}", refusal.code()),
        };
        let Some(plaintext) = keys().open(&mut data) else {
            assert!(data.is_empty());
            return taken;
        };
        let reply = Packet::parse(plaintext).unwrap();
        let frames: Vec<String> = reply
            .frames()
            .map(|frame| match frame {
                Frame::StreamMaxMoney {
                    stream,
                    receive_max: u64::MAX,
                    received: 0,
                } => format!("12({stream})"),
                Frame::ConnectionAssetDetails { code: b"XYZ", scale: 9 } => "07".to_owned(),
                Frame::ConnectionMaxData { offset_max: 0 } => "03".to_owned(),
                Frame::ConnectionMaxStreamId { stream_max } => format!("05({stream_max})"),
                Frame::ConnectionClose { code, message: b"" } => format!("01({code})"),
                Frame::StreamMaxData { stream, offset_max: 0 } => format!("15({stream})"),
                Frame::StreamReceipt { stream, receipt } => {
                    let total = receipt::claimed_total(receipt.try_into().unwrap()).unwrap();
                    assert_eq!(receipt, receipt::sign(&RECEIPT_KEYS, stream as u8, total));
                    format!("17({stream},{total})")
                }
                other => format!("{other:?}"),
            })
            .collect();
        let travels_in = reply.packet_type;
        assert_eq!(travels_in == PacketType::Fulfill, matches!(answer, Answer::Fulfill(_)));
        format!(
            "{taken}; {} #{}: {}",
            reply.prepare_amount,
            reply.sequence,
            frames.join(" ")
        )
    }

    #[test]
    fn the_rules_in_their_order() {
        use Frame::*;
        let money = |stream, shares| StreamMoney { stream, shares };
        let address = ConnectionNewAddress { address: b"" };
        let close = ConnectionClose { code: 1, message: b"" };
        let data = StreamData {
            stream: 3,
            offset: 0,
            data: b"hello",
        };
        let check = |sequence, minimum, frames: &[Frame<'_>], amount, is_fulfillable, expected: &str| {
            let request = sealed(PacketType::Prepare, sequence, minimum, frames);
            assert_eq!(said(answer(&request, amount, is_fulfillable, false)), expected);
        };
        let first = "03 05(2147483647) 07";
        // Probes: the first is told all, the others what came of them.
        check(
            1,
            0,
            &[address],
            0,
            false,
            &format!("F99 Probe {{ sequence: 1 }}; 0 #1: {first}"),
        );
        check(
            0,
            0,
            &[],
            0,
            false,
            &format!("F99 Probe {{ sequence: 0 }}; 0 #0: {first}"),
        );
        check(
            5,
            0,
            &[address],
            7,
            false,
            &format!("F99 Probe {{ sequence: 5 }}; 7 #5: {first}"),
        );
        check(5, 0, &[money(1, 1)], 7, false, "F99 Probe { sequence: 5 }; 7 #5: 12(1)");
        check(5, 0, &[], 7, false, "F99 Probe { sequence: 5 }; 7 #5: ");
        // Money, with or without a stream, on any stream, and none of it.
        check(5, 7, &[money(1, 1)], 7, true, "takes 7 of #5 []; 7 #5: 12(1)");
        check(5, 7, &[], 8, true, "takes 8 of #5 []; 8 #5: ");
        check(5, 0, &[], 0, true, "takes 0 of #5 []; 0 #5: ");
        check(
            5,
            7,
            &[money(u64::MAX, u64::MAX), money(4, u64::MAX), money(4, 0)],
            u64::MAX,
            true,
            "takes 18446744073709551615 of #5 []; 18446744073709551615 #5: 12(18446744073709551615) 12(4)",
        );
        // Less than the minimum, which is looked at before the condition.
        for is_fulfillable in [true, false] {
            check(
                5,
                8,
                &[money(1, 1)],
                7,
                is_fulfillable,
                "F99 BelowMinimum { sequence: 5 }; 7 #5: 12(1)",
            );
        }
        // The end, whatever comes with it.
        check(9, 99, &[close], 0, false, "F99 Closed { sequence: 9 }; 0 #9: 01(1)");
        check(
            9,
            0,
            &[money(1, 1), close],
            5,
            true,
            "F99 Closed { sequence: 9 }; 5 #9: 12(1) 01(1)",
        );
        // Data: the money beside it is taken, the windows stay shut.
        check(
            5,
            0,
            &[money(1, 1), data, data],
            7,
            true,
            "takes 7 of #5 []; 7 #5: 12(1) 15(3) 03",
        );
        check(5, 0, &[data], 0, true, "takes 0 of #5 []; 0 #5: 15(3) 03");
        check(
            5,
            0,
            &[ConnectionDataBlocked { offset_max: 9 }],
            0,
            true,
            "takes 0 of #5 []; 0 #5: 03",
        );
        // Frames that need no answer.
        let others = [
            StreamMaxMoney {
                stream: 1,
                receive_max: 0,
                received: 0,
            },
            StreamClose {
                stream: 1,
                code: 1,
                message: b"",
            },
            ConnectionMaxStreamId { stream_max: 1 },
        ];
        check(5, 0, &others, 1, true, "takes 1 of #5 []; 1 #5: ");
        // As many streams as are answered, and one more.
        let mut many: Vec<Frame<'_>> = (1..=STREAMS_MAX as u64).map(|stream| money(stream, 1)).collect();
        let announced: Vec<String> = (1..=STREAMS_MAX).map(|stream| format!("12({stream})")).collect();
        let announced = announced.join(" ");
        check(5, 0, &many, 64, true, &format!("takes 64 of #5 []; 64 #5: {announced}"));
        many.push(money(99, 1));
        check(
            5,
            0,
            &many,
            64,
            true,
            &format!("F99 Streams {{ sequence: 5 }}; 64 #5: {announced} 01(5)"),
        );
    }

    #[test]
    fn strangers_learn_nothing() {
        let unexpected = "F06 Unexpected";
        let of_type = |packet_type| sealed(packet_type, 1, 0, &[]);
        let mut changed = of_type(PacketType::Prepare);
        changed[30] ^= 1;
        let mut not_stream = Vec::new();
        keys().seal([1; NONCE_BYTES], &mut not_stream, |out| {
            out.extend_from_slice(&[2, 12, 1, 0, 1, 0, 1, 0])
        });
        for data in [
            Vec::new(),
            b"hello".to_vec(),
            vec![0; 32_767],
            changed,
            not_stream,
            of_type(PacketType::Fulfill),
            of_type(PacketType::Reject),
        ] {
            assert_eq!(said(answer(&data, 5, true, true)), unexpected);
        }
        assert_eq!(Refusal::Unexpected.message(), "");
    }

    #[test]
    fn receipts_for_each_stream() {
        let check = |frames: &[(u64, u64)], amount, expected: &str| {
            let frames: Vec<Frame<'_>> = frames
                .iter()
                .map(|&(stream, shares)| Frame::StreamMoney { stream, shares })
                .collect();
            let request = sealed(PacketType::Prepare, 5, 0, &frames);
            assert_eq!(said(answer(&request, amount, true, true)), expected);
        };
        check(&[(1, 1)], 7, "takes 7 of #5 [(1, 1007)]; 7 #5: 12(1) 17(1,1007)");
        // By shares; what the division leaves goes to the lowest.
        check(
            &[(3, 1), (1, 1), (5, 1)],
            8,
            "takes 8 of #5 [(3, 3002), (1, 1004), (5, 5002)]; 8 #5: 12(3) 12(1) 12(5) 17(3,3002) 17(1,1004) 17(5,5002)",
        );
        check(
            &[(1, u64::MAX), (3, u64::MAX)],
            u64::MAX,
            concat!(
                "takes 18446744073709551615 of #5 [(1, 9223372036854776808), (3, 9223372036854778807)]; ",
                "18446744073709551615 #5: 12(1) 12(3) 17(1,9223372036854776808) 17(3,9223372036854778807)"
            ),
        );
        check(
            &[(1, 1), (1, 2)],
            9,
            "takes 9 of #5 [(1, 1009)]; 9 #5: 12(1) 17(1,1009)",
        );
        check(&[(1, 0)], 9, "takes 9 of #5 [(1, 1000)]; 9 #5: 12(1) 17(1,1000)");
        check(&[], 9, "takes 9 of #5 []; 9 #5: ");
        // A receipt has one byte for it.
        check(
            &[(255, 1)],
            1,
            "takes 1 of #5 [(255, 255001)]; 1 #5: 12(255) 17(255,255001)",
        );
        check(&[(256, 1)], 1, "F99 Streams { sequence: 5 }; 1 #5: 12(256) 01(5)");
        // Only what is taken has a receipt.
        let request = sealed(PacketType::Prepare, 1, 0, &[]);
        assert_eq!(
            said(answer(&request, 1, false, true)),
            "F99 Probe { sequence: 1 }; 1 #1: 03 05(255) 07"
        );
    }
}
