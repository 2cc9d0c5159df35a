//! Requests between neighbours, their data, and the answers to them: IL-DCP and CCP.
#![no_main]

use clearway_fuzz::wire::ccp::{Control, Update};
use clearway_fuzz::wire::ildcp::Answer;
use clearway_fuzz::wire::packet::{PEER_CONDITION, Prepare, Reply};
use clearway_fuzz::wire::peer::{SETTLE_DESTINATION, Service, check_request, encode_request};
use clearway_fuzz::wire::timestamp::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(prepare) = Prepare::parse(bytes) {
        check_prepare(prepare);
    }
    if let Ok(Reply::Fulfill(fulfill)) = Reply::parse(bytes) {
        let _ = Answer::parse(&fulfill);
    }
    // The data alone, so that it is found without the envelope.
    check_data(bytes);
});

fn check_prepare(prepare: Prepare<'_>) {
    let expires_at = prepare.expires_at();
    let now = Timestamp::from_millis(expires_at.as_millis().saturating_sub(1));
    if check_request(&prepare, now).is_ok() {
        assert_eq!(prepare.amount(), 0);
        let destination = prepare.destination();
        assert!(*prepare.condition() == PEER_CONDITION || destination == SETTLE_DESTINATION);
        assert!(check_request(&prepare, expires_at).is_err(), "it has expired then");
        if Service::at(destination).is_some() {
            assert_eq!(destination.scheme(), "peer");
        }
        let mut written = Vec::new();
        encode_request(&mut written, now, destination, prepare.data());
        let again = Prepare::parse(&written).expect("we read what we write");
        assert_eq!((again.destination(), again.data()), (destination, prepare.data()));
        assert!(check_request(&again, now).is_ok());
    }
    check_data(prepare.data());
}

fn check_data(data: &[u8]) {
    if let Ok(control) = Control::parse(data) {
        let mut written = Vec::new();
        control.encode_data(&mut written);
        assert_eq!(Control::parse(&written), Ok(control));
    }
    if let Ok(update) = Update::parse(data) {
        assert!(update.head.from_epoch <= update.head.to_epoch);
        assert_eq!(update.new_routes.iter().count(), update.new_routes.len());
        assert_eq!(update.withdrawn.iter().count(), update.withdrawn.len());
        for route in update.new_routes.iter() {
            assert_eq!(route.path.iter().count(), route.path.len());
            assert_eq!(route.props.iter().count(), route.props.len());
        }
    }
    if let Ok(answer) = Answer::parse_data(data) {
        let mut written = Vec::new();
        answer.encode(&mut written);
        let Ok(Reply::Fulfill(fulfill)) = Reply::parse(&written) else {
            panic!("we read what we write");
        };
        assert_eq!(Answer::parse(&fulfill), Ok(answer));
    }
}
