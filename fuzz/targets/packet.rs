//! ILP packets: reading them from any bytes, writing them again, and patching a Prepare in place.
#![no_main]

use clearway_fuzz::cut;
use clearway_fuzz::wire::packet::{
    Fulfill, PacketType, Prepare, PrepareBuilder, Reject, Reply, encode_fulfill, packet_type,
    patch_prepare,
};
use clearway_fuzz::wire::timestamp::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(prepare) = Prepare::parse(bytes) {
        check_prepare(bytes, prepare);
    }
    match Reply::parse(bytes) {
        Ok(Reply::Fulfill(fulfill)) => check_fulfill(bytes, fulfill),
        Ok(Reply::Reject(reject)) => check_reject(bytes, reject),
        Err(_) => {}
    }
});

fn check_prepare(bytes: &[u8], prepare: Prepare<'_>) {
    assert_eq!(packet_type(bytes), Some(PacketType::Prepare));
    assert!(bytes.starts_with(prepare.bytes()));
    let part = &prepare.bytes()[..cut(bytes).min(prepare.bytes().len() - 1)];
    assert!(Prepare::parse(part).is_err(), "a part is no packet");

    // Written again, without what only newer versions know, it says the same.
    let mut written = Vec::new();
    PrepareBuilder {
        amount: prepare.amount(),
        expires_at: prepare.expires_at(),
        execution_condition: prepare.condition(),
        destination: prepare.destination(),
        data: prepare.data(),
    }
    .encode(&mut written);
    let again = Prepare::parse(&written).expect("we read what we write");
    assert_eq!(again.amount(), prepare.amount());
    assert_eq!(again.expires_at(), prepare.expires_at());
    assert_eq!(again.condition(), prepare.condition());
    assert_eq!(again.destination(), prepare.destination());
    assert_eq!(again.data(), prepare.data());
    assert_eq!(again.bytes().len(), written.len());

    // Patched, it differs in amount and expiry and in nothing else.
    let mut patched = prepare.bytes().to_vec();
    let expires_at = Timestamp::from_millis(prepare.expires_at().as_millis() / 2);
    patch_prepare(&mut patched, !prepare.amount(), expires_at);
    let forwarded = Prepare::parse(&patched).expect("a patched Prepare is a Prepare");
    assert_eq!(forwarded.amount(), !prepare.amount());
    assert_eq!(forwarded.expires_at(), expires_at);
    assert_eq!(forwarded.condition(), prepare.condition());
    assert_eq!(forwarded.destination(), prepare.destination());
    assert_eq!(forwarded.data(), prepare.data());
    assert_eq!(forwarded.bytes().len(), prepare.bytes().len());
}

fn check_fulfill(bytes: &[u8], fulfill: Fulfill<'_>) {
    assert_eq!(packet_type(bytes), Some(PacketType::Fulfill));
    assert!(bytes.starts_with(fulfill.bytes()));
    let part = &fulfill.bytes()[..cut(bytes).min(fulfill.bytes().len() - 1)];
    assert!(Reply::parse(part).is_err(), "a part is no packet");

    let mut written = Vec::new();
    encode_fulfill(&mut written, fulfill.fulfillment(), fulfill.data());
    let again = Fulfill::parse(&written).expect("we read what we write");
    assert_eq!(again.fulfillment(), fulfill.fulfillment());
    assert_eq!(again.data(), fulfill.data());
}

fn check_reject(bytes: &[u8], reject: Reject<'_>) {
    assert_eq!(packet_type(bytes), Some(PacketType::Reject));
    assert!(bytes.starts_with(reject.bytes()));
    assert!(reject.code().as_str().is_ascii());
    let part = &reject.bytes()[..cut(bytes).min(reject.bytes().len() - 1)];
    assert!(Reply::parse(part).is_err(), "a part is no packet");
}
