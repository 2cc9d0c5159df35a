//! Who may call: the operator, the holder of an account, or anybody.
//!
//! Owns the decision, and the limit on failed attempts. Which secrets a header offers is
//! [`crate::wire::http::authorization`]'s. Always: secrets are compared in constant time; a stranger cannot tell an
//! account that does not exist from one whose password is another; nothing here logs or repeats a secret.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::{Control, ControlError};
use crate::ledger::account::Account;
use crate::ledger::directory::{USERNAME_CHARS, fold_username, secrets_equal};
use crate::shard::control::ApiRequest;
use crate::wire::http::authorization::{Credentials, parse_authorization};

use super::problem::{Kind, Problem, shorten};

/// Failed attempts that an address may make at once, and per second after that.
pub const FAILED_ATTEMPTS_PER_SECOND: u64 = 5;
/// Addresses whose failed attempts are counted at one time, at some 40 bytes each. In a second in which more addresses
/// than this fail, those beyond it are not slowed down: no address may suffer for the attempts of another.
const ADDRESSES_MAX: usize = 16_384;

/// Stands in for the token of an account that is unknown or has none, so that its refusal takes as long. No header can
/// offer it.
const NO_TOKEN: &[u8] = b"\0";

/// Lets callers in.
pub struct Gate {
    admin_auth_token: Box<str>,
    failures: Mutex<Failures>,
}

impl Gate {
    pub fn new(admin_auth_token: &str) -> Self {
        Self {
            admin_auth_token: admin_auth_token.into(),
            failures: Mutex::default(),
        }
    }

    /// Admits the operator. `now_ms` is monotonic.
    pub fn admit_admin(&self, request: &ApiRequest, now_ms: u64) -> Result<(), Problem> {
        self.admit(request, now_ms, |credentials| self.is_admin(credentials))
    }

    /// Admits the operator and the holder of an account, if there is such an account.
    fn admit_admin_or_holder(
        &self,
        request: &ApiRequest,
        now_ms: u64,
        username: &str,
        account: Option<&Account>,
    ) -> Result<(), Problem> {
        self.admit(request, now_ms, |credentials| {
            // Both are compared always, so that the time does not tell who came close.
            let is_holder = is_holder(credentials, username, account);
            self.is_admin(credentials) | is_holder
        })
    }

    /// The account that the path names, for its holder and the operator. Only the operator learns that there is none.
    pub fn find(
        &self,
        control: &Control,
        request: &ApiRequest,
        now_ms: u64,
        username: &str,
    ) -> Result<Arc<Account>, Problem> {
        let account = control.find_account(username);
        self.admit_admin_or_holder(request, now_ms, username, account.as_deref())?;
        account.ok_or_else(|| {
            ControlError::AccountNotFound {
                username: shorten(username),
            }
            .into()
        })
    }

    fn admit(
        &self,
        request: &ApiRequest,
        now_ms: u64,
        check: impl FnOnce(&Credentials<'_>) -> bool,
    ) -> Result<(), Problem> {
        let mut values = request
            .headers
            .iter()
            .filter(|(name, _)| name == "authorization")
            .map(|(_, value)| value);
        let Some(value) = values.next() else {
            return Err(Problem::unauthorized("this call needs an Authorization header"));
        };
        if values.next().is_some() {
            return Err(Problem::new(
                Kind::BadRequest,
                "there is more than one Authorization header",
            ));
        }
        // Before the secret is looked at: who guesses too fast does not learn of a hit either.
        if self.failures().is_blocked(request.peer, now_ms) {
            let problem = Problem::new(Kind::TooManyRequests, "too many failed attempts from this address");
            return Err(problem.with_header("retry-after", "1"));
        }
        if parse_authorization(value).as_ref().is_some_and(check) {
            return Ok(());
        }
        self.failures().note(request.peer, now_ms);
        Err(Problem::unauthorized("the credentials do not allow this call"))
    }

    fn is_admin(&self, credentials: &Credentials<'_>) -> bool {
        let equals = |value: &str| secrets_equal(value.as_bytes(), self.admin_auth_token.as_bytes());
        credentials.bearer().is_some_and(equals)
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        // Counters are valid at every instant.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_holder(credentials: &Credentials<'_>, username: &str, account: Option<&Account>) -> bool {
    let token = account.and_then(|account| account.links.http_incoming_token.as_deref());
    let stored = token.map_or(NO_TOKEN, str::as_bytes);
    // Longer than any name can be: do not fold what a stranger sent.
    let is_short = |name: &str| name.len() <= USERNAME_CHARS.end() * 4 * 3;
    let is_named = |name: &str| is_short(name) && is_short(username) && fold_username(name) == fold_username(username);
    credentials.matches(is_named, |secret| secrets_equal(secret, stored)) & token.is_some()
}

/// Failed attempts per address, each a bucket that leaks: a failure adds 1,000, a millisecond takes
/// [`FAILED_ATTEMPTS_PER_SECOND`] away.
#[derive(Default)]
struct Failures {
    by_address: HashMap<IpAddr, Bucket>,
    swept_at_ms: u64,
}

#[derive(Clone, Copy)]
struct Bucket {
    level: u64,
    at_ms: u64,
}

const FAILURE: u64 = 1_000;

impl Bucket {
    fn level(self, now_ms: u64) -> u64 {
        self.level.saturating_sub(
            now_ms
                .saturating_sub(self.at_ms)
                .saturating_mul(FAILED_ATTEMPTS_PER_SECOND),
        )
    }
}

impl Failures {
    fn is_blocked(&self, peer: IpAddr, now_ms: u64) -> bool {
        let level = self
            .by_address
            .get(&counted_as(peer))
            .map_or(0, |bucket| bucket.level(now_ms));
        level + FAILURE > FAILURE * FAILED_ATTEMPTS_PER_SECOND
    }

    fn note(&mut self, peer: IpAddr, now_ms: u64) {
        let address = counted_as(peer);
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&address) {
            // At most once a second: a bucket takes no longer than that to leak out.
            if now_ms.saturating_sub(self.swept_at_ms) >= 1_000 {
                self.swept_at_ms = now_ms;
                self.by_address.retain(|_, bucket| bucket.level(now_ms) > 0);
            }
            if self.by_address.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let bucket = self.by_address.entry(address).or_insert(Bucket {
            level: 0,
            at_ms: now_ms,
        });
        *bucket = Bucket {
            level: bucket.level(now_ms) + FAILURE,
            at_ms: now_ms,
        };
    }
}

/// Whoever has one IPv6 address has 2^64 of them: they count as one.
fn counted_as(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_attempts() {
        let mut failures = Failures::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for attempt in 0..5 {
            assert!(!failures.is_blocked(one, 0), "{attempt}");
            failures.note(one, 0);
        }
        for (peer, now_ms, blocked) in [(one, 0, true), (other, 0, false), (one, 199, true), (one, 200, false)] {
            assert_eq!(failures.is_blocked(peer, now_ms), blocked, "{peer} at {now_ms}");
        }
        failures.note(one, 200);
        assert!(failures.is_blocked(one, 200));
        assert!(!failures.is_blocked(one, 5_000));
    }

    #[test]
    fn five_a_second_for_ever_are_never_blocked() {
        let mut failures = Failures::default();
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        for now_ms in (0..60_000).step_by(200) {
            assert!(!failures.is_blocked(peer, now_ms), "{now_ms}");
            failures.note(peer, now_ms);
        }
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            let counted = |text: &str| counted_as(text.parse().unwrap());
            assert_eq!(counted(one) == counted(other), same, "{one} {other}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let mut failures = Failures::default();
        let address = |number: usize| IpAddr::V4((number as u32).into());
        for number in 0..ADDRESSES_MAX + 10 {
            failures.note(address(number), 2_000);
        }
        assert_eq!(failures.by_address.len(), ADDRESSES_MAX);
        failures.note(address(ADDRESSES_MAX + 11), 3_000);
        assert_eq!(failures.by_address.len(), 1, "what has leaked out was swept");
    }
}
