//! Secrets at rest: tokens are stored encrypted, so that a copied data folder or backup lets nobody in.
//!
//! Owns the key, derived from the node's secret seed, and the sealed form: AES-256-GCM (NIST SP 800-38D) with a fresh
//! random nonce in front. The associated data binds a secret to the record and field it was sealed for, so one that
//! is copied to another place does not open there. Where sealed secrets are kept is [`super::schema`]'s.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Says what the key is for: the seed has other uses, and none of them may learn this key.
const KEY_PURPOSE: &[u8] = b"clearway_store_secrets";

/// The sealed form exceeds the secret by the nonce in front and the tag at the end.
pub const SEALED_OVERHEAD: usize = NONCE_LEN + 16;

/// Seals and opens under one seed.
pub struct Secrets {
    key: LessSafeKey,
    random: SystemRandom,
}

/// Sealed under another seed, for another place, or changed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the secret does not open")]
pub struct DoesNotOpen;

impl Secrets {
    pub fn new(seed: &[u8; 32]) -> Self {
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, seed), KEY_PURPOSE);
        // SHA-256 gives exactly the 32 bytes that AES-256 takes.
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).expect("HMAC-SHA256 gives 32 bytes");
        Self {
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
        }
    }

    /// Encrypts `secret` for the `field` of the record `owner`, as [`SEALED_OVERHEAD`] bytes more than it has.
    pub fn seal(&self, owner: &[u8; 16], field: &str, secret: &[u8]) -> Vec<u8> {
        // Random, not counted: a counter would fall back with a restored backup and repeat itself. 96 random bits
        // are good for 2^32 secrets under one key, far more than a node stores in its life.
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .expect("the kernel gives random bytes once it has started");
        let mut sealed = Vec::with_capacity(secret.len() + SEALED_OVERHEAD);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(secret);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                associated_data(owner, field),
                &mut sealed[NONCE_LEN..],
            )
            .expect("a token is shorter than the 64 GiB that AES-GCM can take");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Decrypts what [`Self::seal`] made for the same owner and field.
    pub fn open(&self, owner: &[u8; 16], field: &str, sealed: &[u8]) -> Result<Vec<u8>, DoesNotOpen> {
        let (nonce, sealed) = sealed.split_first_chunk().ok_or(DoesNotOpen)?;
        let mut secret = sealed.to_vec();
        let length = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                associated_data(owner, field),
                &mut secret,
            )
            .map_err(|_| DoesNotOpen)?
            .len();
        secret.truncate(length);
        Ok(secret)
    }
}

/// The owner has a fixed length, so no two places share their associated data.
fn associated_data(owner: &[u8; 16], field: &str) -> Aad<Vec<u8>> {
    Aad::from([owner, field.as_bytes()].concat())
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: [u8; 16] = [1; 16];

    #[test]
    fn opens_in_its_own_place_only() {
        let secrets = Secrets::new(&[7; 32]);
        let sealed = secrets.seal(&OWNER, "token", b"swordfish");
        assert_eq!(sealed.len(), b"swordfish".len() + SEALED_OVERHEAD);
        assert_eq!(secrets.open(&OWNER, "token", &sealed).unwrap(), b"swordfish");
        assert_eq!(
            secrets.open(&[2; 16], "token", &sealed),
            Err(DoesNotOpen),
            "another record"
        );
        assert_eq!(
            secrets.open(&OWNER, "other", &sealed),
            Err(DoesNotOpen),
            "another field"
        );
        let others = Secrets::new(&[8; 32]);
        assert_eq!(others.open(&OWNER, "token", &sealed), Err(DoesNotOpen), "another seed");
    }

    #[test]
    fn a_changed_byte_and_a_missing_one_are_noticed() {
        let secrets = Secrets::new(&[7; 32]);
        let sealed = secrets.seal(&OWNER, "token", b"swordfish");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(secrets.open(&OWNER, "token", &changed), Err(DoesNotOpen), "byte {at}");
            assert_eq!(
                secrets.open(&OWNER, "token", &sealed[..at]),
                Err(DoesNotOpen),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn the_same_secret_never_looks_the_same() {
        let secrets = Secrets::new(&[7; 32]);
        assert_ne!(secrets.seal(&OWNER, "token", b""), secrets.seal(&OWNER, "token", b""));
    }
}
