//! BTP frames.
#![no_main]

use clearway_fuzz::wire::btp::{Entry, Frame, FrameKind, write_entries};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = Frame::parse(bytes) else {
        return;
    };
    let entries: Vec<Entry<'_>> = frame.entries().collect();
    let first_ilp = entries.iter().find(|entry| entry.name == b"ilp");
    assert_eq!(frame.ilp(), first_ilp.map(|entry| entry.data));
    assert_eq!(frame.entry("ilp"), frame.ilp());
    assert_eq!(frame.ilp_range().map(|range| &bytes[range]), frame.ilp());
    assert_eq!(frame.error().is_some(), frame.kind() == FrameKind::Error);
    assert_eq!(
        frame.amount().is_some(),
        frame.kind() == FrameKind::Transfer
    );

    // Written again, without what only newer versions know, it says the same.
    if matches!(frame.kind(), FrameKind::Message | FrameKind::Response) {
        let mut written = Vec::new();
        write_entries(&mut written, frame.kind(), frame.request_id(), &entries);
        let again = Frame::parse(&written).expect("we read what we write");
        assert_eq!(again.kind(), frame.kind());
        assert_eq!(again.request_id(), frame.request_id());
        assert!(again.entries().eq(entries));
    }
});
