//! What the two ends of a connection do with their shared secret (RFC 29, section 4.2): the envelope around a packet of
//! frames, and the fulfillment of a Prepare.
//!
//! Owns the keys and the layout of the envelope: a nonce of 12 bytes, a tag of 16, then the encrypted packet. Leaves the
//! packet to [`super::frame`]; where nonces come from is the caller's business.
//!
//! Always: nothing comes out of an envelope that was not put into it under the same secret. Keys have no `Debug`.

use std::ops::Range;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::{digest, hmac};

use super::secret::SharedSecret;
use crate::wire::packet::{CONDITION_BYTES, DATA_BYTES_MAX};

/// Random bytes in front of every envelope.
pub const NONCE_BYTES: usize = NONCE_LEN;

const NONCE: Range<usize> = 0..NONCE_BYTES;
const TAG_BYTES: usize = 16;
const TAG: Range<usize> = NONCE.end..NONCE.end + TAG_BYTES;
/// What an envelope adds to a packet.
const OVERHEAD_BYTES: usize = TAG.end;
/// The longest packet that, in its envelope, fits the data of an ILP packet.
pub const PLAINTEXT_BYTES_MAX: usize = DATA_BYTES_MAX - OVERHEAD_BYTES;

/// The keys of one connection, made once: they cost more than a packet does.
pub struct ConnectionKeys {
    encryption: LessSafeKey,
    fulfillment: hmac::Key,
}

impl ConnectionKeys {
    pub fn new(shared_secret: &SharedSecret) -> Self {
        Self::of(shared_secret)
    }

    /// A secret of any length, for the examples of others.
    fn of(shared_secret: &[u8]) -> Self {
        let encryption = UnboundKey::new(&AES_256_GCM, derive(shared_secret, b"ilp_stream_encryption").as_ref());
        let fulfillment = derive(shared_secret, b"ilp_stream_fulfillment");
        Self {
            encryption: LessSafeKey::new(encryption.expect("HMAC-SHA256 gives the 32 bytes that AES-256 takes")),
            fulfillment: hmac::Key::new(hmac::HMAC_SHA256, fulfillment.as_ref()),
        }
    }

    /// Appends an envelope to `out`, around what `write_plaintext` appends. `nonce` must never be used twice under the
    /// same secret, by either end: it is random.
    ///
    /// # Panics
    /// If the plaintext is longer than [`PLAINTEXT_BYTES_MAX`].
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], out: &mut Vec<u8>, write_plaintext: impl FnOnce(&mut Vec<u8>)) {
        let begin = out.len();
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&[0; TAG_BYTES]);
        write_plaintext(out);
        let envelope = &mut out[begin..];
        let (header, plaintext) = envelope.split_at_mut(OVERHEAD_BYTES);
        assert!(plaintext.len() <= PLAINTEXT_BYTES_MAX, "a packet fits its envelope");
        let tag = self
            .encryption
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), plaintext)
            .expect("far fewer bytes than AES-GCM can take");
        header[TAG].copy_from_slice(tag.as_ref());
    }

    /// Decrypts an envelope in place. `None`: it was not made under this secret, or was changed since.
    pub fn open<'a>(&self, envelope: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (header, ciphertext) = envelope.split_at_mut_checked(OVERHEAD_BYTES)?;
        let nonce = Nonce::try_assume_unique_for_key(&header[NONCE]).ok()?;
        let tag = Tag::try_from(&header[TAG]).ok()?;
        self.encryption
            .open_in_place_separate_tag(nonce, Aad::empty(), tag, ciphertext, 0..)
            .ok()
    }

    /// The fulfillment of a Prepare with this data. Only the two ends can make it.
    pub fn fulfillment(&self, data: &[u8]) -> [u8; CONDITION_BYTES] {
        let tag = hmac::sign(&self.fulfillment, data);
        tag.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes")
    }
}

/// The condition that `fulfillment` fulfills: its SHA-256.
pub fn condition(fulfillment: &[u8; CONDITION_BYTES]) -> [u8; CONDITION_BYTES] {
    let hash = digest::digest(&digest::SHA256, fulfillment);
    hash.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn derive(shared_secret: &[u8], purpose: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, shared_secret), purpose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hex;

    fn to_hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn sealed(keys: &ConnectionKeys, nonce: &str, plaintext: &str) -> String {
        let mut out = vec![0xaa];
        keys.seal(hex(nonce).try_into().unwrap(), &mut out, |out| {
            out.extend_from_slice(&hex(plaintext));
        });
        assert_eq!(out.remove(0), 0xaa, "it is appended");
        to_hex(&out)
    }

    fn opened(keys: &ConnectionKeys, data: &str) -> Option<String> {
        keys.open(&mut hex(data)).map(|plaintext| to_hex(plaintext))
    }

    // The numbers are those of protocols.md 12.6.

    #[test]
    fn envelopes_and_fulfillments() {
        let first_secret = hex("7edb755d76f8f9d314d3416eed50fdb35192e543e7315c7ffee6906667a69624");
        let counting: Vec<u8> = (0..32).collect();
        for (secret, nonce, plaintext, data, fulfillment) in [
            (
                &first_secret,
                "77f8d5ea3fc8e08cd4de699f",
                "63000cff4d1f",
                "77f8d5ea3fc8e08cd4de699ff6cb429b97ac44184ce85a0aed92bd49f8c4b16c73df",
                Some((
                    "18063849e5ec58e3527098319849b6b7c607e97c77410d44366c78c13be26b27",
                    "8c1e5999a50fbe1afb92f0a39485cac876f45b5499c8fb8268aa14e5b50b90bb",
                )),
            ), // 58, 59
            (
                &counting,
                "404142434445464748494a4b",
                "010c01010201ef0102110401010101020b0a746573742e616c696365",
                concat!(
                    "404142434445464748494a4bb279b40c7b40d04cb3dde5047db05a39",
                    "c9f7cd3939f16951230270e998db3f665219e5e794def1bedf7a7bfc"
                ),
                Some((
                    "02a919a10917ef2148538f52c97378129fdde0b346967cbfbe1aafc028cf8e2e",
                    "6d66fc1167a80d517e5f4f33a637f5499bcd80f2d0eea3d2509f10e85e118b94",
                )),
            ), // 69
            (
                &counting,
                "505152535455565758595a5b",
                "010d01010201f40102120d010108ffffffffffffffff010007050358595a09",
                concat!(
                    "505152535455565758595a5bc75bd319fdf04ba21ee8390e6e53ced8",
                    "46f8a08f21487c845149362c6684240f6af468fb6550529da2b11629c57159"
                ),
                None,
            ), // 70
        ] {
            let keys = ConnectionKeys::of(secret);
            assert_eq!(sealed(&keys, nonce, plaintext), data);
            assert_eq!(opened(&keys, data).as_deref(), Some(plaintext));
            if let Some((fulfillment, expected)) = fulfillment {
                assert_eq!(to_hex(&keys.fulfillment(&hex(data))), fulfillment);
                assert_eq!(to_hex(&condition(&hex(fulfillment).try_into().unwrap())), expected);
            }
        }
    }

    #[test]
    fn keys() {
        for (secret, purpose, key) in [
            (
                &hex("7edb755d76f8f9d314d3416eed50fdb35192e543e7315c7ffee6906667a69624")[..],
                "ilp_stream_encryption",
                "3f8f12c9f2be99d32bd615fdf212e96f47911242556f4f32c75241ba1149cc57",
            ), // 59
            (
                &hex("7edb755d76f8f9d314d3416eed50fdb35192e543e7315c7ffee6906667a69624"),
                "ilp_stream_fulfillment",
                "aa044d1508fde0fbff6956f1daf210235dc396810be76ad27bab497f5707f31d",
            ),
            (
                b"foo",
                "ilp_stream_encryption",
                "cdf386314fee63e10e50213ab4ddd6844efb6c5fcdea94b4c123a63201003040",
            ), // 60
            (
                b"foo",
                "ilp_stream_fulfillment",
                "961f27189089a2cbdf51e3da534bb1c572b78cdbd5d98fb98afb75187d4cba1b",
            ),
            (
                b"secret",
                "ilp_stream_encryption",
                "00e4adca806fa0af7f38585d99fd93cd046b26c0a4c47fdc8f8f586bb4453847",
            ), // 61
        ] {
            assert_eq!(to_hex(derive(secret, purpose.as_bytes()).as_ref()), key);
        }
        let data = "6355225e90c0d46c00bfe87de4212febb3b8f4c380250ae760440cace16c6efeabae51";
        assert_eq!(
            opened(&ConnectionKeys::of(b"secret"), data),
            Some(to_hex(b"foo bar")),
            "61"
        );
    }

    #[test]
    fn what_does_not_open() {
        let keys = ConnectionKeys::new(&[7; 32]);
        let data = sealed(&keys, "404142434445464748494a4b", "010c010001000100");
        assert!(opened(&keys, &data).is_some());
        assert_eq!(opened(&ConnectionKeys::new(&[8; 32]), &data), None);
        for at in 0..data.len() / 2 {
            let mut changed = hex(&data);
            changed[at] ^= 0x10;
            assert!(keys.open(&mut changed).is_none(), "byte {at}");
            assert!(keys.open(&mut hex(&data[..2 * at])).is_none(), "{at} bytes");
        }
        // An empty packet is no packet, but an envelope.
        assert_eq!(
            opened(&keys, &sealed(&keys, "404142434445464748494a4b", "")).as_deref(),
            Some("")
        );
    }

    #[test]
    fn the_longest_packet_fits() {
        let keys = ConnectionKeys::new(&[7; 32]);
        let mut out = Vec::new();
        keys.seal([0; NONCE_BYTES], &mut out, |out| {
            out.resize(out.len() + PLAINTEXT_BYTES_MAX, 1);
        });
        assert_eq!((out.len(), PLAINTEXT_BYTES_MAX), (DATA_BYTES_MAX, 32_739));
        assert_eq!(
            keys.open(&mut out).map(|plaintext| plaintext.len()),
            Some(PLAINTEXT_BYTES_MAX)
        );
    }
}
