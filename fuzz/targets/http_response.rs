//! Response heads of HTTP/1.1. Whatever we accept, httparse accepts too, and reads the same.
#![no_main]

use clearway_fuzz::check_incremental;
use clearway_fuzz::wire::http::{Framing, HEADERS_MAX, parse_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check_incremental(bytes, |bytes| {
        parse_response(bytes).map(|head| head.map(|(_, length)| length))
    });
    let Ok(Some((head, length))) = parse_response(bytes) else {
        return;
    };

    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut oracle = httparse::Response::new(&mut headers);
    assert_eq!(oracle.parse(bytes), Ok(httparse::Status::Complete(length)));
    assert_eq!(oracle.code, Some(head.status));
    assert_eq!(oracle.version, Some(head.version_minor));
    let fields = oracle.headers.iter();
    assert!(
        head.fields()
            .iter()
            .eq(fields.map(|field| (field.name.as_bytes(), field.value)))
    );

    let body_ends_with_connection = head.framing() == Framing::UntilClose;
    assert!(!(head.keep_alive() && body_ends_with_connection));
});
