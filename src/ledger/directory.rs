//! Who is who: user name to account. Every shard has the same copy, and so has the control side.
//!
//! Owns the folding of user names (http-api.md calls it the key: Unicode full case folding of the NFKC form) and the
//! comparison of secrets. The accounts themselves are shared `Arc`s; a copy of the directory costs a pointer and one
//! table slot per account.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use unicode_normalization::UnicodeNormalization;

use super::account::{Account, AccountId, place_in};

/// User names have this many characters after NFKC.
pub const USERNAME_CHARS: std::ops::RangeInclusive<usize> = 2..=32;

/// Why a text is no user name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidUsername {
    #[error("must have 2 to 32 characters")]
    Length,
    #[error("may have letters, marks, decimal digits and connectors such as _ only")]
    Character,
}

/// Checks a user name and gives its NFKC form, which is what is stored and shown.
pub fn normalize_username(text: &str) -> Result<String, InvalidUsername> {
    // Bounded before it is normalized: NFKC can make one character eighteen.
    if text.len() > USERNAME_CHARS.end() * 4 * 3 {
        return Err(InvalidUsername::Length);
    }
    let normalized: String = text.nfkc().collect();
    if !USERNAME_CHARS.contains(&normalized.chars().count()) {
        return Err(InvalidUsername::Length);
    }
    if !normalized.chars().all(is_word_character) {
        return Err(InvalidUsername::Character);
    }
    Ok(normalized)
}

/// `\w` of Unicode's regular expressions: alphabetic, mark, decimal number, connector punctuation, join control.
fn is_word_character(c: char) -> bool {
    c.is_alphanumeric() && !is_other_number(c)
        || unicode_normalization::char::is_combining_mark(c)
        || matches!(
            c,
            '_' | '\u{203F}' | '\u{2040}' | '\u{2054}' | '\u{FE33}' | '\u{FE34}' | '\u{FE4D}'..='\u{FE4F}' | '\u{FF3F}'
        )
        || matches!(c, '\u{200C}' | '\u{200D}')
}

/// Numbers that are no decimal digits, such as ½ and ②: `is_alphanumeric` admits them, `\w` does not.
fn is_other_number(c: char) -> bool {
    !c.is_ascii()
        && c.is_numeric()
        && !c.is_alphabetic()
        // A decimal digit's block begins at its zero: ten in a row, and NFKC leaves them alone.
        && matches!(c, '\u{B2}' | '\u{B3}' | '\u{B9}' | '\u{BC}'..='\u{BE}' | '\u{2070}'..='\u{218F}' | '\u{2460}'..='\u{24FF}' | '\u{2776}'..='\u{2793}' | '\u{3192}'..='\u{3195}' | '\u{3220}'..='\u{32FF}')
}

/// The key under which a user name is found. Names that fold alike are one name.
pub fn fold_username(name: &str) -> Cow<'_, str> {
    if name.is_ascii() {
        // The usual case, and the one on the packet path.
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        }
    } else {
        let normalized: String = name.nfkc().collect();
        Cow::Owned(caseless::default_case_fold_str(&normalized))
    }
}

/// Accounts by number and by name.
#[derive(Clone, Default)]
pub struct Directory {
    accounts: Vec<Option<Arc<Account>>>,
    by_name: HashTable<Named>,
    hasher: RandomState,
    len: usize,
}

/// An account in the table of names. With the hash, so that a table that grows need not look at every account: at a
/// hundred thousand that would hold up a shard for 20 ms.
#[derive(Clone, Copy, Debug)]
struct Named {
    id: AccountId,
    hash: u32,
}

/// What the table is told. It takes the place from the low bits and a tag from the high ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl Directory {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, id: AccountId) -> Option<&Arc<Account>> {
        self.accounts.get(id.index())?.as_ref()
    }

    /// The account whose user name folds to the same key. A name that could not be a user name is simply not found.
    pub fn find(&self, username: &str) -> Option<&Arc<Account>> {
        // Longer than any name can be: do not fold what a stranger sent.
        if username.len() > USERNAME_CHARS.end() * 4 * 3 {
            return None;
        }
        let key = fold_username(username);
        let hash = self.hash_of(&key);
        let named = self
            .by_name
            .find(spread(hash), |named| named.hash == hash && self.has_key(named.id, &key))?;
        self.get(named.id)
    }

    fn hash_of(&self, key: &str) -> u32 {
        (self.hasher.hash_one(key) >> 32) as u32
    }

    /// Every account, by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.accounts.iter().flatten()
    }

    /// Adds an account or replaces the one with its id. The name must not belong to another id.
    pub fn insert(&mut self, account: Arc<Account>) {
        let id = account.id;
        self.remove(id);
        let key = fold_username(&account.username).into_owned();
        assert!(self.find(&key).is_none(), "a user name belongs to one account");
        *place_in(&mut self.accounts, id.index()) = Some(account);
        self.len += 1;
        let hash = self.hash_of(&key);
        self.by_name
            .insert_unique(spread(hash), Named { id, hash }, |named| spread(named.hash));
    }

    pub fn remove(&mut self, id: AccountId) -> Option<Arc<Account>> {
        let account = self.accounts.get(id.index())?.clone()?;
        let key = fold_username(&account.username);
        let entry = self
            .by_name
            .find_entry(spread(self.hash_of(&key)), |named| named.id == id);
        entry.expect("an account that exists has a name").remove();
        self.accounts[id.index()] = None;
        self.len -= 1;
        drop(key);
        Some(account)
    }

    fn has_key(&self, id: AccountId, key: &str) -> bool {
        self.get(id)
            .is_some_and(|account| fold_username(&account.username) == key)
    }
}

/// Whether two secrets are equal, in a time that depends on their lengths only.
pub fn secrets_equal(one: &[u8], other: &[u8]) -> bool {
    // Comparing digests hides the position of the first difference and where the lengths differ; the digest of the
    // stored secret is cheap enough to make each time, because a connection authenticates once.
    let digest = |bytes| ring::digest::digest(&ring::digest::SHA256, bytes);
    let (one, other) = (digest(one), digest(other));
    one.as_ref()
        .iter()
        .zip(other.as_ref())
        .fold(0, |differs, (a, b)| differs | (a ^ b))
        == 0
}

#[cfg(test)]
mod tests {
    use super::super::account::*;
    use super::*;

    fn account(id: u32, username: &str) -> Arc<Account> {
        Arc::new(Account {
            id: AccountId::new(id),
            uuid: [0; 16],
            username: username.into(),
            ilp_address: "test.x".into(),
            ilp_address_generated: true,
            asset: Arc::new(Asset {
                code: "ABC".into(),
                scale: 9,
            }),
            asset_id: AssetId::new(0),
            routing_relation: RoutingRelation::default(),
            limits: OrDefault::default(),
            round_trip_time_ms: ROUND_TRIP_TIME_MS_DEFAULT,
            settlement: OrDefault::default(),
            links: PackedLinks::default(),
            created_at_ms: 0,
        })
    }

    #[test]
    fn names_are_found_by_their_folded_form() {
        let mut directory = Directory::new();
        directory.insert(account(0, "Alice"));
        directory.insert(account(7, "Maße"));
        for (name, id) in [
            ("alice", Some(0)),
            ("ALICE", Some(0)),
            ("MASSE", Some(7)),
            ("maße", Some(7)),
            ("bob", None),
            ("", None),
            (&"a".repeat(10_000), None),
        ] {
            assert_eq!(directory.find(name).map(|account| account.id.get()), id, "{name:.20}");
        }
        assert_eq!(directory.len(), 2);
        directory.remove(AccountId::new(0));
        assert!(directory.find("alice").is_none());
        directory.insert(account(8, "alicE"));
        assert_eq!(directory.find("Alice").unwrap().id.get(), 8);
        directory.insert(account(8, "other"));
        assert!(
            directory.find("alice").is_none(),
            "a renamed account is not found under its old name"
        );
    }

    #[test]
    fn user_names() {
        for (name, valid) in [
            ("alice", true),
            ("al", true),
            ("a", false),
            ("", false),
            (&"x".repeat(32), true),
            (&"x".repeat(33), false),
            ("hub_two", true),
            ("hub-two", false),
            ("hub.two", false),
            ("hub two", false),
            ("hub:two", false),
            ("Zoë", true),
            ("日本", true),
            ("a\u{0}b", false),
            ("½½", false),
            ("٣٤", true),
        ] {
            assert_eq!(normalize_username(name).is_ok(), valid, "{name:?}");
        }
        assert_eq!(normalize_username("ﬁx").unwrap(), "fix", "NFKC");
    }

    #[test]
    fn secrets() {
        for (one, other, equal) in [("a", "a", true), ("a", "b", false), ("", "", true), ("a", "ab", false)] {
            assert_eq!(secrets_equal(one.as_bytes(), other.as_bytes()), equal);
        }
    }
}
