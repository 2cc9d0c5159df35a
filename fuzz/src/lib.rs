//! What the fuzz targets share: the wire formats themselves, and where to cut a message in two.
//!
//! A target feeds one parser with anything at all. It must not panic, and what it accepts must hold what its
//! documentation promises; each target says what that is. The targets are in `targets/`, first inputs in `seeds/`.

#[path = "../../src/wire/mod.rs"]
pub mod wire;

/// A place in `bytes` to cut them in two, as the network may. It depends on nothing but the bytes, so a failure can be
/// repeated, and moves to any place as they change.
pub fn cut(bytes: &[u8]) -> usize {
    // FNV-1a. Every input is its own seed.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % (bytes.len() as u64 + 1)) as usize
}

/// Checks a parser of messages whose end is found in the bytes: it says "not yet" to every part of a message, takes the
/// message for whole as soon as it is, whatever follows, and keeps to its refusals.
///
/// `parse` returns the length of the message.
pub fn check_incremental<E: std::fmt::Debug>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<Option<usize>, E>,
) {
    let at = cut(bytes);
    match (parse(bytes), parse(&bytes[..at])) {
        (Ok(Some(length)), part) => {
            assert!(0 < length && length <= bytes.len());
            match part {
                Ok(None) => assert!(at < length, "all of it is there"),
                Ok(Some(same)) => assert!(same == length && at >= length),
                Err(error) => panic!("{at} bytes of a good message are refused: {error:?}"),
            }
            assert_eq!(parse(&bytes[..length]).ok().flatten(), Some(length));
            assert_eq!(parse(&bytes[..length - 1]).ok(), Some(None));
        }
        (Ok(None), Ok(None)) => {}
        (Ok(None), part) => panic!("{at} bytes are {part:?}, and more are not enough"),
        (Err(_), Ok(Some(length))) => panic!("{length} bytes are whole, and more are refused"),
        (Err(_), Ok(None) | Err(_)) => {}
    }
}
