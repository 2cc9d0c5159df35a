//! What the two ends of a STREAM connection tell each other (RFC 29, section 5): a packet of frames, as it is before
//! encryption.
//!
//! Owns the layout of packet and frames, in both directions. Leaves the encryption to [`super::crypto`], and what a frame
//! means to the two ends.
//!
//! Always: what [`Packet::parse`] accepted has well-formed frames to its end; nothing is allocated or copied from what
//! arrived. Frames of unknown types are skipped, bytes after the last frame and at the end of a frame are ignored, for
//! they are padding or a later version's; a frame that is known and cannot be read makes the whole packet invalid, as
//! it does at every other implementation.

use crate::wire::oer::{OerError, Reader, write_length, write_var_octets, write_var_uint};
use crate::wire::packet::{PacketType, packet_type};

/// The only version there is.
const VERSION: u8 = 1;
/// A frame's type and the length of its contents: no frame is shorter.
const FRAME_BYTES_MIN: usize = 2;

/// Codes of [`Frame::ConnectionClose`] and [`Frame::StreamClose`] that we write; any may arrive.
pub mod close_code {
    /// All is done.
    pub const NO_ERROR: u8 = 1;
    /// A stream that may not be opened.
    pub const STREAM_ID: u8 = 5;
}

/// Why decrypted bytes are not a packet of STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrames {
    /// A length, or the end of the bytes.
    #[error("malformed STREAM packet: {0}")]
    Malformed(#[from] OerError),
    /// A version other than 1.
    #[error("unknown STREAM version {0}")]
    Version(u8),
    /// It says that it travels in something that is no ILP packet.
    #[error("a STREAM packet in ILP packet type {0}")]
    PacketType(u8),
}

/// One frame. Numbers of streams, offsets and totals are as the RFC has them; text is as it arrived, UTF-8 or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The connection ends.
    ConnectionClose { code: u8, message: &'a [u8] },
    /// The address of who writes this; empty if nothing can be sent there.
    ConnectionNewAddress { address: &'a [u8] },
    /// Bytes of data that all streams together may carry.
    ConnectionMaxData { offset_max: u64 },
    /// More data waits than [`Frame::ConnectionMaxData`] allows.
    ConnectionDataBlocked { offset_max: u64 },
    /// The highest number that a stream may have.
    ConnectionMaxStreamId { stream_max: u64 },
    /// A stream with a higher number is wanted.
    ConnectionStreamIdBlocked { stream_max: u64 },
    /// The asset of who writes this.
    ConnectionAssetDetails { code: &'a [u8], scale: u8 },
    /// One stream ends.
    StreamClose { stream: u64, code: u8, message: &'a [u8] },
    /// The stream's part of the packet's amount: its shares out of all shares in the packet.
    StreamMoney { stream: u64, shares: u64 },
    /// What the stream may receive in all, and has received, in units of who writes this.
    StreamMaxMoney {
        stream: u64,
        receive_max: u64,
        received: u64,
    },
    /// More money waits than [`Frame::StreamMaxMoney`] allows.
    StreamMoneyBlocked { stream: u64, send_max: u64, sent: u64 },
    /// Bytes of an application.
    StreamData { stream: u64, offset: u64, data: &'a [u8] },
    /// Bytes of data that the stream may carry.
    StreamMaxData { stream: u64, offset_max: u64 },
    /// More data waits than [`Frame::StreamMaxData`] allows.
    StreamDataBlocked { stream: u64, offset_max: u64 },
    /// Proof of what the stream has received, for a third party (RFC 39).
    StreamReceipt { stream: u64, receipt: &'a [u8] },
}

impl<'a> Frame<'a> {
    /// `None` for a type that is not known.
    fn parse(frame_type: u8, contents: &'a [u8]) -> Result<Option<Self>, OerError> {
        let mut from = Reader::new(contents);
        Ok(Some(match frame_type {
            0x01 => Self::ConnectionClose {
                code: from.read_u8()?,
                message: from.read_var_octets()?,
            },
            0x02 => Self::ConnectionNewAddress {
                address: from.read_var_octets()?,
            },
            0x03 => Self::ConnectionMaxData {
                offset_max: from.read_var_uint()?,
            },
            0x04 => Self::ConnectionDataBlocked {
                offset_max: from.read_var_uint()?,
            },
            0x05 => Self::ConnectionMaxStreamId {
                stream_max: from.read_var_uint()?,
            },
            0x06 => Self::ConnectionStreamIdBlocked {
                stream_max: from.read_var_uint()?,
            },
            0x07 => Self::ConnectionAssetDetails {
                code: from.read_var_octets()?,
                scale: from.read_u8()?,
            },
            0x10 => Self::StreamClose {
                stream: from.read_var_uint()?,
                code: from.read_u8()?,
                message: from.read_var_octets()?,
            },
            0x11 => Self::StreamMoney {
                stream: from.read_var_uint()?,
                shares: from.read_var_uint()?,
            },
            0x12 => Self::StreamMaxMoney {
                stream: from.read_var_uint()?,
                receive_max: read_saturating(&mut from)?,
                received: from.read_var_uint()?,
            },
            0x13 => Self::StreamMoneyBlocked {
                stream: from.read_var_uint()?,
                send_max: read_saturating(&mut from)?,
                sent: from.read_var_uint()?,
            },
            0x14 => Self::StreamData {
                stream: from.read_var_uint()?,
                offset: from.read_var_uint()?,
                data: from.read_var_octets()?,
            },
            0x15 => Self::StreamMaxData {
                stream: from.read_var_uint()?,
                offset_max: from.read_var_uint()?,
            },
            0x16 => Self::StreamDataBlocked {
                stream: from.read_var_uint()?,
                offset_max: from.read_var_uint()?,
            },
            0x17 => Self::StreamReceipt {
                stream: from.read_var_uint()?,
                receipt: from.read_var_octets()?,
            },
            _ => return Ok(None),
        }))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        // The length of most frames is one byte; it is known when the contents are written, and then put before them.
        let frame_type = out.len();
        out.push(0);
        let contents = out.len();
        out[frame_type] = match *self {
            Self::ConnectionClose { code, message } => {
                out.push(code);
                write_var_octets(out, message);
                0x01
            }
            Self::ConnectionNewAddress { address } => {
                write_var_octets(out, address);
                0x02
            }
            Self::ConnectionMaxData { offset_max } => {
                write_var_uint(out, offset_max);
                0x03
            }
            Self::ConnectionDataBlocked { offset_max } => {
                write_var_uint(out, offset_max);
                0x04
            }
            Self::ConnectionMaxStreamId { stream_max } => {
                write_var_uint(out, stream_max);
                0x05
            }
            Self::ConnectionStreamIdBlocked { stream_max } => {
                write_var_uint(out, stream_max);
                0x06
            }
            Self::ConnectionAssetDetails { code, scale } => {
                write_var_octets(out, code);
                out.push(scale);
                0x07
            }
            Self::StreamClose { stream, code, message } => {
                write_var_uint(out, stream);
                out.push(code);
                write_var_octets(out, message);
                0x10
            }
            Self::StreamMoney { stream, shares } => {
                write_var_uint(out, stream);
                write_var_uint(out, shares);
                0x11
            }
            Self::StreamMaxMoney {
                stream,
                receive_max,
                received,
            } => {
                write_var_uint(out, stream);
                write_var_uint(out, receive_max);
                write_var_uint(out, received);
                0x12
            }
            Self::StreamMoneyBlocked { stream, send_max, sent } => {
                write_var_uint(out, stream);
                write_var_uint(out, send_max);
                write_var_uint(out, sent);
                0x13
            }
            Self::StreamData { stream, offset, data } => {
                write_var_uint(out, stream);
                write_var_uint(out, offset);
                write_var_octets(out, data);
                0x14
            }
            Self::StreamMaxData { stream, offset_max } => {
                write_var_uint(out, stream);
                write_var_uint(out, offset_max);
                0x15
            }
            Self::StreamDataBlocked { stream, offset_max } => {
                write_var_uint(out, stream);
                write_var_uint(out, offset_max);
                0x16
            }
            Self::StreamReceipt { stream, receipt } => {
                write_var_uint(out, stream);
                write_var_octets(out, receipt);
                0x17
            }
        };
        let contents_bytes = out.len() - contents;
        write_length(out, contents_bytes);
        let length_bytes = out.len() - contents - contents_bytes;
        out[contents..].rotate_right(length_bytes);
    }
}

/// A variable-length integer of any length: above 2^64-1 it is read as that. For amounts that mean "no limit".
fn read_saturating(from: &mut Reader<'_>) -> Result<u64, OerError> {
    let bytes = from.read_var_octets()?;
    if bytes.is_empty() {
        return Err(OerError::EmptyInteger);
    }
    let (high, low) = bytes.split_at(bytes.len().saturating_sub(size_of::<u64>()));
    if high.iter().any(|&byte| byte != 0) {
        return Ok(u64::MAX);
    }
    Ok(low.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// A packet of frames, borrowed from the bytes it was decrypted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The ILP packet that its writer put it into.
    pub packet_type: PacketType,
    /// Of the Prepare, also in the answer to it.
    pub sequence: u64,
    /// In a Prepare the least that the receiver may accept, in an answer what arrived; in units of the receiver.
    pub prepare_amount: u64,
    frame_count: usize,
    /// The frames, and what follows them.
    frames: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet and checks all of its frames.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidFrames> {
        let mut from = Reader::new(bytes);
        let version = from.read_u8()?;
        if version != VERSION {
            return Err(InvalidFrames::Version(version));
        }
        let travels_in = from.read_u8()?;
        let packet_type = packet_type(&[travels_in]).ok_or(InvalidFrames::PacketType(travels_in))?;
        let sequence = from.read_var_uint()?;
        let prepare_amount = from.read_var_uint()?;
        let frame_count = from.read_count(FRAME_BYTES_MIN)?;
        let frames = from.remaining();
        for _ in 0..frame_count {
            let frame_type = from.read_u8()?;
            Frame::parse(frame_type, from.read_var_octets()?)?;
        }
        Ok(Self {
            packet_type,
            sequence,
            prepare_amount,
            frame_count,
            frames,
        })
    }

    /// The frames whose type is known, in the order of the packet.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'a>> + Clone + use<'a> {
        let mut from = Reader::new(self.frames);
        // All of them were read once without an error.
        (0..self.frame_count).filter_map(move |_| {
            let frame_type = from.read_u8().ok()?;
            Frame::parse(frame_type, from.read_var_octets().ok()?).ok()?
        })
    }
}

/// A packet to be written.
#[derive(Debug, Clone, Copy)]
pub struct PacketBuilder<'a> {
    pub packet_type: PacketType,
    pub sequence: u64,
    pub prepare_amount: u64,
    pub frames: &'a [Frame<'a>],
}

impl PacketBuilder<'_> {
    /// Appends the packet to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[VERSION, self.packet_type as u8]);
        write_var_uint(out, self.sequence);
        write_var_uint(out, self.prepare_amount);
        write_var_uint(out, self.frames.len() as u64);
        for frame in self.frames {
            frame.encode(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::hex;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn encoded(packet_type: PacketType, sequence: u64, prepare_amount: u64, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder {
            packet_type,
            sequence,
            prepare_amount,
            frames,
        }
        .encode(&mut out);
        out
    }

    /// Reads `text` as these frames, and writes them as `text` again.
    fn check(text: &str, packet_type: PacketType, sequence: u64, prepare_amount: u64, frames: &[Frame<'_>]) {
        let bytes = hex(text);
        let packet = Packet::parse(&bytes).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(
            (packet.packet_type, packet.sequence, packet.prepare_amount),
            (packet_type, sequence, prepare_amount),
            "{text}"
        );
        assert_eq!(packet.frames().collect::<Vec<_>>(), frames, "{text}");
        assert_eq!(encoded(packet_type, sequence, prepare_amount, frames), bytes, "{text}");
    }

    // The numbers are those of protocols.md 12.6.

    #[test]
    fn a_packet_with_every_frame() {
        let frames = [
            Frame::ConnectionClose {
                code: close_code::NO_ERROR,
                message: b"oop",
            },
            Frame::ConnectionNewAddress {
                address: b"example.blah",
            },
            Frame::ConnectionMaxData { offset_max: 1_000 },
            Frame::ConnectionDataBlocked { offset_max: 2_000 },
            Frame::ConnectionMaxStreamId { stream_max: 3_000 },
            Frame::ConnectionStreamIdBlocked { stream_max: 4_000 },
            Frame::ConnectionAssetDetails { code: b"XYZ", scale: 9 },
            Frame::StreamClose {
                stream: 76,
                code: 2,
                message: b"blah",
            },
            Frame::StreamMoney { stream: 88, shares: 99 },
            Frame::StreamMaxMoney {
                stream: 11,
                receive_max: 987,
                received: 500,
            },
            Frame::StreamMoneyBlocked {
                stream: 66,
                send_max: 20_000,
                sent: 6_000,
            },
            Frame::StreamData {
                stream: 34,
                offset: 9_000,
                data: b"hello",
            },
            Frame::StreamMaxData {
                stream: 35,
                offset_max: 8_766,
            },
            Frame::StreamDataBlocked {
                stream: 888,
                offset_max: 44_444,
            },
        ];
        check(
            concat!(
                "010c01010163010e010501036f6f70020d0c6578616d706c652e626c616803030203e804030207d00503020bb80603020fa0",
                "07050358595a091008014c0204626c61681104015801631208010b0203db0201f413080142024e20021770140b0122022328",
                "0568656c6c6f1505012302223e160602037802ad9c"
            ),
            PacketType::Prepare,
            1,
            99,
            &frames,
        ); // 62
    }

    #[test]
    fn packets_of_one_frame_and_of_none() {
        use PacketType::{Fulfill, Prepare};
        check("010c010001000100", Prepare, 0, 0, &[]); // 64
        check("010d010001000100", Fulfill, 0, 0, &[]);
        check("010c08ffffffffffffffff01000100", Prepare, u64::MAX, 0, &[]);
        check("010c010008ffffffffffffffff0100", Prepare, 0, u64::MAX, &[]);

        let receipt = hex(concat!(
            "01000000000000000000000000000000000100000000000001f4",
            "c122fa0252debb672d591823f710e99516d67385cf397da87cc8f9e8c8bf5130"
        ));
        let one: &[(&str, Frame<'_>)] = &[
            (
                "01010601046661696c",
                Frame::ConnectionClose {
                    code: 1,
                    message: b"fail",
                },
            ), // 65
            (
                "01020e0d6578616d706c652e616c696365",
                Frame::ConnectionNewAddress {
                    address: b"example.alice",
                },
            ),
            ("01020100", Frame::ConnectionNewAddress { address: b"" }),
            (
                "01070503414243ff",
                Frame::ConnectionAssetDetails {
                    code: b"ABC",
                    scale: 255,
                },
            ),
            (
                "011014017bff10616e206572726f72206d657373616765",
                Frame::StreamClose {
                    stream: 123,
                    code: 255,
                    message: b"an error message",
                },
            ),
            ("011104017b0100", Frame::StreamMoney { stream: 123, shares: 0 }),
            (
                "01140c017b0201c806666f6f626172",
                Frame::StreamData {
                    stream: 123,
                    offset: 456,
                    data: b"foobar",
                },
            ),
            (
                concat!(
                    "01173d01013a01000000000000000000000000000000000100000000000001f4",
                    "c122fa0252debb672d591823f710e99516d67385cf397da87cc8f9e8c8bf5130"
                ),
                Frame::StreamReceipt {
                    stream: 1,
                    receipt: &receipt,
                },
            ), // 73
        ];
        for (text, frame) in one {
            check(&format!("010c0100010001{text}"), Prepare, 0, 0, &[*frame]);
        }
    }

    #[test]
    fn what_is_liberal() {
        let frames = |text: &str| {
            let bytes = hex(text);
            let frames = Packet::parse(&bytes).unwrap();
            frames.frames().map(|frame| format!("{frame:?}")).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        // 63: an unknown frame, alone and before a known one.
        assert_eq!(frames("010c0101016301015903010203"), none);
        assert_eq!(
            frames("010c01010163010259030102030303020102"),
            ["ConnectionMaxData { offset_max: 258 }"]
        );
        // 68: junk after no frame.
        assert_eq!(frames("010e010001000100001f1f1f006011"), none);
        // Bytes at the end of a frame that no version knows yet.
        assert_eq!(
            frames("010c01000100010103040102ffff"),
            ["ConnectionMaxData { offset_max: 2 }"]
        );
        // 66: above 2^64-1; and exactly that, with zeros in front.
        assert_eq!(
            frames("010c010001000101120f017b090100000000000000000201c8"),
            ["StreamMaxMoney { stream: 123, receive_max: 18446744073709551615, received: 456 }"]
        );
        assert_eq!(
            frames("010c0100010001011310017b0a000000000000000000070201c8"),
            ["StreamMoneyBlocked { stream: 123, send_max: 7, sent: 456 }"]
        );
    }

    #[test]
    fn what_is_refused() {
        use InvalidFrames::*;
        for (text, expected) in [
            ("", Malformed(OerError::Truncated)),
            ("020c010001000100", Version(2)),
            ("0100010001000100", PacketType(0)),
            ("010f010001000100", PacketType(15)),
            ("010c0100", Malformed(OerError::Truncated)),
            ("010c0001000100", Malformed(OerError::EmptyInteger)),
            ("010c09010203040506070809", Malformed(OerError::IntegerTooLong)),
            ("010c01000100", Malformed(OerError::Truncated)),
            // More frames than bytes could hold, however many are announced.
            ("010c010001000102033000", Malformed(OerError::CountTooLarge)),
            ("010c0100010008ffffffffffffffff", Malformed(OerError::CountTooLarge)),
            // One frame where two are announced.
            ("010c0100010001020303020102", Malformed(OerError::Truncated)),
            // 67: the contents of a close end within its message.
            (
                "010e0305000003050e090103010300041403070e05000000000000000000000000",
                Malformed(OerError::Truncated),
            ),
            // Only two fields may exceed 64 bits.
            (
                "010c010001000101110d017b09010000000000000000",
                Malformed(OerError::Truncated),
            ),
            (
                "010c010001000101110c017b09010000000000000000",
                Malformed(OerError::IntegerTooLong),
            ),
            ("010c0100010001011206017b000201c8", Malformed(OerError::EmptyInteger)),
        ] {
            assert_eq!(Packet::parse(&hex(text)).map(drop), Err(expected), "{text}");
        }
    }

    /// Owned contents for every frame that can be written.
    fn any_frame() -> impl Strategy<Value = (u8, u64, u64, u64, u8, Vec<u8>)> {
        (
            0..15u8,
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<u8>(),
            vec(any::<u8>(), 0..300),
        )
    }

    fn frame((which, a, b, c, byte, bytes): &(u8, u64, u64, u64, u8, Vec<u8>)) -> Frame<'_> {
        let (stream, b, c, code) = (*a, *b, *c, *byte);
        match which {
            0 => Frame::ConnectionClose { code, message: bytes },
            1 => Frame::ConnectionNewAddress { address: bytes },
            2 => Frame::ConnectionMaxData { offset_max: b },
            3 => Frame::ConnectionDataBlocked { offset_max: b },
            4 => Frame::ConnectionMaxStreamId { stream_max: b },
            5 => Frame::ConnectionStreamIdBlocked { stream_max: b },
            6 => Frame::ConnectionAssetDetails {
                code: bytes,
                scale: code,
            },
            7 => Frame::StreamClose {
                stream,
                code,
                message: bytes,
            },
            8 => Frame::StreamMoney { stream, shares: b },
            9 => Frame::StreamMaxMoney {
                stream,
                receive_max: b,
                received: c,
            },
            10 => Frame::StreamMoneyBlocked {
                stream,
                send_max: b,
                sent: c,
            },
            11 => Frame::StreamData {
                stream,
                offset: b,
                data: bytes,
            },
            12 => Frame::StreamMaxData { stream, offset_max: b },
            13 => Frame::StreamDataBlocked { stream, offset_max: b },
            _ => Frame::StreamReceipt { stream, receipt: bytes },
        }
    }

    proptest! {
        #[test]
        fn packets_round_trip(
            travels_in in 12..15u8,
            sequence: u64,
            prepare_amount: u64,
            contents in vec(any_frame(), 0..8),
            junk in vec(any::<u8>(), 0..20),
        ) {
            let frames: Vec<Frame<'_>> = contents.iter().map(frame).collect();
            let packet_type = packet_type(&[travels_in]).unwrap();
            let mut bytes = encoded(packet_type, sequence, prepare_amount, &frames);
            let frames_end = bytes.len();
            bytes.extend_from_slice(&junk);
            let packet = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(packet.packet_type, packet_type);
            prop_assert_eq!((packet.sequence, packet.prepare_amount), (sequence, prepare_amount));
            prop_assert_eq!(packet.frames().collect::<Vec<_>>(), frames);
            for end in 0..frames_end {
                prop_assert!(Packet::parse(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn no_input_panics(bytes in vec(any::<u8>(), 0..200), contents in vec(any_frame(), 0..4), at: prop::sample::Index) {
            let _ = Packet::parse(&bytes).map(|packet| packet.frames().count());
            let mut damaged = encoded(PacketType::Prepare, 1, 2, &contents.iter().map(frame).collect::<Vec<_>>());
            let at = at.index(damaged.len());
            damaged[at] ^= bytes.first().copied().unwrap_or(1);
            if let Ok(packet) = Packet::parse(&damaged) {
                prop_assert!(packet.frames().count() <= damaged.len() / FRAME_BYTES_MIN);
            }
        }
    }
}
