//! What a payer gets before it pays: an address of its own below an account's, and a secret that only it and we know
//! (RFC 29, section 4.1; RFC 9).
//!
//! Owns the token, the last segment of that address, and how everything else follows from it and the node's seed.
//! Nothing is stored: a restart loses no address. The token is 18 random bytes, followed, if receipts were asked for
//! (RFC 39), by their nonce and secret, sealed under a key of this token alone.
//!
//! Always: a token opens for the account it was made for and for no other; a seed has uses besides this one, and none
//! of them learns these keys.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

use crate::wire::base64;

/// Random bytes in a token: two tokens of a node's life never share them.
pub const TOKEN_RANDOM_BYTES: usize = 18;
/// Characters of a token without receipts.
pub const TOKEN_CHARS: usize = TOKEN_RANDOM_BYTES / 3 * 4;
/// What a payer's verifier gave us to make receipts with (RFC 39).
pub const RECEIPT_NONCE_BYTES: usize = 16;
pub const RECEIPT_SECRET_BYTES: usize = 32;

const TAG_BYTES: usize = 16;
const RECEIPT_BYTES: usize = RECEIPT_NONCE_BYTES + RECEIPT_SECRET_BYTES;
const TOKEN_WITH_RECEIPT_BYTES: usize = TOKEN_RANDOM_BYTES + RECEIPT_BYTES + TAG_BYTES;

/// The purpose that every STREAM implementation derives the root of shared secrets for (protocols.md 9.3).
const SHARED_SECRET_PURPOSE: &[u8] = b"ilp_stream_shared_secret";
/// Ours, for what a token hides.
const TOKEN_PURPOSE: &[u8] = b"clearway_stream_token";

/// What both ends of a connection know.
pub type SharedSecret = [u8; 32];

/// For the receipts of one connection (RFC 39).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReceiptKeys {
    pub nonce: [u8; RECEIPT_NONCE_BYTES],
    pub secret: [u8; RECEIPT_SECRET_BYTES],
}

/// What a token stands for. Has no `Debug`: it would print secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub shared_secret: SharedSecret,
    pub receipt: Option<ReceiptKeys>,
}

/// A token to hand out, as the segment of an address, and the secret that goes with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    pub shared_secret: SharedSecret,
}

/// What all tokens of a node are made from.
#[derive(Clone)]
pub struct TokenMaker {
    shared_secrets: hmac::Key,
    tokens: hmac::Key,
}

impl TokenMaker {
    pub fn new(secret_seed: &[u8; 32]) -> Self {
        let seed = hmac::Key::new(hmac::HMAC_SHA256, secret_seed);
        let derive = |purpose| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&seed, purpose).as_ref());
        Self {
            shared_secrets: derive(SHARED_SECRET_PURPOSE),
            tokens: derive(TOKEN_PURPOSE),
        }
    }

    /// Makes a token for the account with this public id. `random` must never be used twice.
    pub fn issue(&self, account: &[u8; 16], random: [u8; TOKEN_RANDOM_BYTES], receipt: Option<&ReceiptKeys>) -> Issued {
        let mut token = random.to_vec();
        if let Some(ReceiptKeys { nonce, secret }) = receipt {
            let mut hidden = [&nonce[..], secret].concat();
            let (key, nonce) = self.token_key(&random);
            let tag = key
                .seal_in_place_separate_tag(nonce, Aad::from(account), &mut hidden)
                .expect("48 bytes are fewer than AES-GCM can take");
            token.extend_from_slice(&hidden);
            token.extend_from_slice(tag.as_ref());
        }
        Issued {
            shared_secret: self.shared_secret(account, &token),
            token: base64::encode_url(&token),
        }
    }

    /// What a segment of an address stands for. `None`: it was not made by [`Self::issue`] for this account, as far as
    /// that can be seen; 18 bytes of anything look like a token, and then nothing will decrypt under its secret.
    pub fn open(&self, account: &[u8; 16], token: &str) -> Option<Opened> {
        // No longer token is ours: do not decode what anybody may have sent.
        if token.len() > TOKEN_WITH_RECEIPT_BYTES.div_ceil(3) * 4 {
            return None;
        }
        let token = base64::decode(token)?;
        let (random, hidden) = token.split_first_chunk::<TOKEN_RANDOM_BYTES>()?;
        let receipt = if hidden.is_empty() {
            None
        } else {
            let mut opened = hidden.to_vec();
            let (key, nonce) = self.token_key(random);
            let opened = key.open_in_place(nonce, Aad::from(account), &mut opened).ok()?;
            let (nonce, secret) = opened.split_first_chunk()?;
            Some(ReceiptKeys {
                nonce: *nonce,
                secret: secret.try_into().ok()?,
            })
        };
        Some(Opened {
            shared_secret: self.shared_secret(account, &token),
            receipt,
        })
    }

    fn shared_secret(&self, account: &[u8; 16], token: &[u8]) -> SharedSecret {
        let mut context = hmac::Context::with_key(&self.shared_secrets);
        context.update(account);
        context.update(token);
        digest(context.sign())
    }

    /// Each token has a key of its own, so that a nonce is never used twice under one.
    fn token_key(&self, random: &[u8; TOKEN_RANDOM_BYTES]) -> (LessSafeKey, Nonce) {
        let key = digest(hmac::sign(&self.tokens, random));
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("AES-256 takes 32 bytes");
        (LessSafeKey::new(key), Nonce::assume_unique_for_key([0; NONCE_LEN]))
    }
}

fn digest(tag: hmac::Tag) -> [u8; 32] {
    tag.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: [u8; 16] = [1; 16];
    const BOB: [u8; 16] = [2; 16];

    fn keys() -> ReceiptKeys {
        ReceiptKeys {
            nonce: [3; RECEIPT_NONCE_BYTES],
            secret: [4; RECEIPT_SECRET_BYTES],
        }
    }

    #[test]
    fn the_root_of_shared_secrets() {
        // protocols.md 12.6, vector 71.
        let root = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[9; 32]), SHARED_SECRET_PURPOSE);
        let hex: String = root.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "4626b9b73bb2b9a11f91e823a676a686fc31cd7184d23d4822ff8d38c9086548");
    }

    #[test]
    fn a_token_opens_for_its_account_under_its_seed() {
        let (maker, other_seed) = (TokenMaker::new(&[9; 32]), TokenMaker::new(&[8; 32]));
        for (receipt, length) in [(None, 24), (Some(keys()), 110)] {
            let issued = maker.issue(&ALICE, [7; 18], receipt.as_ref());
            assert_eq!(issued.token.len(), length);
            assert!(
                issued
                    .token
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            );
            // A node that starts again has the same seed, and nothing else.
            let opened = TokenMaker::new(&[9; 32]).open(&ALICE, &issued.token).unwrap();
            assert!(opened.shared_secret == issued.shared_secret && opened.receipt == receipt);
            for (maker, account) in [(&maker, &BOB), (&other_seed, &ALICE)] {
                let opened = maker.open(account, &issued.token);
                assert!(opened.is_none_or(|opened| opened.shared_secret != issued.shared_secret));
                assert!(receipt.is_none() || opened.is_none(), "what is hidden stays hidden");
            }
            assert!(maker.issue(&ALICE, [6; 18], receipt.as_ref()).token != issued.token);
        }
    }

    #[test]
    fn what_is_no_token() {
        let maker = TokenMaker::new(&[9; 32]);
        let mut changed = maker.issue(&ALICE, [7; 18], Some(&keys())).token;
        changed.replace_range(60..61, if &changed[60..61] == "A" { "B" } else { "A" });
        for token in [
            "",
            "~",
            "AAAA",
            "AAECAwQFBgcICQoLDA0ODxA",
            "AAECAwQFBgcICQoLDA0ODxARAA",
            &changed,
            &"A".repeat(4096),
        ] {
            assert!(maker.open(&ALICE, token).is_none(), "{token}");
        }
    }
}
