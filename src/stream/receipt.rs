//! Receipts (RFC 39): a receiver's proof, for whoever gave it the keys, of what a stream has received in all.
//!
//! Owns the 58 bytes of a receipt. Leaves the keys to [`super::secret`], the totals to who keeps the books.

use ring::hmac;

use super::secret::{RECEIPT_NONCE_BYTES, ReceiptKeys};

/// Version, nonce, stream, total, and an HMAC over these.
pub const RECEIPT_BYTES: usize = SIGNED_BYTES + 32;

const VERSION: u8 = 1;
const STREAM: usize = 1 + RECEIPT_NONCE_BYTES;
const TOTAL: usize = STREAM + 1;
const SIGNED_BYTES: usize = TOTAL + size_of::<u64>();

/// That `stream` has received `total` since its connection began, in units of the receiver.
pub fn sign(keys: &ReceiptKeys, stream: u8, total: u64) -> [u8; RECEIPT_BYTES] {
    let mut receipt = [0; RECEIPT_BYTES];
    receipt[0] = VERSION;
    receipt[1..STREAM].copy_from_slice(&keys.nonce);
    receipt[STREAM] = stream;
    receipt[TOTAL..SIGNED_BYTES].copy_from_slice(&total.to_be_bytes());
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &keys.secret),
        &receipt[..SIGNED_BYTES],
    );
    receipt[SIGNED_BYTES..].copy_from_slice(tag.as_ref());
    receipt
}

/// The total that a receipt claims. `None`: it is none of this version. Only the verifier can tell whether it is genuine.
pub fn claimed_total(receipt: &[u8; RECEIPT_BYTES]) -> Option<u64> {
    let total = receipt[TOTAL..].first_chunk()?;
    (receipt[0] == VERSION).then_some(u64::from_be_bytes(*total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt() {
        let keys = ReceiptKeys {
            nonce: [0; RECEIPT_NONCE_BYTES],
            secret: [0; 32],
        };
        let mut receipt = sign(&keys, 1, 500);
        let hex: String = receipt.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01000000000000000000000000000000000100000000000001f4",
                "c122fa0252debb672d591823f710e99516d67385cf397da87cc8f9e8c8bf5130"
            )
        ); // protocols.md 12.6, vector 72
        assert_eq!(claimed_total(&receipt), Some(500));
        receipt[0] = 2;
        assert_eq!(claimed_total(&receipt), None);
    }
}
