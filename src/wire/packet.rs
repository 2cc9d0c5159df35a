//! ILPv4 packets (RFC 27): Prepare, Fulfill and Reject, parsed in place, patched in place, encoded.
//!
//! Owns the layout of packets. Leaves the codes of rejections to [`super::error_code`], and to the
//! links where a packet begins and ends.
//! Always: what [`Prepare::parse`] accepted can be patched and forwarded without looking at it
//! again; a packet is forwarded without the bytes after its envelope and with every byte inside it,
//! known or not, because the fields of a future version follow the last one of this; parsing
//! neither allocates nor copies.

use std::fmt;

pub use super::error_code::{ErrorClass, ErrorCode};

use super::address::{ADDRESS_BYTES_MAX, Address, AddressError};
use super::oer::{OerError, Reader, length_size, write_length, write_var_octets};
use super::timestamp::{INTERLEDGER_BYTES, Timestamp};

/// The longest data of a packet (RFC 27), for the application at its end.
pub const DATA_BYTES_MAX: usize = 32_767;
/// The longest packet accepted, with what a future version may add to it.
pub const PACKET_BYTES_MAX: usize = 65_536;
/// The longest message of a Reject that we write (RFC 27); we read longer ones.
pub const MESSAGE_BYTES_MAX: usize = 8_191;

/// Conditions and fulfillments are SHA-256: as long as its output.
pub const CONDITION_BYTES: usize = 32;

/// The fulfillment of every packet between neighbours (addresses under `peer.`): it proves nothing.
pub const PEER_FULFILLMENT: [u8; CONDITION_BYTES] = [0; CONDITION_BYTES];
/// The condition that goes with [`PEER_FULFILLMENT`]: its SHA-256.
pub const PEER_CONDITION: [u8; CONDITION_BYTES] = [
    0x66, 0x68, 0x7a, 0xad, 0xf8, 0x62, 0xbd, 0x77, 0x6c, 0x8f, 0xc1, 0x8b, 0x8e, 0x9f, 0x8e, 0x20, 0x08, 0x97, 0x14,
    0x85, 0x6e, 0xe2, 0x33, 0xb3, 0x90, 0x2a, 0x59, 0x1d, 0x0d, 0x5f, 0x29, 0x25,
];

// A Prepare's content: these fields at these places, then destination and data, both of any length.
const AMOUNT: usize = 0;
const AMOUNT_BYTES: usize = size_of::<u64>();
const EXPIRES_AT: usize = AMOUNT + AMOUNT_BYTES;
const CONDITION: usize = EXPIRES_AT + INTERLEDGER_BYTES;
const PREPARE_FIXED_BYTES: usize = CONDITION + CONDITION_BYTES;

/// The longest Prepare we write; peers may send a longer one, with fields we do not know.
pub const PREPARE_BYTES_MAX: usize =
    envelope_size(PREPARE_FIXED_BYTES + var_octets_size(ADDRESS_BYTES_MAX) + var_octets_size(DATA_BYTES_MAX));
/// The longest Reject we write.
pub const REJECT_BYTES_MAX: usize = envelope_size(
    ErrorCode::BYTES
        + var_octets_size(ADDRESS_BYTES_MAX)
        + var_octets_size(MESSAGE_BYTES_MAX)
        + var_octets_size(DATA_BYTES_MAX),
);
const _: () = assert!(PREPARE_BYTES_MAX <= PACKET_BYTES_MAX, "we read what we write");
const _: () = assert!(REJECT_BYTES_MAX <= PACKET_BYTES_MAX, "we read what we write");

/// Why bytes are not an ILPv4 packet of the kind expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPacket {
    /// The first byte names another kind of packet, or none that is known.
    #[error("unexpected packet type {0}")]
    UnexpectedType(u8),
    /// A length or the end of the bytes.
    #[error("malformed packet: {0}")]
    Malformed(#[from] OerError),
    /// More than [`PACKET_BYTES_MAX`] bytes.
    #[error("a packet has at most {PACKET_BYTES_MAX} bytes")]
    PacketTooLong,
    /// More than [`DATA_BYTES_MAX`] bytes of data.
    #[error("the data of a packet has at most {DATA_BYTES_MAX} bytes")]
    DataTooLong,
    /// The expiry is not 17 digits that name a time.
    #[error("invalid expiry")]
    ExpiresAt,
    /// The destination is no address.
    #[error("invalid destination: {0}")]
    Destination(#[from] AddressError),
    /// The code of a Reject is not ASCII.
    #[error("invalid error code")]
    ErrorCode,
}

/// The kinds of ILPv4 packets, with the byte that each begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketType {
    /// A conditional promise to pay.
    Prepare = 12,
    /// Proof that the receiver was paid.
    Fulfill = 13,
    /// A refusal.
    Reject = 14,
}

/// What kind of packet `bytes` begin like; looks at the first byte alone.
#[inline]
pub const fn packet_type(bytes: &[u8]) -> Option<PacketType> {
    match bytes.first() {
        Some(12) => Some(PacketType::Prepare),
        Some(13) => Some(PacketType::Fulfill),
        Some(14) => Some(PacketType::Reject),
        _ => None,
    }
}

/// A conditional promise to pay, borrowed from the bytes it arrived in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prepare<'a> {
    bytes: &'a [u8],
    amount: u64,
    expires_at: Timestamp,
    condition: &'a [u8; CONDITION_BYTES],
    destination: Address<'a>,
    data: &'a [u8],
}

impl<'a> Prepare<'a> {
    /// Reads the Prepare that `bytes` begin with; what follows its envelope is ignored.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidPacket> {
        let (bytes, mut content) = open_envelope(PacketType::Prepare, bytes)?;
        let fixed: &'a [u8; PREPARE_FIXED_BYTES] = content.read_array()?;
        let expires_at = Timestamp::parse_interledger(field::<EXPIRES_AT, _>(fixed)).ok_or(InvalidPacket::ExpiresAt)?;
        let destination = Address::parse(content.read_var_octets()?)?;
        let data = read_data(&mut content)?;
        Ok(Self {
            bytes,
            amount: u64::from_be_bytes(*field::<AMOUNT, _>(fixed)),
            expires_at,
            condition: field::<CONDITION, _>(fixed),
            destination,
            data,
        })
    }

    /// The destination of a Prepare, as far as `bytes` go: they may be only the beginning of the packet, and are not
    /// checked. Good for a guess at what [`Self::parse`] will find.
    #[inline]
    pub fn peek_destination(bytes: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Reader::new(bytes);
        if reader.read_u8().ok()? != PacketType::Prepare as u8 {
            return None;
        }
        reader.read_length().ok()?;
        reader.read_bytes(PREPARE_FIXED_BYTES).ok()?;
        let length = reader.read_length().ok()?;
        let rest = reader.remaining();
        Some(&rest[..length.min(rest.len())])
    }

    /// In units of the account it arrived on, at the scale of its asset.
    #[inline]
    pub const fn amount(&self) -> u64 {
        self.amount
    }

    /// When the promise ends.
    #[inline]
    pub const fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The SHA-256 of the fulfillment that will be asked for.
    #[inline]
    pub const fn condition(&self) -> &'a [u8; CONDITION_BYTES] {
        self.condition
    }

    /// Where the money shall go.
    #[inline]
    pub const fn destination(&self) -> Address<'a> {
        self.destination
    }

    /// For the receiver at the end of the path.
    #[inline]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// What to forward, once amount and expiry are patched: the envelope and nothing after it.
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for Prepare<'_> {
    // Data is long and for others; its length is what helps.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Prepare")
            .field("amount", &self.amount)
            .field("expires_at", &self.expires_at)
            .field("destination", &self.destination)
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Overwrites amount and expiry, which both have a fixed length; all else stays as it is.
///
/// `envelope` begins with a copy of [`Prepare::bytes`].
///
/// # Panics
/// If it is no Prepare. Call this only with bytes that [`Prepare::parse`] accepted.
#[inline]
pub fn patch_prepare(envelope: &mut [u8], amount: u64, expires_at: Timestamp) {
    let mut header = Reader::new(envelope);
    assert_eq!(
        header.read_u8(),
        Ok(PacketType::Prepare as u8),
        "only a Prepare is patched"
    );
    header.read_length().expect("a Prepare has an envelope");
    let header_bytes = header.position();
    let content = &mut envelope[header_bytes..];
    let fixed: &mut [u8; PREPARE_FIXED_BYTES] = content.first_chunk_mut().expect("a Prepare has its fixed fields");
    *field_mut::<AMOUNT, _>(fixed) = amount.to_be_bytes();
    expires_at.write_interledger(field_mut::<EXPIRES_AT, _>(fixed));
}

/// A Prepare to be sent by ourselves.
#[derive(Clone, Copy)]
pub struct PrepareBuilder<'a> {
    /// In units of the account it goes out on.
    pub amount: u64,
    /// When the promise ends.
    pub expires_at: Timestamp,
    /// The SHA-256 of the fulfillment that pays for it.
    pub execution_condition: &'a [u8; CONDITION_BYTES],
    /// Where the money shall go.
    pub destination: Address<'a>,
    /// At most [`DATA_BYTES_MAX`] bytes.
    pub data: &'a [u8],
}

impl PrepareBuilder<'_> {
    /// Appends the packet to `out`.
    ///
    /// # Panics
    /// If `data` is too long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert_data(self.data);
        let destination = self.destination.as_bytes();
        let content_bytes = PREPARE_FIXED_BYTES + var_octets_size(destination.len()) + var_octets_size(self.data.len());
        let mut fixed = [0; PREPARE_FIXED_BYTES];
        *field_mut::<AMOUNT, _>(&mut fixed) = self.amount.to_be_bytes();
        self.expires_at
            .write_interledger(field_mut::<EXPIRES_AT, _>(&mut fixed));
        *field_mut::<CONDITION, _>(&mut fixed) = *self.execution_condition;

        write_envelope(out, PacketType::Prepare, content_bytes);
        out.extend_from_slice(&fixed);
        write_var_octets(out, destination);
        write_var_octets(out, self.data);
    }
}

/// Proof that the receiver was paid, borrowed from the bytes it arrived in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fulfill<'a> {
    bytes: &'a [u8],
    fulfillment: &'a [u8; CONDITION_BYTES],
    data: &'a [u8],
}

impl<'a> Fulfill<'a> {
    /// Reads the Fulfill that `bytes` begin with; what follows its envelope is ignored.
    ///
    /// Whether the fulfillment is that of a condition is not looked at here. Data longer than [`DATA_BYTES_MAX`] is let
    /// through: whoever has fulfilled is owed the money, and a Fulfill refused for its form would be our loss.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidPacket> {
        let (bytes, mut content) = open_envelope(PacketType::Fulfill, bytes)?;
        let fulfillment = content.read_array()?;
        let data = content.read_var_octets()?;
        Ok(Self {
            bytes,
            fulfillment,
            data,
        })
    }

    /// What the condition is the SHA-256 of, if the next hop is honest.
    #[inline]
    pub const fn fulfillment(&self) -> &'a [u8; CONDITION_BYTES] {
        self.fulfillment
    }

    /// For the sender at the beginning of the path.
    #[inline]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// What to pass on: the envelope and nothing after it.
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for Fulfill<'_> {
    // A fulfillment is worth money until it has been passed on: it stays out of logs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Fulfill")
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Appends a Fulfill to `out`.
///
/// # Panics
/// If `data` has more than [`DATA_BYTES_MAX`] bytes.
pub fn encode_fulfill(out: &mut Vec<u8>, fulfillment: &[u8; CONDITION_BYTES], data: &[u8]) {
    assert_data(data);
    write_envelope(out, PacketType::Fulfill, CONDITION_BYTES + var_octets_size(data.len()));
    out.extend_from_slice(fulfillment);
    write_var_octets(out, data);
}

/// A refusal, borrowed from the bytes it arrived in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reject<'a> {
    bytes: &'a [u8],
    code: ErrorCode,
    triggered_by: &'a [u8],
    message: &'a [u8],
    data: &'a [u8],
}

impl<'a> Reject<'a> {
    /// Reads the Reject that `bytes` begin with; what follows its envelope is ignored.
    ///
    /// A Reject that cannot be read costs its sender the whole wait until the expiry. So only the
    /// layout is held to the rules: any code of ASCII will do, the address may be none, the message
    /// may be long and no UTF-8.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidPacket> {
        let (bytes, mut content) = open_envelope(PacketType::Reject, bytes)?;
        let code = ErrorCode::new(*content.read_array()?).ok_or(InvalidPacket::ErrorCode)?;
        let triggered_by = content.read_var_octets()?;
        let message = content.read_var_octets()?;
        let data = read_data(&mut content)?;
        Ok(Self {
            bytes,
            code,
            triggered_by,
            message,
            data,
        })
    }

    /// Why, for programs.
    #[inline]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The address of the node that refused, as it wrote it: perhaps empty, perhaps no address.
    #[inline]
    pub const fn triggered_by(&self) -> &'a [u8] {
        self.triggered_by
    }

    /// For people, in UTF-8 if the sender kept to the rules.
    #[inline]
    pub const fn message(&self) -> &'a [u8] {
        self.message
    }

    /// For the sender at the beginning of the path.
    #[inline]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// What to pass on: the envelope and nothing after it.
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Appends the same Reject to `out`, for a previous hop that cannot take it as it is, because
    /// its origin is missing or its message too long: with the origin `triggered_by`, at most
    /// `message_bytes_max` bytes of its message (and at most [`MESSAGE_BYTES_MAX`]), and without
    /// fields unknown to us.
    pub fn encode_with(&self, out: &mut Vec<u8>, triggered_by: Address<'_>, message_bytes_max: usize) {
        let message = truncated(self.message, message_bytes_max.min(MESSAGE_BYTES_MAX));
        write_reject(out, self.code, triggered_by.as_bytes(), message, self.data);
    }
}

impl fmt::Debug for Reject<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reject")
            .field("code", &self.code)
            .field("triggered_by", &self.triggered_by.escape_ascii().to_string())
            .field("message", &self.message.escape_ascii().to_string())
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// A Reject to be sent by ourselves.
#[derive(Debug, Clone, Copy)]
pub struct RejectBuilder<'a> {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Our own address. Never empty: a widely used node drops a Reject without one.
    pub triggered_by: &'a str,
    /// For people; what exceeds [`MESSAGE_BYTES_MAX`] is cut off.
    pub message: &'a str,
    /// At most [`DATA_BYTES_MAX`] bytes.
    pub data: &'a [u8],
}

impl RejectBuilder<'_> {
    /// Appends the packet to `out`.
    ///
    /// # Panics
    /// If `triggered_by` is empty, or it or `data` is too long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert_data(self.data);
        assert!(!self.triggered_by.is_empty(), "we have an address");
        let message = truncated(self.message.as_bytes(), MESSAGE_BYTES_MAX);
        write_reject(out, self.code, self.triggered_by.as_bytes(), message, self.data);
    }
}

fn write_reject(out: &mut Vec<u8>, code: ErrorCode, triggered_by: &[u8], message: &[u8], data: &[u8]) {
    assert!(
        triggered_by.len() <= ADDRESS_BYTES_MAX,
        "the origin of a Reject is an address"
    );
    let content_bytes = ErrorCode::BYTES
        + var_octets_size(triggered_by.len())
        + var_octets_size(message.len())
        + var_octets_size(data.len());
    write_envelope(out, PacketType::Reject, content_bytes);
    out.extend_from_slice(code.as_bytes());
    write_var_octets(out, triggered_by);
    write_var_octets(out, message);
    write_var_octets(out, data);
}

/// At most `bytes_max` bytes of a message, not ending within a character.
fn truncated(message: &[u8], bytes_max: usize) -> &[u8] {
    let Some(beginning) = message.get(..bytes_max) else {
        return message;
    };
    match str::from_utf8(beginning) {
        // An unfinished character at the very end; anything else was no UTF-8 to begin with.
        Err(error) if error.error_len().is_none() => &beginning[..error.valid_up_to()],
        _ => beginning,
    }
}

/// What a Prepare may be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The receiver was paid.
    Fulfill(Fulfill<'a>),
    /// Somebody on the path refused.
    Reject(Reject<'a>),
}

impl<'a> Reply<'a> {
    /// Reads the Fulfill or Reject that `bytes` begin with; what follows its envelope is ignored.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidPacket> {
        match packet_type(bytes) {
            Some(PacketType::Reject) => Reject::parse(bytes).map(Self::Reject),
            // All other kinds are refused there.
            _ => Fulfill::parse(bytes).map(Self::Fulfill),
        }
    }

    /// What to pass on: the envelope and nothing after it.
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Fulfill(fulfill) => fulfill.bytes,
            Self::Reject(reject) => reject.bytes,
        }
    }
}

/// The data of a Reject with [`ErrorCode::F08_AMOUNT_TOO_LARGE`], from which senders compute what
/// they may send: both amounts in units of the account on which the packet was received.
///
/// `maximum` is still allowed, so `received` exceeds it; some senders divide by `received`.
pub fn amount_too_large_data(received: u64, maximum: u64) -> [u8; 16] {
    (u128::from(received) << u64::BITS | u128::from(maximum)).to_be_bytes()
}

/// The envelope that `bytes` begin with, and a reader of its content.
#[inline]
fn open_envelope(expected: PacketType, bytes: &[u8]) -> Result<(&[u8], Reader<'_>), InvalidPacket> {
    let mut reader = Reader::new(bytes);
    let packet_type = reader.read_u8()?;
    if packet_type != expected as u8 {
        return Err(InvalidPacket::UnexpectedType(packet_type));
    }
    let content = reader.read_var_octets()?;
    let envelope_bytes = reader.position();
    if envelope_bytes > PACKET_BYTES_MAX {
        return Err(InvalidPacket::PacketTooLong);
    }
    Ok((&bytes[..envelope_bytes], Reader::new(content)))
}

#[inline]
fn read_data<'a>(content: &mut Reader<'a>) -> Result<&'a [u8], InvalidPacket> {
    let data = content.read_var_octets()?;
    if data.len() > DATA_BYTES_MAX {
        Err(InvalidPacket::DataTooLong)
    } else {
        Ok(data)
    }
}

fn write_envelope(out: &mut Vec<u8>, packet_type: PacketType, content_bytes: usize) {
    out.reserve(envelope_size(content_bytes));
    out.push(packet_type as u8);
    write_length(out, content_bytes);
}

/// Peers' data is bounded when it is read, so longer data is a mistake of our own.
fn assert_data(data: &[u8]) {
    assert!(data.len() <= DATA_BYTES_MAX, "data is at most {DATA_BYTES_MAX} bytes");
}

const fn envelope_size(content_bytes: usize) -> usize {
    1 + var_octets_size(content_bytes)
}

const fn var_octets_size(bytes: usize) -> usize {
    length_size(bytes) + bytes
}

/// The field of `N` bytes at `AT`; that it lies within is checked when compiling.
#[inline]
fn field<const AT: usize, const N: usize>(fixed: &[u8; PREPARE_FIXED_BYTES]) -> &[u8; N] {
    const { assert!(AT + N <= PREPARE_FIXED_BYTES) };
    fixed[AT..].first_chunk().expect("checked when compiling")
}

/// The same, to write to.
#[inline]
fn field_mut<const AT: usize, const N: usize>(fixed: &mut [u8; PREPARE_FIXED_BYTES]) -> &mut [u8; N] {
    const { assert!(AT + N <= PREPARE_FIXED_BYTES) };
    fixed[AT..].first_chunk_mut().expect("checked when compiling")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hex;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn encoded(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    /// The same Prepare, written anew.
    fn rewritten(prepare: &Prepare<'_>) -> Vec<u8> {
        let builder = PrepareBuilder {
            amount: prepare.amount(),
            expires_at: prepare.expires_at(),
            execution_condition: prepare.condition(),
            destination: prepare.destination(),
            data: prepare.data(),
        };
        encoded(|out| builder.encode(out))
    }

    const BOB: &str = "test.acme.bob";
    const ALICE: &str = "example.alice";
    /// 257 bytes of data, shared by three of the vectors, whose envelopes take four bytes.
    const LONG_DATA: &str = "\
        6c99f6a969473028ef46e09b471581c915b6d5496329c1e3a1c2748d7422a7bdcc79\
            8e286cabe3197cccfc213e930b8dba57c7abdf2d1f3b2511689de4f0eff441f53da0\
            feffd23249a355b26c3bd0256d5122e7ccdf159fd6cb083dd73cb29397967871becd\
            04890492119c5e3e6b024be35de26466f60c16d90a21054fb13800120cfb85b0df76\
            e50aacd68526fd043026d3d02010c671987a1f6501b5085f0d7d5897624be5862f98\
            c01df65792970181a87d0f3c586a0ca6bd89dc372c45eef5b38a6307b16f1d7d31e8\
            d92e5982c9dd2986eaad581f212d43da9c5cb7b948fc18914be90219709d0c26d3b5\
            f4ad879d8494bb3aebfe612ec54041e4a380f0";
    const PREPARE: &str = "0c4d00000000000003e83230333030313032303330343035363738630dcd2966c433\
        6691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd0d746573742e61636d\
        652e626f620568656c6c6f";
    const FULFILL: &str = "0d21000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
        00";

    #[test]
    fn prepares_are_read_and_written() {
        let long = [
            "0c82014b000000000000006b3230313830363037323034383432343833117b434f1a\
            54e9044f4f54923b2cff9e4a6d420ae281d5025d7bb040c4b4c04a0d6578616d706c\
            652e616c696365820101",
            LONG_DATA,
        ]
        .concat();
        let alice = "0c68000000000000006b323031373132323330313231343035343974e1136dc71c9e\
            5f283bec83461cbf1261c4014f72d48f8dd65453a0b84e7de10d6578616d706c652e\
            616c696365205db343fdc41898f6df4202329139dc242dd0f558a811b46b28918fda\
            b37c6cb0";
        let smallest = "0c3e0000000000000000323033303031303130303030303030303000000000000000\
            0000000000000000000000000000000000000000000000000003672e6100";
        let to_parent = "0c460000000000000000323031353036313630303031303030303066687aadf862bd\
            776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f29250b706565722e636f6e\
            66696700";
        // The bytes, then amount, expiry, beginning of the condition, destination, data.
        let cases = [
            (alice, 107, "2017-12-23T01:21:40.549Z", "74e1136d", ALICE, &alice[148..]),
            (&long, 107, "2018-06-07T20:48:42.483Z", "117b434f", ALICE, LONG_DATA),
            (PREPARE, 1000, "2030-01-02T03:04:05.678Z", "630dcd29", BOB, "68656c6c6f"),
            (smallest, 0, "2030-01-01T00:00:00.000Z", "00000000", "g.a", ""),
            (to_parent, 0, "2015-06-16T00:01:00.000Z", "66687aad", "peer.config", ""),
        ];
        for (text, amount, expires_at, condition, destination, data) in cases {
            let bytes = hex(text);
            let prepare = Prepare::parse(&bytes).unwrap();
            assert_eq!(prepare.amount(), amount);
            assert_eq!(prepare.expires_at().to_rfc3339(), expires_at);
            assert!(prepare.condition().starts_with(&hex(condition)));
            assert_eq!(prepare.destination().as_str(), destination);
            assert_eq!(prepare.data(), hex(data));
            assert_eq!(prepare.bytes(), bytes);
            assert_eq!(rewritten(&prepare), bytes);
            assert_eq!(packet_type(&bytes), Some(PacketType::Prepare));
        }
        assert_eq!(Prepare::parse(&hex(to_parent)).unwrap().condition(), &PEER_CONDITION);
        assert_eq!(hex(smallest).len(), 64);
    }

    #[test]
    fn a_hop_changes_amount_and_expiry_alone() {
        let after_hop = hex("0c4d00000000000003de3230333030313032303330343034363738630dcd2966c433\
            6691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd0d746573742e61636d\
            652e626f620568656c6c6f");
        let mut bytes = hex(PREPARE);
        let expires_at = Prepare::parse(&bytes).unwrap().expires_at().minus_ms(1_000);
        patch_prepare(&mut bytes, 990, expires_at);
        assert_eq!(bytes, after_hop);
    }

    #[test]
    fn fulfills_are_read_and_written() {
        let short = "0d41c3866b48749ccf113b2e15c25d2407fbfc14476fe7296bb1bf1bcd9e6e416650\
            20673febd78a33b28e1c0db14c9a06251a05fa831ed4ed91ebcd150e7249c2e600";
        let long = [
            "0d820124117b434f1a54e9044f4f54923b2cff9e4a6d420ae281d5025d7bb040c4b4\
            c04a820101",
            LONG_DATA,
        ]
        .concat();
        let long_fulfillment = &long[8..72];
        let counted = (0..32).map(|byte| format!("{byte:02x}")).collect::<String>();
        let from_parent = "0d350000000000000000000000000000000000000000000000000000000000000000\
            140e6578616d706c652e636c69656e740d0358414d";
        let zeros = "00".repeat(32);
        let cases = [
            (short, &short[4..68], &short[70..]),
            (&long, long_fulfillment, LONG_DATA),
            (FULFILL, &counted, ""),
            (from_parent, &zeros, "0e6578616d706c652e636c69656e740d0358414d"),
        ];
        assert!(long_fulfillment.starts_with("117b434f") && long_fulfillment.ends_with("c4b4c04a"));
        for (text, fulfillment, data) in cases {
            let bytes = hex(text);
            let fulfill = Fulfill::parse(&bytes).unwrap();
            assert_eq!(fulfill.fulfillment().as_slice(), hex(fulfillment));
            assert_eq!(fulfill.data(), hex(data));
            assert_eq!(fulfill.bytes(), bytes);
            let again = encoded(|out| encode_fulfill(out, fulfill.fulfillment(), fulfill.data()));
            assert_eq!(again, bytes);
            assert_eq!(Reply::parse(&bytes), Ok(Reply::Fulfill(fulfill)));
        }
        assert_eq!(
            Fulfill::parse(&hex(from_parent)).unwrap().fulfillment(),
            &PEER_FULFILLMENT
        );
    }

    #[test]
    fn rejects_are_read_and_written() {
        let no_destination = "0e414630310e6578616d706c652e75732e626f62276d697373696e67206465737469\
            6e6174696f6e2e206c65646765723d6578616d706c652e75732e06000000041041";
        let long = [
            "0e820124463939116578616d706c652e636f6e6e6563746f720a536f6d6520657272\
            6f72820101",
            LONG_DATA,
        ]
        .concat();
        let too_large = "0e1f46303809746573742e61636d65001000000000000005dc00000000000003e8";
        let no_liquidity = "0e2854303409746573742e61636d65196578636565646564206d6178696d756d2062\
            616c616e63652e00";
        let message = "missing destination. ledger=example.us.";
        // The bytes, then code, origin, message, data.
        let cases = [
            (no_destination, "F01", "example.us.bob", message, "000000041041"),
            (&long, "F99", "example.connector", "Some error", LONG_DATA),
            (too_large, "F08", "test.acme", "", "00000000000005dc00000000000003e8"),
            (no_liquidity, "T04", "test.acme", "exceeded maximum balance.", ""),
        ];
        for (text, code, triggered_by, message, data) in cases {
            let bytes = hex(text);
            let reject = Reject::parse(&bytes).unwrap();
            assert_eq!(reject.code().as_str(), code);
            assert_eq!(reject.triggered_by(), triggered_by.as_bytes());
            assert_eq!(reject.message(), message.as_bytes());
            assert_eq!(reject.data(), hex(data));
            assert_eq!(reject.bytes(), bytes);
            let code = reject.code();
            let builder = RejectBuilder {
                code,
                triggered_by,
                message,
                data: reject.data(),
            };
            assert_eq!(encoded(|out| builder.encode(out)), bytes);
            assert_eq!(Reply::parse(&bytes), Ok(Reply::Reject(reject)));
        }
    }

    #[test]
    fn a_reject_need_not_be_perfect() {
        // A code with a control character, and a byte after the data that no version knows yet.
        let bytes = hex("0e0d74777f06746573742e7400002a");
        let reject = Reject::parse(&bytes).unwrap();
        assert_eq!(reject.code().as_str(), "tw\x7f");
        assert_eq!(reject.code().to_string(), "tw\\x7f");
        assert_eq!(reject.triggered_by(), b"test.t");
        assert_eq!(reject.bytes(), bytes);

        // No origin, and a message in Latin-1: passed on with our address, the message as it is.
        let reject = Reject::parse(b"\x0e\x09T00\x00\x02n\xe9\x01d").unwrap();
        assert_eq!(reject.triggered_by(), b"");
        assert_eq!(reject.message(), b"n\xe9");
        let passed_on = |message_bytes_max| {
            let own = Address::from_static("test.hub");
            encoded(|out| reject.encode_with(out, own, message_bytes_max))
        };
        assert_eq!(passed_on(usize::MAX), b"\x0e\x11T00\x08test.hub\x02n\xe9\x01d");
        assert_eq!(passed_on(1), b"\x0e\x10T00\x08test.hub\x01n\x01d");
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let cases: &[(&[u8], usize, &[u8])] = &[
            (b"abc", 4, b"abc"),
            (b"abc", 3, b"abc"),
            (b"abc", 2, b"ab"),
            (b"abc", 0, b""),
            ("né".as_bytes(), 2, b"n"),
            ("n€".as_bytes(), 3, b"n"),
            ("n€!".as_bytes(), 4, "n€".as_bytes()),
            (b"\xe9\xe9\xe9", 2, b"\xe9\xe9"), // no UTF-8: cut anywhere
        ];
        for (message, bytes_max, expected) in cases {
            assert_eq!(truncated(message, *bytes_max), *expected, "{message:02x?} {bytes_max}");
        }
        let message = "x".repeat(MESSAGE_BYTES_MAX + 1);
        let builder = RejectBuilder {
            code: ErrorCode::T00_INTERNAL_ERROR,
            triggered_by: "test.hub",
            message: &message,
            data: &[],
        };
        let bytes = encoded(|out| builder.encode(out));
        assert_eq!(Reject::parse(&bytes).unwrap().message().len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_is_wrong_is_named() {
        use InvalidPacket::*;
        let second_60 = "0c410000000000000001323030303035333131363031363032353100010203040506\
            0708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f06746573742e6100";
        let bad_code = "0e0d7477ff06746573742e7400002a";
        let prepare = |text: &str| Prepare::parse(&hex(text)).unwrap_err();
        let destination = |bytes: &[u8]| {
            let mut packet = hex(PREPARE);
            packet[60..73].copy_from_slice(bytes);
            Prepare::parse(&packet).unwrap_err()
        };
        assert_eq!(
            destination(b"test.acme bob"),
            Destination(AddressError::InvalidCharacter)
        );
        assert_eq!(destination(b"test.acme.bo."), Destination(AddressError::EmptySegment));
        assert_eq!(destination(b"what.acme.bob"), Destination(AddressError::UnknownScheme));
        assert_eq!(prepare(second_60), ExpiresAt);
        assert_eq!(prepare(""), Malformed(OerError::Truncated));
        assert_eq!(prepare("0c"), Malformed(OerError::Truncated));
        assert_eq!(prepare("0c00"), Malformed(OerError::Truncated));
        assert_eq!(prepare("0c80"), Malformed(OerError::NonCanonicalLength));
        assert_eq!(prepare("0c8100"), Malformed(OerError::NonCanonicalLength));
        assert_eq!(prepare("0c88ffffffffffffffff"), Malformed(OerError::Truncated));
        assert_eq!(prepare("0c89ffffffffffffffffff"), Malformed(OerError::TooLong));
        assert_eq!(prepare(FULFILL), UnexpectedType(13));
        assert_eq!(prepare("00"), UnexpectedType(0));
        assert_eq!(Fulfill::parse(&hex(PREPARE)), Err(UnexpectedType(12)));
        assert_eq!(Reject::parse(&hex(PREPARE)), Err(UnexpectedType(12)));
        assert_eq!(Reply::parse(&hex(PREPARE)), Err(UnexpectedType(12)));
        assert_eq!(Reply::parse(&[]), Err(Malformed(OerError::Truncated)));
        assert_eq!(Reject::parse(&hex(bad_code)), Err(ErrorCode));
    }

    #[test]
    fn packet_types_are_three() {
        for first in 0..=u8::MAX {
            let expected = match first {
                0x0c => Some(PacketType::Prepare),
                0x0d => Some(PacketType::Fulfill),
                0x0e => Some(PacketType::Reject),
                _ => None,
            };
            assert_eq!(packet_type(&[first, 0xff]), expected);
            assert_eq!(expected.map_or(first, |packet_type| packet_type as u8), first);
        }
        assert_eq!(packet_type(&[]), None);
    }

    #[test]
    fn the_longest_packets_are_read_and_written() {
        let destination = format!("g.{}", "a".repeat(ADDRESS_BYTES_MAX - 2));
        let data = vec![7; DATA_BYTES_MAX];
        let prepare = PrepareBuilder {
            amount: u64::MAX,
            expires_at: Timestamp::MAX,
            execution_condition: &PEER_CONDITION,
            destination: Address::parse(destination.as_bytes()).unwrap(),
            data: &data,
        };
        let bytes = encoded(|out| prepare.encode(out));
        assert_eq!((bytes.len(), PREPARE_BYTES_MAX), (33_857, 33_857));
        assert_eq!(Prepare::parse(&bytes).unwrap().amount(), u64::MAX);

        let bytes = encoded(|out| encode_fulfill(out, &PEER_FULFILLMENT, &data));
        assert_eq!(bytes.len(), 32_806);
        assert_eq!(Fulfill::parse(&bytes).unwrap().data(), data);

        let reject = RejectBuilder {
            code: ErrorCode::F99_APPLICATION_ERROR,
            triggered_by: &destination,
            message: &"m".repeat(MESSAGE_BYTES_MAX),
            data: &data,
        };
        let bytes = encoded(|out| reject.encode(out));
        assert_eq!((bytes.len(), REJECT_BYTES_MAX), (41_997, 41_997));
        assert_eq!(Reject::parse(&bytes).unwrap().data(), data);
    }

    #[test]
    fn one_byte_more_is_too_long() {
        let data = encoded(|out| write_var_octets(out, &vec![0; DATA_BYTES_MAX + 1]));
        let beginnings = [
            (PacketType::Prepare, hex(PREPARE)[2..73].to_vec()),
            (PacketType::Fulfill, vec![0; CONDITION_BYTES]),
            (PacketType::Reject, b"F99\0\0".to_vec()),
        ];
        for (packet_type, beginning) in beginnings {
            let mut bytes = vec![packet_type as u8];
            write_var_octets(&mut bytes, &[&beginning[..], &data].concat());
            let result = match packet_type {
                PacketType::Prepare => Prepare::parse(&bytes).map(drop),
                _ => Reply::parse(&bytes).map(drop),
            };
            let expected = match packet_type {
                PacketType::Fulfill => Ok(()),
                _ => Err(InvalidPacket::DataTooLong),
            };
            assert_eq!(result, expected, "{packet_type:?}");
        }

        // Unknown fields fill a Prepare up to the limit, then past it.
        for (excess, expected) in [(0, Ok(())), (1, Err(InvalidPacket::PacketTooLong))] {
            let mut content = hex(PREPARE)[2..].to_vec();
            content.resize(PACKET_BYTES_MAX - 4 + excess, 0);
            let mut bytes = vec![PacketType::Prepare as u8];
            write_var_octets(&mut bytes, &content);
            assert_eq!(bytes.len(), PACKET_BYTES_MAX + excess);
            assert_eq!(Prepare::parse(&bytes).map(drop), expected);
        }
    }

    #[test]
    fn too_large_amounts_are_told_with_both_numbers() {
        let cases = [
            ("00000000000302010000000000060504", 197_121, 394_500),
            ("00000000000000ff000000000000ffff", 255, 65_535),
            ("ffffffffffffffff0000000000000000", u64::MAX, 0),
        ];
        for (data, received, maximum) in cases {
            assert_eq!(amount_too_large_data(received, maximum).as_slice(), hex(data));
        }
    }

    #[test]
    fn logs_keep_secrets_and_lines() {
        let fulfill = hex(FULFILL);
        let shown = format!("{:?}", Fulfill::parse(&fulfill).unwrap());
        assert_eq!(shown, "Fulfill { data_bytes: 0, .. }");
        let shown = format!("{:?}", Reject::parse(b"\x0e\x09T00\x00\x02a\n\x01d").unwrap());
        assert!(!shown.contains('\n') && shown.contains("T00"), "{shown}");
    }

    prop_compose! {
        fn any_prepare()(
            amount: u64,
            millis in 0..=Timestamp::MAX.as_millis(),
            condition: [u8; CONDITION_BYTES],
            destination in "(g|test2|private)(\\.[A-Za-z0-9_~-]{1,60}){1,4}",
            data in prop_oneof![vec(any::<u8>(), 0..10), vec(any::<u8>(), 100..300)],
        ) -> Vec<u8> {
            let prepare = PrepareBuilder {
                amount,
                expires_at: Timestamp::from_millis(millis),
                execution_condition: &condition,
                destination: Address::parse(destination.as_bytes()).unwrap(),
                data: &data,
            };
            encoded(|out| prepare.encode(out))
        }
    }

    prop_compose! {
        fn any_reply()(
            fulfillment: Option<[u8; CONDITION_BYTES]>,
            code in "[ -~]{3}",
            triggered_by in "g(\\.[a-z]{1,40}){1,4}",
            message in ".{0,80}",
            data in prop_oneof![vec(any::<u8>(), 0..10), vec(any::<u8>(), 100..300)],
        ) -> Vec<u8> {
            encoded(|out| match fulfillment {
                Some(fulfillment) => encode_fulfill(out, &fulfillment, &data),
                None => {
                    let code = ErrorCode::new(*code.as_bytes().first_chunk().unwrap()).unwrap();
                    let (triggered_by, message, data) = (&triggered_by, &message, &data);
                    RejectBuilder { code, triggered_by, message, data }.encode(out);
                }
            })
        }
    }

    proptest! {
        #[test]
        fn prepares_round_trip(bytes in any_prepare(), after in vec(any::<u8>(), 0..5)) {
            let arrived = [&bytes[..], &after].concat();
            let prepare = Prepare::parse(&arrived).unwrap();
            prop_assert_eq!(prepare.bytes(), &bytes[..]);
            prop_assert_eq!(rewritten(&prepare), bytes);
        }

        #[test]
        fn a_peek_at_any_part_of_a_prepare_shows_what_is_there_of_its_destination(bytes in any_prepare()) {
            let destination = Prepare::parse(&bytes).unwrap().destination().as_bytes();
            let begins = destination.as_ptr().addr() - bytes.as_ptr().addr();
            for end in 0..bytes.len() {
                let there = (end >= begins).then(|| &bytes[begins..end.min(begins + destination.len())]);
                prop_assert_eq!(Prepare::peek_destination(&bytes[..end]), there);
            }
        }

        #[test]
        fn a_peek_at_other_bytes_shows_some_of_them_or_none(mut bytes in vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = PacketType::Prepare as u8;
            }
            let shown = Prepare::peek_destination(&bytes);
            prop_assert!(shown.is_none_or(|shown| shown.len() < bytes.len()));
        }

        #[test]
        fn replies_round_trip(bytes in any_reply(), after in vec(any::<u8>(), 0..5)) {
            let arrived = [&bytes[..], &after].concat();
            let reply = Reply::parse(&arrived).unwrap();
            prop_assert_eq!(reply.bytes(), &bytes[..]);
            let again = encoded(|out| match &reply {
                Reply::Fulfill(fulfill) => {
                    encode_fulfill(out, fulfill.fulfillment(), fulfill.data());
                }
                Reply::Reject(reject) => {
                    let triggered_by = Address::parse(reject.triggered_by()).unwrap();
                    reject.encode_with(out, triggered_by, MESSAGE_BYTES_MAX);
                }
            });
            prop_assert_eq!(again, bytes);
        }

        #[test]
        fn patching_changes_amount_and_expiry_alone(
            bytes in any_prepare(),
            unknown in vec(any::<u8>(), 0..200),
            amount: u64,
            millis in 0..=Timestamp::MAX.as_millis(),
        ) {
            // As a peer of a later version would send it: with more fields inside the envelope.
            let content = Reader::new(&bytes[1..]).read_var_octets().unwrap();
            let mut envelope = vec![PacketType::Prepare as u8];
            write_var_octets(&mut envelope, &[content, &unknown].concat());
            let before = envelope.clone();
            let before = Prepare::parse(&before).unwrap();
            prop_assert_eq!(before.bytes(), &envelope[..], "unknown fields are kept");

            patch_prepare(&mut envelope, amount, Timestamp::from_millis(millis));
            let after = Prepare::parse(&envelope).unwrap();
            prop_assert_eq!(after.amount(), amount);
            prop_assert_eq!(after.expires_at().as_millis(), millis);
            // Put back, nothing is left of the change: no other byte was touched.
            patch_prepare(&mut envelope, before.amount(), before.expires_at());
            prop_assert_eq!(before.bytes(), &envelope[..]);
        }

        #[test]
        fn every_truncation_is_an_error(prepare in any_prepare(), reply in any_reply()) {
            for end in 0..prepare.len() {
                let result = Prepare::parse(&prepare[..end]);
                prop_assert_eq!(result, Err(InvalidPacket::Malformed(OerError::Truncated)));
            }
            for end in 0..reply.len() {
                let result = Reply::parse(&reply[..end]);
                prop_assert_eq!(result, Err(InvalidPacket::Malformed(OerError::Truncated)));
            }
        }

        // The envelope is right and its content ends too early: inside any of the fields.
        #[test]
        fn every_truncated_content_is_an_error(prepare in any_prepare(), reply in any_reply()) {
            for packet in [prepare, reply] {
                let content = Reader::new(&packet[1..]).read_var_octets().unwrap();
                for end in 0..content.len() {
                    let mut bytes = vec![packet[0]];
                    write_var_octets(&mut bytes, &content[..end]);
                    let error = match packet_type(&bytes) {
                        Some(PacketType::Prepare) => Prepare::parse(&bytes).unwrap_err(),
                        _ => Reply::parse(&bytes).unwrap_err(),
                    };
                    prop_assert_eq!(error, InvalidPacket::Malformed(OerError::Truncated));
                }
            }
        }

        #[test]
        fn damaged_packets_never_panic(
            packet in prop_oneof![any_prepare(), any_reply()],
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            amount: u64,
        ) {
            let mut bytes = packet;
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = Reply::parse(&bytes);
            // What parsing accepts, patching accepts.
            if let Ok(prepare) = Prepare::parse(&bytes) {
                let mut envelope = prepare.bytes().to_vec();
                patch_prepare(&mut envelope, amount, prepare.expires_at());
                prop_assert_eq!(Prepare::parse(&envelope).unwrap().amount(), amount);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), first in 11..16u8) {
            let _ = (Prepare::parse(&bytes), Reply::parse(&bytes));
            let mut enveloped = vec![first];
            write_var_octets(&mut enveloped, &bytes);
            let _ = (Prepare::parse(&enveloped), Reply::parse(&enveloped));
        }
    }
}
