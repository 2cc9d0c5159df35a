//! Chunked bodies: decoded in one piece and in two, with a limit.
#![no_main]

use clearway_fuzz::cut;
use clearway_fuzz::wire::http::ChunkedDecoder;
use libfuzzer_sys::fuzz_target;

/// Small, so that inputs reach it.
const BODY_BYTES_MAX: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let (first, second) = bytes.split_at(cut(bytes));
    let whole = decode(&[bytes]);
    assert_eq!(
        whole,
        decode(&[first, second]),
        "it does not matter how it arrived"
    );
    if let Some((body, used, _)) = whole {
        assert!(body.len() <= BODY_BYTES_MAX, "the limit holds");
        assert!(body.len() <= used && used <= bytes.len());
    }
});

/// The body as far as it came, how many bytes of the input were used up, and whether it is complete; or none if it was
/// refused.
fn decode(parts: &[&[u8]]) -> Option<(Vec<u8>, usize, bool)> {
    let mut decoder = ChunkedDecoder::new();
    let (mut body, mut used, mut complete) = (Vec::new(), 0, false);
    for part in parts {
        if complete {
            break;
        }
        let (consumed, done) = decoder.decode(part, &mut body, BODY_BYTES_MAX).ok()?;
        assert!(
            done || consumed == part.len(),
            "until the end everything is used up"
        );
        used += consumed;
        complete = done;
    }
    Some((body, used, complete))
}
