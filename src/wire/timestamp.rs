//! Points in time as Interledger writes them: the 17 digits of a packet's expiry (RFC 27, RFC 30),
//! the GeneralizedTime of a BTP error (RFC 23), the date of an HTTP answer (RFC 9110), and RFC 3339
//! for people.
//!
//! Owns the calendar. Leaves reading a clock to the shard: below it, time is an argument.
//! Always: a [`Timestamp`] lies in the years 1970 to 9999, so every one of them can be written in
//! every format, and arithmetic stops at either end instead of wrapping. No leap seconds: a day has
//! 86,400 seconds, as RFC 30 asks for (UTC-SLS). Reading and writing an expiry allocates nothing.

/// Milliseconds since 1970-01-01T00:00:00Z, at most the last millisecond of the year 9999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
pub struct Timestamp(u64);

/// Bytes of the fixed form: `YYYYMMDDHHmmSSfff`.
pub const INTERLEDGER_BYTES: usize = 17;
/// Bytes of the variable form as we write it: `YYYYMMDDHHmmSS.fffZ`.
pub const GENERALIZED_BYTES: usize = 19;
/// Bytes of HTTP's form: `Thu, 01 Jan 1970 00:00:00 GMT`.
pub const HTTP_DATE_BYTES: usize = 29;

/// `YYYYMMDDHHmmSS`, what all forms begin with.
const TO_SECONDS_BYTES: usize = 14;
/// `fff`
const FRACTION_BYTES: usize = INTERLEDGER_BYTES - TO_SECONDS_BYTES;

// The calendar computes in 32 bits, which suffice for all days and for the milliseconds of one, and
// divide faster than 64.
const SECOND_MS: u32 = 1_000;
const MINUTE_MS: u32 = 60 * SECOND_MS;
const HOUR_MS: u32 = 60 * MINUTE_MS;
const DAY_MS: u32 = 24 * HOUR_MS;

impl Timestamp {
    /// 9999-12-31T23:59:59.999Z, the last time that four digits of year can say.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// `millis` milliseconds since 1970, or [`Timestamp::MAX`] if that is earlier.
    #[inline]
    pub const fn from_millis(millis: u64) -> Self {
        if millis < Self::MAX.0 { Self(millis) } else { Self::MAX }
    }

    /// Milliseconds since 1970.
    #[inline]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// `ms` milliseconds later, or [`Timestamp::MAX`] if that is earlier.
    #[inline]
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self::from_millis(self.0.saturating_add(ms))
    }

    /// `ms` milliseconds earlier, but not before 1970.
    #[inline]
    #[must_use]
    pub const fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// Reads the expiry of a packet. `None` unless it is 17 digits that name an existing time.
    ///
    /// A year before 1970 is an expiry like any other, only long past: it reads as 1970 began.
    #[inline]
    pub fn parse_interledger(text: &[u8; INTERLEDGER_BYTES]) -> Option<Self> {
        let digits = digits(text)?;
        let (to_seconds, fraction) = digits.split_first_chunk()?;
        let civil = Civil::from_digits(to_seconds, fraction.first_chunk()?);
        // A leap second is never written in a packet: clocks are smeared instead.
        if civil.second >= 60 {
            return None;
        }
        civil.to_timestamp()
    }

    /// Writes the expiry of a packet.
    #[inline]
    pub fn write_interledger(self, out: &mut [u8; INTERLEDGER_BYTES]) {
        Civil::from_timestamp(self).write([0, 4, 6, 8, 10, 12, 14], out);
    }

    /// Reads `YYYYMMDDHHmmSS[.f[f[f]]]Z`. `None` unless it names an existing time.
    ///
    /// Here second 60 is legal: it is the first of the next minute.
    pub fn parse_generalized(text: &[u8]) -> Option<Self> {
        let (to_seconds, rest) = text.split_first_chunk()?;
        let fraction = match *rest {
            [b'Z'] => [b'0', b'0', b'0'],
            [b'.', a, b'Z'] => [a, b'0', b'0'],
            [b'.', a, b, b'Z'] => [a, b, b'0'],
            [b'.', a, b, c, b'Z'] => [a, b, c],
            _ => return None,
        };
        Civil::from_digits(&digits(to_seconds)?, &digits(&fraction)?).to_timestamp()
    }

    /// `YYYYMMDDHHmmSS.fffZ`, always with three digits of fraction: a widely used reader takes no
    /// other.
    pub fn to_generalized(self) -> [u8; GENERALIZED_BYTES] {
        let mut out = *b"YYYYMMDDHHmmSS.fffZ";
        Civil::from_timestamp(self).write([0, 4, 6, 8, 10, 12, 15], &mut out);
        out
    }

    /// `YYYY-MM-DDTHH:mm:SS.fffZ` (RFC 3339).
    pub fn to_rfc3339(self) -> String {
        let mut out = *b"YYYY-MM-DDTHH:mm:SS.fffZ";
        Civil::from_timestamp(self).write([0, 5, 8, 11, 14, 17, 20], &mut out);
        out.iter().copied().map(char::from).collect()
    }

    /// `Sun, 06 Nov 1994 08:49:37 GMT`, the form that RFC 9110 section 5.6.7 has servers write
    /// (IMF-fixdate); what is less than a second is cut off.
    pub fn to_http_date(self) -> [u8; HTTP_DATE_BYTES] {
        // 1970 began on the first of these.
        const WEEKDAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
        const MONTHS: [&[u8; 3]; 12] = [
            b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
        ];
        let mut out = *b"www, DD mmm YYYY HH:mm:SS GMT";
        let civil = Civil::from_timestamp(self);
        let weekday = self.0 / u64::from(DAY_MS) % 7;
        out[0..3].copy_from_slice(WEEKDAYS[weekday as usize]);
        write_number::<2>(&mut out[5..], civil.day);
        out[8..11].copy_from_slice(MONTHS[civil.month as usize - 1]);
        write_number::<4>(&mut out[12..], civil.year);
        write_number::<2>(&mut out[17..], civil.hour);
        write_number::<2>(&mut out[20..], civil.minute);
        write_number::<2>(&mut out[23..], civil.second);
        out
    }
}

/// A point in time by the calendar.
struct Civil {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    millis: u32,
}

impl Civil {
    /// From `YYYYMMDDHHmmSS` and `fff` as values of digits; nothing is in range yet.
    fn from_digits(digits: &[u8; TO_SECONDS_BYTES], fraction: &[u8; FRACTION_BYTES]) -> Self {
        let [y1, y2, y3, y4, digits @ ..] = digits;
        let [mo1, mo2, d1, d2, h1, h2, mi1, mi2, s1, s2] = digits;
        Self {
            year: number(&[*y1, *y2, *y3, *y4]),
            month: number(&[*mo1, *mo2]),
            day: number(&[*d1, *d2]),
            hour: number(&[*h1, *h2]),
            minute: number(&[*mi1, *mi2]),
            second: number(&[*s1, *s2]),
            millis: number(fraction),
        }
    }

    /// `None` if there is no such month, day, hour, minute or second. Second 60 is the caller's to
    /// judge.
    fn to_timestamp(&self) -> Option<Timestamp> {
        let exists = (1..=12).contains(&self.month)
            && (1..=days_in_month(self.year, self.month)).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second <= 60;
        if !exists {
            return None;
        }
        if self.year < 1970 {
            return Some(Timestamp(0));
        }
        let days = days_from_civil(self.year, self.month, self.day);
        let time_of_day = self.hour * HOUR_MS + self.minute * MINUTE_MS + self.second * SECOND_MS + self.millis;
        let millis = u64::from(days) * u64::from(DAY_MS) + u64::from(time_of_day);
        Some(Timestamp::from_millis(millis))
    }

    fn from_timestamp(timestamp: Timestamp) -> Self {
        // Neither is cut: a timestamp ends with the year 9999.
        let days = (timestamp.0 / u64::from(DAY_MS)) as u32;
        let time_of_day = (timestamp.0 % u64::from(DAY_MS)) as u32;
        let (year, month, day) = civil_from_days(days);
        Self {
            year,
            month,
            day,
            hour: time_of_day / HOUR_MS,
            minute: time_of_day % HOUR_MS / MINUTE_MS,
            second: time_of_day % MINUTE_MS / SECOND_MS,
            millis: time_of_day % SECOND_MS,
        }
    }

    /// Writes year, month, day, hour, minute, second and milliseconds where `at` says they begin.
    #[inline]
    fn write<const N: usize>(&self, at: [usize; 7], out: &mut [u8; N]) {
        write_number::<4>(&mut out[at[0]..], self.year);
        write_number::<2>(&mut out[at[1]..], self.month);
        write_number::<2>(&mut out[at[2]..], self.day);
        write_number::<2>(&mut out[at[3]..], self.hour);
        write_number::<2>(&mut out[at[4]..], self.minute);
        write_number::<2>(&mut out[at[5]..], self.second);
        write_number::<3>(&mut out[at[6]..], self.millis);
    }
}

/// The values of ASCII digits; `None` if one of them is something else.
fn digits<const N: usize>(text: &[u8; N]) -> Option<[u8; N]> {
    let digits = text.map(|byte| byte.wrapping_sub(b'0'));
    // Without an early exit, so that the compiler compares all digits at once.
    let all = digits.iter().fold(true, |all, &digit| all & (digit <= 9));
    all.then_some(digits)
}

/// A few values of digits as a number.
fn number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |value, &digit| value * 10 + u32::from(digit))
}

/// Writes the last `DIGITS` digits of `value` at the beginning of `out`.
#[inline]
fn write_number<const DIGITS: usize>(out: &mut [u8], mut value: u32) {
    for place in out[..DIGITS].iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn days_in_month(year: u32, month: u32) -> u32 {
    const DAYS: [u32; 13] = [0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if month == 2 && is_leap {
        29
    } else {
        DAYS[month as usize]
    }
}

// The calendar repeats after 400 years. Within such an era years are counted from March, so that
// the leap day, if there is one, is the last of its year and months before it never shift.
const ERA_YEARS: u32 = 400;
const ERA_DAYS: u32 = 146_097;
/// From 0000-03-01, where the first era begins, to 1970-01-01.
const EPOCH_DAYS: u32 = 719_468;

/// Days from 1970-01-01 to a date that exists, in 1970 or later.
fn days_from_civil(year: u32, month: u32, day: u32) -> u32 {
    let (year, month_from_march) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let year_of_era = year % ERA_YEARS;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year / ERA_YEARS * ERA_DAYS + day_of_era - EPOCH_DAYS
}

/// Year, month and day, `days` days after 1970-01-01.
fn civil_from_days(days: u32) -> (u32, u32, u32) {
    let days = days + EPOCH_DAYS;
    let day_of_era = days % ERA_DAYS;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / (ERA_DAYS - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let year = days / ERA_DAYS * ERA_YEARS + year_of_era;
    if month_from_march < 10 {
        (year, month_from_march + 3, day)
    } else {
        (year + 1, month_from_march - 9, day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn interledger(timestamp: Timestamp) -> [u8; INTERLEDGER_BYTES] {
        let mut out = [0; INTERLEDGER_BYTES];
        timestamp.write_interledger(&mut out);
        out
    }

    #[test]
    fn expiries_are_read_and_written() {
        let cases: &[(&[u8; INTERLEDGER_BYTES], &str)] = &[
            (b"20171224161432279", "2017-12-24T16:14:32.279Z"),
            (b"20171225000000000", "2017-12-25T00:00:00.000Z"),
            (b"20260105101112131", "2026-01-05T10:11:12.131Z"),
            (b"20240229235959999", "2024-02-29T23:59:59.999Z"),
            (b"20000229000000000", "2000-02-29T00:00:00.000Z"),
            (b"19700101000000000", "1970-01-01T00:00:00.000Z"),
            (b"99991224161432279", "9999-12-24T16:14:32.279Z"),
            (b"99991231235959999", "9999-12-31T23:59:59.999Z"),
        ];
        for (text, expected) in cases {
            let timestamp = Timestamp::parse_interledger(text).unwrap();
            assert_eq!(timestamp.to_rfc3339(), *expected);
            assert_eq!(interledger(timestamp), **text);
        }
        // As numbers too, so that reading and writing cannot err together.
        let known = [
            (b"20171224161432279", 1_514_132_072_279),
            (b"20300101000000000", 1_893_456_000_000),
        ];
        for (text, millis) in known {
            assert_eq!(Timestamp::parse_interledger(text), Some(Timestamp(millis)));
        }
    }

    #[test]
    fn an_expiry_before_1970_is_long_past() {
        for text in [b"19691231235959999", b"00000101000000000", b"00010101000000000"] {
            assert_eq!(Timestamp::parse_interledger(text), Some(Timestamp(0)));
        }
    }

    #[test]
    fn what_is_not_an_expiry_is_refused() {
        let cases: &[&[u8; INTERLEDGER_BYTES]] = &[
            b"20171324161432200", // month 13
            b"20170024161432200", // month 0
            b"20171232161432200", // day 32
            b"20171200161432200", // day 0
            b"20170229161432200", // no leap year
            b"21000229161432200", // no leap year either
            b"19000229161432200", // nor was this one
            b"20170431161432200", // thirty days hath April
            b"20171224240000000", // hour 24
            b"20171224236000000", // minute 60
            b"20161231235960852", // second 60
            b"2017122423000000.", // as many bytes as it takes, one no digit
            b"20171224 61432279",
            b"2017122416143227:",
            b"2017122416143227/",
            b"-0171224161432279",
            b"2017122416143\x00279",
            b"2017122416143\xff279",
        ];
        for text in cases {
            assert_eq!(Timestamp::parse_interledger(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn generalized_times_are_read() {
        let cases: &[(&[u8], Option<&str>)] = &[
            (b"20171224161432.279Z", Some("2017-12-24T16:14:32.279Z")),
            (b"20171224161432.27Z", Some("2017-12-24T16:14:32.270Z")),
            (b"20171224161432.2Z", Some("2017-12-24T16:14:32.200Z")),
            (b"20171225000000Z", Some("2017-12-25T00:00:00.000Z")),
            (b"20161231235960.852Z", Some("2017-01-01T00:00:00.852Z")),
            (b"99991231235960Z", Some("9999-12-31T23:59:59.999Z")),
            (b"20171224161432,279Z", None),
            (b"20171224215312.4318Z", None),
            (b"20171224230000.Z", None),
            (b"20171224235312.431+0200", None),
            (b"20171224161432.279", None),
            (b"20171224161432.27aZ", None),
            (b"20171224161461Z", None),
            (b"20171224161432", None),
            (b"20171324161432Z", None),
            (b"", None),
        ];
        for (text, expected) in cases {
            let read = Timestamp::parse_generalized(text).map(Timestamp::to_rfc3339);
            assert_eq!(read.as_deref(), *expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn generalized_times_are_written_with_three_digits() {
        assert_eq!(Timestamp(0).to_generalized(), *b"19700101000000.000Z");
        assert_eq!(Timestamp::MAX.to_generalized(), *b"99991231235959.999Z");
    }

    #[test]
    fn http_dates_are_written_with_their_weekday() {
        let cases = [
            (b"19941106084937000", "Sun, 06 Nov 1994 08:49:37 GMT"),
            (b"19700101000000000", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (b"20000229235959999", "Tue, 29 Feb 2000 23:59:59 GMT"),
            (b"20000301000000000", "Wed, 01 Mar 2000 00:00:00 GMT"),
            (b"20150402101112131", "Thu, 02 Apr 2015 10:11:12 GMT"),
            (b"20160513000000000", "Fri, 13 May 2016 00:00:00 GMT"),
            (b"20170610000000000", "Sat, 10 Jun 2017 00:00:00 GMT"),
            (b"20180709000000000", "Mon, 09 Jul 2018 00:00:00 GMT"),
            (b"20190807000000000", "Wed, 07 Aug 2019 00:00:00 GMT"),
            (b"20200930000000000", "Wed, 30 Sep 2020 00:00:00 GMT"),
            (b"20211031000000000", "Sun, 31 Oct 2021 00:00:00 GMT"),
            (b"20260105101112131", "Mon, 05 Jan 2026 10:11:12 GMT"),
            (b"99991231235959999", "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        for (text, expected) in cases {
            let timestamp = Timestamp::parse_interledger(text).unwrap();
            assert_eq!(str::from_utf8(&timestamp.to_http_date()), Ok(expected));
        }
    }

    #[test]
    fn arithmetic_stops_at_both_ends() {
        assert_eq!(Timestamp::from_millis(5).minus_ms(2), Timestamp(3));
        assert_eq!(Timestamp::from_millis(5).minus_ms(6), Timestamp(0));
        assert_eq!(Timestamp::from_millis(5).plus_ms(6), Timestamp(11));
        assert_eq!(Timestamp::from_millis(5).plus_ms(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::from_millis(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.plus_ms(1), Timestamp::MAX);
    }

    /// Every day from 1970 to 9999, counted one by one against the arithmetic.
    #[test]
    fn every_day_has_its_date() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..=(Timestamp::MAX.0 / u64::from(DAY_MS)) as u32 {
            assert_eq!(civil_from_days(days), (year, month, day));
            assert_eq!(days_from_civil(year, month, day), days);
            day += 1;
            if day > days_in_month(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }

    proptest! {
        #[test]
        fn times_round_trip(millis in 0..=Timestamp::MAX.0) {
            let timestamp = Timestamp::from_millis(millis);
            prop_assert_eq!(timestamp.as_millis(), millis);
            prop_assert_eq!(Timestamp::parse_interledger(&interledger(timestamp)), Some(timestamp));
            let generalized = timestamp.to_generalized();
            prop_assert_eq!(Timestamp::parse_generalized(&generalized), Some(timestamp));
        }

        // Each time has one text.
        #[test]
        fn accepted_expiries_are_written_back(
            text in "[2-9][0-9]{3}[01][0-9][0-3][0-9][0-2][0-9]([0-5][0-9]){2}[0-9]{3}",
        ) {
            let text: [u8; INTERLEDGER_BYTES] = text.into_bytes().try_into().unwrap();
            if let Some(timestamp) = Timestamp::parse_interledger(&text) {
                prop_assert_eq!(interledger(timestamp), text);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            fixed: [u8; INTERLEDGER_BYTES],
            variable in vec(any::<u8>(), 0..24),
        ) {
            let _ = Timestamp::parse_interledger(&fixed);
            let _ = Timestamp::parse_generalized(&variable);
        }

        #[test]
        fn arbitrary_digits_never_panic(
            fixed in "[0-9]{17}",
            variable in "[0-9]{14}(\\.[0-9]{1,3})?Z",
        ) {
            let _ = Timestamp::parse_interledger(fixed.as_bytes().first_chunk().unwrap());
            let _ = Timestamp::parse_generalized(variable.as_bytes());
        }
    }
}
