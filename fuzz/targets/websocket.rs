//! WebSocket frames, close payloads, and the server's answer to our handshake.
#![no_main]

use clearway_fuzz::wire::websocket::{
    ClientHandshake, is_valid_key, parse_close, parse_head, unmask, write_head,
};
use clearway_fuzz::{check_incremental, cut};
use libfuzzer_sys::fuzz_target;

/// As large as an ILP packet with its frames may be.
const PAYLOAD_BYTES_MAX: usize = 65_536;

fuzz_target!(|bytes: &[u8]| {
    check_incremental(bytes, |bytes| {
        parse_head(bytes, PAYLOAD_BYTES_MAX).map(|head| head.map(|head| head.head_len))
    });
    if let Ok(Some(head)) = parse_head(bytes, PAYLOAD_BYTES_MAX) {
        assert!(head.payload_len <= PAYLOAD_BYTES_MAX);
        assert!(head.fin || !head.opcode.is_control());
        if head.fin {
            let mut written = Vec::new();
            write_head(&mut written, head.opcode, head.payload_len, head.mask);
            assert_eq!(
                written,
                bytes[..head.head_len],
                "there is one way to write a head"
            );
        }
        if let Some(key) = head.mask {
            check_mask(&bytes[head.head_len..], key);
        }
    }
    if let Ok(Some(code)) = parse_close(bytes) {
        assert_eq!(bytes[..2], code.to_be_bytes());
    }
    if let Ok(text) = str::from_utf8(bytes) {
        is_valid_key(text);
    }

    // A handshake ends the same way in one piece and in two.
    let mut whole = ClientHandshake::new([0; 16]);
    let mut parts = ClientHandshake::new([0; 16]);
    let at = cut(bytes);
    let early = parts.check_response(&bytes[..at]);
    let verdict = whole.check_response(bytes).map_err(|_| ());
    match early {
        Ok(None) => assert_eq!(parts.check_response(bytes).map_err(|_| ()), verdict),
        Ok(Some(length)) => assert_eq!(verdict, Ok(Some(length))),
        Err(_) => assert!(verdict.is_err()),
    }
});

fn check_mask(payload: &[u8], key: [u8; 4]) {
    let mut fast = payload.to_vec();
    unmask(&mut fast, key);
    let plain = payload.iter().zip(key.iter().cycle());
    assert!(plain.map(|(byte, key)| byte ^ key).eq(fast));
}
