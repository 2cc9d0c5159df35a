//! Prepare, Fulfill and Reject as a peer writes and reads them: RFC 27 and RFC 30, straight from their text.
//!
//! A Prepare of these tests carries the preimage of its condition in the first 32 bytes of its data, so any receiver
//! can fulfill it and any sender can check what came back. Not made for speed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest::{SHA256, digest};

const PREPARE: u8 = 12;
const FULFILL: u8 = 13;
const REJECT: u8 = 14;

/// RFC 27, section "ILP Prepare".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepare {
    pub amount: u64,
    /// Milliseconds since 1970, UTC.
    pub expires_at: u64,
    pub condition: [u8; 32],
    pub destination: String,
    pub data: Vec<u8>,
    /// What stands behind the data inside the envelope: fields of a later version, RFC 30.
    pub later: Vec<u8>,
}

/// What comes back for a Prepare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Fulfill {
        fulfillment: [u8; 32],
        data: Vec<u8>,
    },
    Reject {
        code: String,
        triggered_by: String,
        message: String,
        data: Vec<u8>,
    },
}

/// Now, in milliseconds since 1970, UTC.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_millis() as u64
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes)
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

/// Preimages only have to differ, also from those of other processes and earlier runs.
fn fresh_preimage() -> [u8; 32] {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    sha256(format!("{number} {} {}", std::process::id(), now()).as_bytes())
}

impl Prepare {
    /// A Prepare with a fresh preimage that expires in 20 seconds.
    pub fn new(destination: &str, amount: u64) -> Self {
        let preimage = fresh_preimage();
        Self {
            amount,
            expires_at: now() + 20_000,
            condition: sha256(&preimage),
            destination: destination.to_owned(),
            data: preimage.to_vec(),
            later: Vec::new(),
        }
    }

    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_at = now() + time.as_millis() as u64;
        self
    }

    /// A request of a neighbour as every implementation makes it: no money, the condition that zeros fulfill, a minute to
    /// live.
    pub fn request(destination: &str, data: &[u8]) -> Self {
        Self {
            amount: 0,
            expires_at: now() + 60_000,
            condition: sha256(&[0; 32]),
            destination: destination.to_owned(),
            data: data.to_vec(),
            later: Vec::new(),
        }
    }

    /// Neighbours ask each other something, and pay nothing.
    pub fn is_request(&self) -> bool {
        self.destination.starts_with("peer.")
    }

    /// The preimage it carries; that of a request between neighbours everybody knows.
    pub fn preimage(&self) -> [u8; 32] {
        if self.is_request() {
            return [0; 32];
        }
        self.data[..32]
            .try_into()
            .expect("a Prepare of these tests carries its preimage")
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend_from_slice(&self.amount.to_be_bytes());
        content.extend_from_slice(timestamp_text(self.expires_at).as_bytes());
        content.extend_from_slice(&self.condition);
        put_octets(&mut content, self.destination.as_bytes());
        put_octets(&mut content, &self.data);
        content.extend_from_slice(&self.later);
        envelope(PREPARE, &content)
    }

    /// `None` if it is not a Prepare, or if anything follows it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut content = Cursor(open(bytes, PREPARE)?);
        Some(Self {
            amount: u64::from_be_bytes(content.take(8)?.try_into().ok()?),
            expires_at: timestamp_ms(std::str::from_utf8(content.take(17)?).ok()?)?,
            condition: content.take(32)?.try_into().ok()?,
            destination: String::from_utf8(content.octets()?.to_vec()).ok()?,
            data: content.octets()?.to_vec(),
            later: content.0.to_vec(),
        })
    }

    /// What a receiver that has the preimage answers.
    pub fn fulfilled(&self) -> Reply {
        Reply::Fulfill {
            fulfillment: self.preimage(),
            data: if self.is_request() {
                Vec::new()
            } else {
                b"paid".to_vec()
            },
        }
    }
}

impl Reply {
    pub fn reject(code: &str, triggered_by: &str, message: &str, data: &[u8]) -> Self {
        Self::Reject {
            code: code.to_owned(),
            triggered_by: triggered_by.to_owned(),
            message: message.to_owned(),
            data: data.to_vec(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        match self {
            Self::Fulfill { fulfillment, data } => {
                content.extend_from_slice(fulfillment);
                put_octets(&mut content, data);
                envelope(FULFILL, &content)
            }
            Self::Reject {
                code,
                triggered_by,
                message,
                data,
            } => {
                assert_eq!(code.len(), 3, "a code has three letters");
                content.extend_from_slice(code.as_bytes());
                put_octets(&mut content, triggered_by.as_bytes());
                put_octets(&mut content, message.as_bytes());
                put_octets(&mut content, data);
                envelope(REJECT, &content)
            }
        }
    }

    /// `None` if it is neither a Fulfill nor a Reject, or if anything follows it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some(content) = open(bytes, FULFILL) {
            let mut content = Cursor(content);
            let fulfillment = content.take(32)?.try_into().ok()?;
            return Some(Self::Fulfill {
                fulfillment,
                data: content.octets()?.to_vec(),
            });
        }
        let mut content = Cursor(open(bytes, REJECT)?);
        Some(Self::Reject {
            code: String::from_utf8(content.take(3)?.to_vec()).ok()?,
            triggered_by: String::from_utf8(content.octets()?.to_vec()).ok()?,
            message: String::from_utf8_lossy(content.octets()?).into_owned(),
            data: content.octets()?.to_vec(),
        })
    }

    /// The code of a Reject; of a Fulfill "fulfill", so a failed comparison reads well.
    pub fn code(&self) -> &str {
        match self {
            Self::Fulfill { .. } => "fulfill",
            Self::Reject { code, .. } => code,
        }
    }

    pub fn data(&self) -> &[u8] {
        match self {
            Self::Fulfill { data, .. } | Self::Reject { data, .. } => data,
        }
    }

    /// True if this pays for `prepare`: the preimage is checked, not the type alone.
    pub fn fulfills(&self, prepare: &Prepare) -> bool {
        matches!(self, Self::Fulfill { fulfillment, .. } if sha256(fulfillment) == prepare.condition)
    }
}

fn envelope(packet_type: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![packet_type];
    put_octets(&mut packet, content);
    packet
}

fn open(packet: &[u8], packet_type: u8) -> Option<&[u8]> {
    let mut cursor = Cursor(packet);
    let content = (cursor.take(1)?[0] == packet_type).then(|| cursor.octets())??;
    cursor.0.is_empty().then_some(content)
}

/// RFC 30: a length determinant, then the bytes.
pub fn put_octets(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        length @ 0..=0x7f => out.push(length as u8),
        length @ 0x80..=0xff => out.extend_from_slice(&[0x81, length as u8]),
        length => {
            let [high, low] = u16::try_from(length)
                .expect("these tests write at most 65,535 bytes")
                .to_be_bytes();
            out.extend_from_slice(&[0x82, high, low]);
        }
    }
    out.extend_from_slice(bytes);
}

/// Reads what [`put_octets`] writes; every read may fail.
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn octets(&mut self) -> Option<&'a [u8]> {
        let first = self.take(1)?[0];
        let length = if first & 0x80 == 0 {
            usize::from(first)
        } else {
            self.take(usize::from(first & 0x7f))?
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        self.take(length)
    }
}

/// `YYYYMMDDHHMMSSfff`, RFC 27. Days to a date: the calendar repeats every 400 years of 146,097 days.
pub fn timestamp_text(ms: u64) -> String {
    let (mut days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let mut year = 1970;
    while days >= days_of_year(year) {
        days -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_of_month(year, month) {
        days -= days_of_month(year, month);
        month += 1;
    }
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    format!(
        "{year:04}{month:02}{:02}{hour:02}{minute:02}{second:02}{:03}",
        days + 1,
        rest % 1000
    )
}

pub fn timestamp_ms(text: &str) -> Option<u64> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let days = (1970..year).map(days_of_year).sum::<u64>()
        + (1..month).map(|earlier| days_of_month(year, earlier)).sum::<u64>()
        + day.checked_sub(1)?;
    let seconds = days * 86_400 + part(8, 10)? * 3600 + part(10, 12)? * 60 + part(12, 14)?;
    Some(seconds * 1000 + part(14, 17)?)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
