//! ILP addresses and routing prefixes.
#![no_main]

use clearway_fuzz::wire::address::{ADDRESS_BYTES_MAX, Address, check_prefix, is_known_scheme};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let address = Address::parse(bytes);
    if let Ok(address) = address {
        assert_eq!(address.as_bytes(), bytes);
        assert!(bytes.len() <= ADDRESS_BYTES_MAX);
        assert!(is_known_scheme(address.scheme()));
        assert!(address.segments().all(|segment| !segment.is_empty()));

        // It begins with what stands before each of its dots, and with nothing in between.
        let text = address.as_str();
        for end in 0..=text.len() {
            let on_border = matches!(bytes.get(end), None | Some(b'.')) || end == 0;
            assert_eq!(address.starts_with(&text[..end]), on_border);
        }
        let parts: Vec<&str> = [address.scheme()]
            .into_iter()
            .chain(address.segments())
            .collect();
        assert_eq!(parts.join("."), text);
    }
    if let Ok(text) = str::from_utf8(bytes) {
        let prefix = check_prefix(text);
        if address.is_ok() {
            assert_eq!(prefix, Ok(text), "every address is a prefix");
        }
        if let Ok(prefix) = prefix {
            assert_eq!(
                check_prefix(prefix),
                Ok(prefix),
                "what was normalized stays as it is"
            );
            assert!(text.strip_suffix('.').unwrap_or(text) == prefix);
        }
    }
});
