//! The `Authorization` field in all its dialects, and base64 beneath it.
#![no_main]

use std::cell::Cell;

use clearway_fuzz::wire::base64;
use clearway_fuzz::wire::http::parse_authorization;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = str::from_utf8(bytes)
        && let Some(decoded) = base64::decode(text)
    {
        assert_eq!(base64::decode(&base64::encode(&decoded)), Some(decoded));
    }
    assert_eq!(
        base64::decode(&base64::encode(bytes)).as_deref(),
        Some(bytes)
    );

    let Some(credentials) = parse_authorization(bytes) else {
        return;
    };
    let named = credentials.named_user().map(str::to_owned);
    let bearer = credentials.bearer().map(str::to_owned);
    assert!(named.is_some() || bearer.is_some(), "Basic has a name");

    // Nobody is let in whose secret is not accepted, or is empty; and all secrets are compared, whichever is right.
    assert!(!credentials.matches(|_| true, |_| false));
    assert!(!credentials.matches(|_| true, |secret| secret.is_empty()));
    let asked = |answer: bool| {
        let count = Cell::new(0);
        credentials.matches(
            |_| true,
            |_| {
                count.set(count.get() + 1);
                answer
            },
        );
        count.get()
    };
    assert_eq!(asked(true), asked(false));
    if bearer.is_none() {
        assert!(
            !credentials.matches(|_| false, |_| true),
            "a name that is not the account's"
        );
    }
});
