//! Who may call: the operator, the holder of an account, or anybody.
//!
//! Owns the decision; failed attempts are counted in [`crate::shard::failures`]. Which secrets a header offers is
//! [`crate::wire::http::authorization`]'s. Always: secrets are compared in constant time; a stranger cannot tell an
//! account that does not exist from one whose password is another; nothing here logs or repeats a secret.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::{Control, ControlError};
use crate::ledger::account::Account;
use crate::ledger::directory::{USERNAME_CHARS, fold_username, secrets_equal};
use crate::shard::control::ApiRequest;
use crate::shard::failures::Failures;
use crate::wire::http::authorization::{Credentials, parse_authorization};

use super::problem::{Kind, Problem, shorten};

/// Stands in for the token of an account that is unknown or has none, so that its refusal takes as long. No header can
/// offer it.
const NO_TOKEN: &[u8] = b"\0";

/// Who was let in to an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    Admin,
    Holder,
}

/// Lets callers in.
pub struct Gate {
    admin_auth_token: Box<str>,
    /// Of settlement engines; `None`: whoever reaches their port is one.
    engine_token: Option<Box<str>>,
    failures: Mutex<Failures>,
}

impl Gate {
    pub fn new(admin_auth_token: &str, engine_token: Option<&str>) -> Self {
        Self {
            admin_auth_token: admin_auth_token.into(),
            engine_token: engine_token.map(Box::from),
            failures: Mutex::default(),
        }
    }

    /// Admits the operator. `now_ms` is monotonic.
    pub fn admit_admin(&self, request: &ApiRequest, now_ms: u64) -> Result<(), Problem> {
        self.admit(request, now_ms, |credentials| self.is_admin(credentials).then_some(()))
    }

    /// Admits settlement engines on the port that is theirs.
    pub fn admit_engine(&self, request: &ApiRequest, now_ms: u64) -> Result<(), Problem> {
        let Some(token) = &self.engine_token else {
            return Ok(());
        };
        let is_token = |value: &str| secrets_equal(value.as_bytes(), token.as_bytes());
        self.admit(request, now_ms, |credentials| {
            credentials.bearer().is_some_and(is_token).then_some(())
        })
    }

    /// Admits the operator and every holder who names the own account: a password alone names nobody.
    pub fn admit_admin_or_any_holder(
        &self,
        control: &Control,
        request: &ApiRequest,
        now_ms: u64,
    ) -> Result<(), Problem> {
        self.admit(request, now_ms, |credentials| {
            let username = credentials.named_user().unwrap_or_default();
            let account = control.find_account(username);
            let is_holder = is_holder(credentials, username, account.as_deref());
            (self.is_admin(credentials) | is_holder).then_some(())
        })
    }

    /// The account that the path names, for its holder and the operator. Only the operator learns that there is none.
    pub fn find(
        &self,
        control: &Control,
        request: &ApiRequest,
        now_ms: u64,
        username: &str,
    ) -> Result<(Arc<Account>, Caller), Problem> {
        let account = control.find_account(username);
        let caller = self.admit(request, now_ms, |credentials| {
            // Both are compared always, so that the time does not tell who came close.
            let is_holder = is_holder(credentials, username, account.as_deref());
            let is_admin = self.is_admin(credentials);
            let caller = if is_admin { Caller::Admin } else { Caller::Holder };
            (is_admin | is_holder).then_some(caller)
        })?;
        let not_found = || ControlError::AccountNotFound {
            username: shorten(username),
        };
        Ok((account.ok_or_else(not_found)?, caller))
    }

    /// The account that the path names, for its holder alone: the operator does not spend a holder's money.
    pub fn find_holder(
        &self,
        control: &Control,
        request: &ApiRequest,
        now_ms: u64,
        username: &str,
    ) -> Result<Arc<Account>, Problem> {
        match self.find(control, request, now_ms, username)? {
            (account, Caller::Holder) => Ok(account),
            (_, Caller::Admin) => Err(Problem::unauthorized(
                "only the holder of the account may make this call",
            )),
        }
    }

    fn admit<T>(
        &self,
        request: &ApiRequest,
        now_ms: u64,
        check: impl FnOnce(&Credentials<'_>) -> Option<T>,
    ) -> Result<T, Problem> {
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
        if let Some(admitted) = parse_authorization(value).as_ref().and_then(check) {
            return Ok(admitted);
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
    let token = account.and_then(|account| account.links.http_incoming_token());
    let stored = token.map_or(NO_TOKEN, str::as_bytes);
    // Longer than any name can be: do not fold what a stranger sent.
    let is_short = |name: &str| name.len() <= USERNAME_CHARS.end() * 4 * 3;
    let is_named = |name: &str| is_short(name) && is_short(username) && fold_username(name) == fold_username(username);
    credentials.matches(is_named, |secret| secrets_equal(secret, stored)) & token.is_some()
}
