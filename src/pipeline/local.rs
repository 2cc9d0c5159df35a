//! Destinations that end here: the node's own address (echo) and the `peer.` addresses.
//!
//! The `peer.` services themselves (ILDCP, CCP, settlement messages) are not served yet; what matters to the packet
//! path is that none of these addresses is ever forwarded (protocols.md 3.4).

use crate::wire::address::Address;
use crate::wire::oer::Reader;
use crate::wire::packet::{Prepare, PrepareBuilder};

use super::reject::RejectReason;

/// Characters of the segment that the addresses which our own accounts hand out to payers end in.
pub const TOKEN_CHARS: usize = 24;

/// Whether an address may be one that an account of ours has handed out. Most are not, and nobody else has to look.
pub fn ends_in_token(destination: &str) -> bool {
    let last = destination.len().checked_sub(TOKEN_CHARS + 1);
    last.is_some_and(|last| destination.as_bytes()[last] == b'.')
        && !destination.as_bytes()[destination.len() - TOKEN_CHARS..].contains(&b'.')
}

/// The first bytes of an echo request's data (protocols.md 4.8; in no RFC, but every connector answers it).
const ECHO_PREFIX: &[u8; 16] = b"ECHOECHOECHOECHO";
const ECHO_REQUEST: u8 = 0;
const ECHO_RESPONSE: u8 = 1;

/// A Prepare to the node's own address that asks for an echo: the same money, back to the address in its data.
pub fn is_echo(prepare: &Prepare<'_>) -> bool {
    prepare.data().starts_with(ECHO_PREFIX)
}

/// The Prepare that answers an echo request, to be routed as if it had come from the same account.
pub fn echo(prepare: &Prepare<'_>) -> Result<Vec<u8>, RejectReason> {
    let mut request = Reader::new(&prepare.data()[ECHO_PREFIX.len()..]);
    if request.read_u8() != Ok(ECHO_REQUEST) {
        return Err(RejectReason::InvalidServiceRequest);
    }
    let source = request
        .read_var_octets()
        .map_err(|_| RejectReason::InvalidServiceRequest)?;
    let source = Address::parse(source).map_err(|_| RejectReason::InvalidServiceRequest)?;
    let mut data = ECHO_PREFIX.to_vec();
    data.push(ECHO_RESPONSE);
    let mut packet = Vec::new();
    PrepareBuilder {
        amount: prepare.amount(),
        expires_at: prepare.expires_at(),
        execution_condition: prepare.condition(),
        destination: source,
        data: &data,
    }
    .encode(&mut packet);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::PEER_CONDITION;
    use crate::wire::timestamp::Timestamp;

    fn prepare(data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PrepareBuilder {
            amount: 7,
            expires_at: Timestamp::from_millis(1_900_000_000_000),
            execution_condition: &PEER_CONDITION,
            destination: Address::parse(b"test.acme").unwrap(),
            data,
        }
        .encode(&mut packet);
        packet
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn addresses_of_payers() {
        let token = "AAECAwQFBgcICQoLDA0ODxAR";
        for (destination, may_be) in [
            (format!("g.alice.{token}"), true),
            (format!("g.{token}"), true),
            (format!("g.alice.{token}x"), false),
            (format!("g.alice.{}", &token[1..]), false),
            (format!("g.alice.{}.{}", &token[..11], &token[12..]), false),
            (format!("g.alice{token}"), false),
            (token.to_owned(), false),
            ("g".to_owned(), false),
        ] {
            assert_eq!(ends_in_token(&destination), may_be, "{destination}");
        }
    }

    #[test]
    fn an_echo_goes_back_with_the_same_money() {
        let request = prepare(&bytes(
            "4543484f4543484f4543484f4543484f0010746573742e61636d652e636c69656e74",
        ));
        let request = Prepare::parse(&request).unwrap();
        assert!(is_echo(&request));
        let answer = echo(&request).unwrap();
        let answer = Prepare::parse(&answer).unwrap();
        assert_eq!(answer.data(), bytes("4543484f4543484f4543484f4543484f01"));
        assert_eq!(answer.destination().as_str(), "test.acme.client");
        assert_eq!((answer.amount(), answer.expires_at()), (7, request.expires_at()));
        assert_eq!(answer.condition(), request.condition());
    }

    #[test]
    fn what_is_no_echo_request_is_refused() {
        for data in [
            "",
            "00",
            "0000",
            "0005746573",
            "01",
            "0210746573742e61636d652e636c69656e74",
            "00056120622063",
        ] {
            let data = [ECHO_PREFIX.to_vec(), bytes(data)].concat();
            let packet = prepare(&data);
            let refused = echo(&Prepare::parse(&packet).unwrap());
            assert_eq!(refused.err(), Some(RejectReason::InvalidServiceRequest), "{data:?}");
        }
        assert!(!is_echo(&Prepare::parse(&prepare(b"ECHOECHOECHOECH")).unwrap()));
    }
}
