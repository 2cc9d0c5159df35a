//! ILDCP (RFC 31): a child asks its parent, at `peer.config`, for its address and the asset of their account.
//!
//! Owns the question and the answer. Leaves what holds for every request between neighbours to [`super::peer`], who gets
//! an answer to the pipeline, and to the node whether it can live with the one it got.
//! Always: an answer that was read names an address that a node can have, and a code that fits an account; nothing is
//! copied. Bytes after the last field are ignored (RFC 30).

use super::address::{Address, AddressError};
use super::oer::{OerError, Reader, write_var_octets};
use super::packet::{Fulfill, PEER_FULFILLMENT, encode_fulfill};
use super::peer::encode_request;
use super::timestamp::Timestamp;

/// Where a child asks.
pub const DESTINATION: Address<'static> = Address::from_static("peer.config");
/// The longest asset code, in bytes; as long as an account's may be.
pub const ASSET_CODE_BYTES_MAX: usize = 64;

/// Appends the question of a child to `out`: a whole Prepare.
pub fn encode_question(out: &mut Vec<u8>, now: Timestamp) {
    encode_request(out, now, DESTINATION, &[]);
}

/// Why a Fulfill does not tell an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAnswer {
    /// It is not the answer of a neighbour, which is all zeros.
    #[error("the fulfillment is not zero")]
    Fulfillment,
    /// A length or the end of the bytes.
    #[error("malformed answer: {0}")]
    Malformed(#[from] OerError),
    /// What it gives us is no address.
    #[error("invalid client address: {0}")]
    ClientAddress(#[from] AddressError),
    /// No packet would ever be routed to a node under `peer` or `self`.
    #[error("a node has no address under peer or self")]
    Scheme,
    /// The code is empty, longer than [`ASSET_CODE_BYTES_MAX`], or not UTF-8.
    #[error("an asset code has 1 to {ASSET_CODE_BYTES_MAX} bytes of UTF-8")]
    AssetCode,
}

/// What a parent tells its child, borrowed from the bytes it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The address of the child from now on.
    pub client_address: Address<'a>,
    /// One unit of an amount is `10^-asset_scale` of one whole `asset_code`.
    pub asset_scale: u8,
    /// In the parent's spelling: compare it without its case, because a widely used node makes all codes upper case.
    pub asset_code: &'a str,
}

impl<'a> Answer<'a> {
    /// Reads the Fulfill of a parent.
    pub fn parse(fulfill: &Fulfill<'a>) -> Result<Self, InvalidAnswer> {
        if *fulfill.fulfillment() != PEER_FULFILLMENT {
            return Err(InvalidAnswer::Fulfillment);
        }
        Self::parse_data(fulfill.data())
    }

    /// Reads the data of such a Fulfill.
    pub fn parse_data(data: &'a [u8]) -> Result<Self, InvalidAnswer> {
        let mut reader = Reader::new(data);
        let client_address = Address::parse(reader.read_var_octets()?)?;
        if matches!(client_address.scheme(), "peer" | "self") {
            return Err(InvalidAnswer::Scheme);
        }
        let asset_scale = reader.read_u8()?;
        let asset_code = reader.read_var_octets()?;
        if !(1..=ASSET_CODE_BYTES_MAX).contains(&asset_code.len()) {
            return Err(InvalidAnswer::AssetCode);
        }
        Ok(Self {
            client_address,
            asset_scale,
            asset_code: str::from_utf8(asset_code).map_err(|_| InvalidAnswer::AssetCode)?,
        })
    }

    /// Appends the Fulfill that answers the question to `out`.
    ///
    /// # Panics
    /// If the code is empty or too long: accounts have none like that.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut data = Vec::new();
        self.encode_data(&mut data);
        encode_fulfill(out, &PEER_FULFILLMENT, &data);
    }

    fn encode_data(&self, out: &mut Vec<u8>) {
        let code_bytes = self.asset_code.len();
        assert!(
            (1..=ASSET_CODE_BYTES_MAX).contains(&code_bytes),
            "accounts have codes of 1 to 64 bytes"
        );
        write_var_octets(out, self.client_address.as_bytes());
        out.push(self.asset_scale);
        write_var_octets(out, self.asset_code.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hex;
    use crate::wire::packet::Prepare;
    use crate::wire::peer::{InvalidRequest, REQUEST_LIFETIME_MS, check_request};
    use proptest::collection::vec;
    use proptest::prelude::*;

    const QUESTION: &str = "0c460000000000000000323031353036313630303031303030303066687aadf862bd776c8fc18b8e9f8e200\
        89714856ee233b3902a591d0d5f29250b706565722e636f6e66696700";
    const ANSWER: &str = "0d350000000000000000000000000000000000000000000000000000000000000000140e6578616d706c652e636\
        c69656e740d0358414d";

    /// 2015-06-16T00:00:00Z, a minute before the vectors expire.
    fn sent_at() -> Timestamp {
        Timestamp::from_millis(1_434_412_800_000)
    }

    #[test]
    fn the_question_is_written_as_everybody_does() {
        let mut out = Vec::new();
        encode_question(&mut out, sent_at());
        assert_eq!(out, hex(QUESTION));
        let prepare = Prepare::parse(&out).unwrap();
        assert_eq!(prepare.destination(), DESTINATION);
        assert_eq!(check_request(&prepare, sent_at()), Ok(()));
        assert_eq!(check_request(&prepare, sent_at().plus_ms(59_999)), Ok(()));
        let expired = check_request(&prepare, sent_at().plus_ms(REQUEST_LIFETIME_MS));
        assert_eq!(expired, Err(InvalidRequest::Expired));
    }

    #[test]
    fn answers_are_read_and_written() {
        let bytes = hex(ANSWER);
        let answer = Answer::parse(&Fulfill::parse(&bytes).unwrap()).unwrap();
        let expected = Answer {
            client_address: Address::from_static("example.client"),
            asset_scale: 13,
            asset_code: "XAM",
        };
        assert_eq!(answer, expected);
        let mut written = Vec::new();
        answer.encode(&mut written);
        assert_eq!(written, bytes);

        let data = hex("0d6578616d706c652e616c696365090358595a");
        let answer = Answer::parse_data(&data).unwrap();
        assert_eq!(answer.client_address.as_str(), "example.alice");
        assert_eq!((answer.asset_scale, answer.asset_code), (9, "XYZ"));
        let with_more = [&data[..], b"from the future"].concat();
        assert_eq!(Answer::parse_data(&with_more), Ok(answer));
    }

    #[test]
    fn other_answers_are_refused() {
        let mut bytes = hex(ANSWER);
        bytes[2] = 1;
        let fulfill = Fulfill::parse(&bytes).unwrap();
        assert_eq!(Answer::parse(&fulfill), Err(InvalidAnswer::Fulfillment));

        let long_code = [&b"\x03g.a\x09\x41"[..], &[b'X'; 65]].concat();
        let cases: &[(&[u8], InvalidAnswer)] = &[
            (b"", OerError::Truncated.into()),
            (b"\x03g.a", OerError::Truncated.into()),
            (b"\x03g.a\x09", OerError::Truncated.into()),
            (b"\x03g.a\x09\x03XY", OerError::Truncated.into()),
            (b"\x81\x03g.a\x09\x03XYZ", OerError::NonCanonicalLength.into()),
            (b"\x00\x09\x03XYZ", AddressError::UnknownScheme.into()),
            (b"\x01g\x09\x03XYZ", AddressError::NoSegment.into()),
            (b"\x06peer.a\x09\x03XYZ", InvalidAnswer::Scheme),
            (b"\x06self.a\x09\x03XYZ", InvalidAnswer::Scheme),
            (b"\x03g.a\x09\x00", InvalidAnswer::AssetCode),
            (b"\x03g.a\x09\x01\xff", InvalidAnswer::AssetCode),
            (&long_code, InvalidAnswer::AssetCode),
        ];
        for (data, error) in cases {
            assert_eq!(Answer::parse_data(data), Err(*error), "{}", data.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn answers_round_trip(
            address in "(g|test|private)(\\.[a-zA-Z0-9_~-]{1,20}){1,8}",
            asset_scale: u8,
            asset_code in "\\PC{1,16}",
        ) {
            let answer = Answer {
                client_address: Address::parse(address.as_bytes()).unwrap(),
                asset_scale,
                asset_code: &asset_code,
            };
            let mut bytes = Vec::new();
            answer.encode(&mut bytes);
            prop_assert_eq!(Answer::parse(&Fulfill::parse(&bytes).unwrap()), Ok(answer));
        }

        #[test]
        fn no_data_panics(data in vec(any::<u8>(), 0..100), at in 0usize..19, byte: u8) {
            let _ = Answer::parse_data(&data);
            let mut nearly = hex("0d6578616d706c652e616c696365090358595a");
            nearly[at] = byte;
            let _ = Answer::parse_data(&nearly);
        }
    }
}
