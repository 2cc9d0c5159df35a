//! Request heads of HTTP/1.1. Whatever we accept, httparse accepts too, and reads the same.
#![no_main]

use clearway_fuzz::check_incremental;
use clearway_fuzz::wire::http::{Framing, HEADERS_MAX, parse_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check_incremental(bytes, |bytes| {
        parse_request(bytes).map(|head| head.map(|(_, length)| length))
    });
    let Ok(Some((head, length))) = parse_request(bytes) else {
        return;
    };

    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut oracle = httparse::Request::new(&mut headers);
    assert_eq!(oracle.parse(bytes), Ok(httparse::Status::Complete(length)));
    assert_eq!(oracle.method, Some(head.method_text));
    assert_eq!(oracle.path, Some(head.target));
    assert_eq!(oracle.version, Some(head.version_minor));
    let fields = oracle.headers.iter();
    assert!(
        head.fields()
            .iter()
            .eq(fields.map(|field| (field.name.as_bytes(), field.value)))
    );

    // Every question has an answer, and the answers do not contradict each other.
    assert!(head.path().starts_with('/') || head.path() == "*");
    assert!(head.host().is_some() || head.version_minor == 0);
    let (lengths, codings) = (
        head.headers("content-length").count(),
        head.headers("transfer-encoding").count(),
    );
    match head.framing() {
        Framing::None => assert_eq!((lengths, codings), (0, 0)),
        Framing::Length(_) => assert!(lengths > 0 && codings == 0),
        Framing::Chunked => assert_eq!((lengths, codings, head.version_minor), (0, 1, 1)),
        Framing::UntilClose => panic!("a request has an end"),
    }
    head.query();
    head.keep_alive();
    assert!(!(head.expects_continue() && head.version_minor == 0));
    head.expects_unknown();
    if let Some(upgrade) = head.upgrade_websocket() {
        assert!(upgrade.subprotocols().all(|name| upgrade.offers(name)));
    }
});
