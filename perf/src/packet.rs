//! ILPv4 packets (RFC 27), as much of them as a load needs: Prepares made from a template, and a
//! reader that tells Prepare, Fulfill and Reject apart.
//! Owns the rule that joins sender and receiver: **the data of a Prepare is its preimage**, and the
//! condition is the SHA-256 of it. A receiver answers with the data; the sender hashes what it gets.
//! Leaves to others which request an answer belongs to. Always: no two Prepares of a run, and none
//! of two runs, share a condition, so an answer to another packet never passes as this one's.

use std::ops::Range;

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a condition, of a fulfillment, and of the preimage carried as data.
pub const HASH_BYTES: usize = 32;
/// Units of the sending account moved by each packet.
pub const AMOUNT: u64 = 1_000;
/// How far ahead a Prepare expires when its template was refreshed, in milliseconds. Below the 30 s
/// that connectors take as the longest hold, far above any delay worth measuring.
pub const EXPIRES_AFTER_MS: u64 = 25_000;
/// Bytes of a Fulfill without data.
pub const FULFILL_BYTES: usize = 2 + HASH_BYTES + 1;

const PREPARE: u8 = 12;
const FULFILL: u8 = 13;
const REJECT: u8 = 14;

/// Where the number of the route stands in a destination pattern.
const ROUTE_MARK: &str = "{}";
/// Digits a route number is written with.
const ROUTE_DIGITS: usize = 6;

/// SHA-256 of `preimage`.
pub fn condition_of(preimage: &[u8]) -> [u8; HASH_BYTES] {
    let mut condition = [0; HASH_BYTES];
    condition.copy_from_slice(digest::digest(&digest::SHA256, preimage).as_ref());
    condition
}

/// A packet borrowed from the bytes it was read from.
pub enum Packet<'a> {
    Prepare { data: &'a [u8] },
    Fulfill { fulfillment: &'a [u8] },
    Reject { code: [u8; 3], message: &'a [u8] },
}

/// Reads one whole packet. `None` if it is not one: bytes missing, bytes left over, unknown type.
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let (&kind, rest) = bytes.split_first()?;
    let (content, rest) = take_octets(rest)?;
    if !rest.is_empty() {
        return None;
    }
    match kind {
        PREPARE => {
            let (_, variable) = content.split_at_checked(8 + 17 + HASH_BYTES)?;
            let (_destination, rest) = take_octets(variable)?;
            let (data, _) = take_octets(rest)?;
            Some(Packet::Prepare { data })
        }
        FULFILL => {
            let (fulfillment, rest) = content.split_at_checked(HASH_BYTES)?;
            take_octets(rest)?;
            Some(Packet::Fulfill { fulfillment })
        }
        REJECT => {
            let (code, rest) = content.split_first_chunk::<3>()?;
            let (_triggered_by, rest) = take_octets(rest)?;
            let (message, _) = take_octets(rest)?;
            Some(Packet::Reject { code: *code, message })
        }
        _ => None,
    }
}

/// Splits an OER octet string (RFC 30) off the front: its content, and what follows it.
pub fn take_octets(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        return rest.split_at_checked(usize::from(first));
    }
    // No packet or frame here is longer than three length bytes can say.
    let (digits, rest) = match first {
        0x81..=0x83 => rest.split_at_checked(usize::from(first & 0x7f))?,
        _ => return None,
    };
    let length = digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit));
    rest.split_at_checked(length)
}

/// Appends an OER length determinant. `length` is one of ours and below 65,536.
pub fn push_length(out: &mut Vec<u8>, length: usize) {
    match length {
        0..0x80 => out.push(length as u8),
        0x80..0x100 => out.extend_from_slice(&[0x81, length as u8]),
        _ => {
            assert!(length < 0x1_0000, "a length of our own fits two bytes");
            out.extend_from_slice(&[0x82, (length >> 8) as u8, length as u8]);
        }
    }
}

/// Appends the Fulfill whose fulfillment is `preimage`, without data. `false`, and nothing appended,
/// if the preimage does not have the length of one.
pub fn push_fulfill(out: &mut Vec<u8>, preimage: &[u8]) -> bool {
    if preimage.len() != HASH_BYTES {
        return false;
    }
    out.extend_from_slice(&[FULFILL, (HASH_BYTES + 1) as u8]);
    out.extend_from_slice(preimage);
    out.push(0);
    true
}

/// Makes Prepares: one buffer, patched for each, so that a packet costs one hash and no allocation.
pub struct Prepares {
    bytes: Vec<u8>,
    expires_at: Range<usize>,
    condition: Range<usize>,
    /// The digits of the route number in the destination; empty if there is one destination only.
    route: Range<usize>,
    preimage: Range<usize>,
    routes: u32,
    made: u64,
    dice: u64,
}

impl Prepares {
    /// Prepares to `destination`; if that contains `{}`, each goes to one of `routes` numbers written
    /// there with six digits, chosen at random. Errors name what is wrong with the two.
    pub fn new(destination: &str, routes: u32) -> Result<Prepares, String> {
        let mark = destination.find(ROUTE_MARK);
        let destination = destination.replacen(ROUTE_MARK, "000000", 1);
        if destination.is_empty() || destination.len() > 1023 {
            return Err("a destination has 1 to 1023 characters".into());
        }
        if mark.is_some() != (routes > 0) || routes > 1_000_000 {
            return Err("a destination with {} needs 1 to 1,000,000 routes, one without none".into());
        }
        let mut content = Vec::new();
        content.extend_from_slice(&AMOUNT.to_be_bytes());
        content.extend_from_slice(&[b'0'; 17]);
        content.extend_from_slice(&[0; HASH_BYTES]);
        push_length(&mut content, destination.len());
        let address = content.len();
        content.extend_from_slice(destination.as_bytes());
        push_length(&mut content, HASH_BYTES);
        let data = content.len();
        content.extend_from_slice(&[0; HASH_BYTES]);

        let mut bytes = vec![PREPARE];
        push_length(&mut bytes, content.len());
        let start = bytes.len();
        bytes.extend_from_slice(&content);

        // Half of the preimage is drawn once a run, the counter fills the rest.
        let mut secret = [0; 24];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| "the kernel gives no random bytes")?;
        bytes[start + data + 8..][..24].copy_from_slice(&secret);
        let route = mark.map_or(0..0, |at| start + address + at..start + address + at + ROUTE_DIGITS);
        Ok(Prepares {
            expires_at: start + 8..start + 25,
            condition: start + 25..start + 57,
            route,
            preimage: start + data..start + data + HASH_BYTES,
            routes,
            bytes,
            made: 0,
            dice: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Bytes of every Prepare.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Lets the Prepares made from now on expire [`EXPIRES_AFTER_MS`] after `unix_ms`.
    pub fn refresh(&mut self, unix_ms: u64) {
        let text = timestamp(unix_ms + EXPIRES_AFTER_MS);
        self.bytes[self.expires_at.clone()].copy_from_slice(&text);
    }

    /// The next Prepare and its condition.
    pub fn next(&mut self) -> (&[u8], [u8; HASH_BYTES]) {
        self.made += 1;
        let preimage = &mut self.bytes[self.preimage.clone()];
        preimage[..8].copy_from_slice(&self.made.to_be_bytes());
        let condition = condition_of(preimage);
        self.bytes[self.condition.clone()].copy_from_slice(&condition);
        if self.routes > 0 {
            let mut number = next_random(&mut self.dice) % u64::from(self.routes);
            for digit in self.bytes[self.route.clone()].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        (&self.bytes, condition)
    }
}

/// One step of xorshift64: cheap and even enough to spread routes and WebSocket masks.
pub fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A moment as ILP writes it, `YYYYMMDDHHmmSSfff` in UTC.
fn timestamp(unix_ms: u64) -> [u8; 17] {
    // Howard Hinnant's days-to-date, with years that begin in March so that leap days come last.
    let days = unix_ms / 86_400_000 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);

    let mut text = [b'0'; 17];
    let mut at = 0;
    let mut put = |mut value: u64, digits: usize| {
        for digit in text[at..at + digits].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
        at += digits;
    };
    put(year, 4);
    put(month, 2);
    put(day, 2);
    put(unix_ms / 3_600_000 % 24, 2);
    put(unix_ms / 60_000 % 60, 2);
    put(unix_ms / 1_000 % 60, 2);
    put(unix_ms % 1_000, 3);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn timestamps_are_those_of_the_rfc() {
        for (unix_ms, text) in [
            (1_514_132_072_279, b"20171224161432279"),
            (1_514_160_000_000, b"20171225000000000"),
            (1_582_934_400_001, b"20200229000000001"),
            (253_402_300_799_999, b"99991231235959999"),
        ] {
            assert_eq!(&timestamp(unix_ms), text, "{unix_ms}");
        }
    }

    #[test]
    fn packets_of_other_implementations_are_read() {
        let prepare = bytes(
            "0c68000000000000006b323031373132323330313231343035343974e1136dc71c9e5f283bec83461cbf12\
             61c4014f72d48f8dd65453a0b84e7de10d6578616d706c652e616c696365205db343fdc41898f6df4202\
             329139dc242dd0f558a811b46b28918fdab37c6cb0"
                .replace(' ', "")
                .as_str(),
        );
        match parse(&prepare) {
            Some(Packet::Prepare { data }) => assert_eq!(&data[..2], [0x5d, 0xb3]),
            _ => panic!("not a Prepare"),
        }
        let fulfill = bytes("0d21000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f00");
        match parse(&fulfill) {
            Some(Packet::Fulfill { fulfillment }) => assert_eq!(
                condition_of(fulfillment)[..4],
                [0x63, 0x0d, 0xcd, 0x29],
                "the condition of the matching Prepare"
            ),
            _ => panic!("not a Fulfill"),
        }
        let reject = bytes("0e2854303409746573742e61636d65196578636565646564206d6178696d756d2062616c616e63652e00");
        match parse(&reject) {
            Some(Packet::Reject { code, message }) => {
                assert_eq!(&code, b"T04");
                assert_eq!(message, b"exceeded maximum balance.");
            }
            _ => panic!("not a Reject"),
        }
    }

    #[test]
    fn cut_packets_are_not_packets() {
        let mut prepares = Prepares::new("test.hub.bob", 0).unwrap();
        let (prepare, _) = prepares.next();
        assert!(parse(prepare).is_some());
        for length in 0..prepare.len() {
            assert!(parse(&prepare[..length]).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn each_prepare_has_its_own_condition_and_route() {
        let mut prepares = Prepares::new("test.net.r{}.x", 3).unwrap();
        let mut conditions = Vec::new();
        let mut routes = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let (prepare, condition) = prepares.next();
            let Some(Packet::Prepare { data }) = parse(prepare) else {
                panic!("not a Prepare")
            };
            assert_eq!(condition_of(data), condition);
            let mut fulfill = Vec::new();
            assert!(push_fulfill(&mut fulfill, data));
            assert_eq!(fulfill.len(), FULFILL_BYTES);
            let text = String::from_utf8_lossy(prepare).into_owned();
            let at = text.find("test.net.r").unwrap();
            routes.insert(text[at..at + 18].to_owned());
            conditions.push(condition);
        }
        conditions.sort_unstable();
        conditions.dedup();
        assert_eq!(conditions.len(), 100);
        assert_eq!(
            routes.into_iter().collect::<Vec<_>>(),
            ["test.net.r000000.x", "test.net.r000001.x", "test.net.r000002.x"]
        );
    }
}
