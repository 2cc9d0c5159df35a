//! The codes of a Reject (RFC 27): three characters that tell a program why, the first of which tells
//! what to make of it.
//!
//! Owns the codes that RFC 27 names and what may stand in a packet. Leaves to the pipeline which code
//! is due, and to [`super::packet`] where it stands.
//! Always: a code is ASCII, and no code of a peer's choosing can end a line of a log.

use std::fmt;

/// Why a Prepare was refused: three characters of ASCII, the first of which is the class.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode([u8; ErrorCode::BYTES]);

/// What a sender may make of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// F: the same packet will be refused again.
    Final,
    /// T: the same packet may pass later.
    Temporary,
    /// R: the packet may pass with more time or another amount.
    Relative,
    /// A class that RFC 27 does not know.
    Unknown,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $constant:ident = $code:literal, $name:literal;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $constant: Self = Self(*$code);)*

            /// The name that RFC 27 gives the code; "Unknown Error" if it gives none.
            pub const fn name(self) -> &'static str {
                match &self.0 {
                    $($code => $name,)*
                    _ => "Unknown Error",
                }
            }
        }
    };
}

error_codes! {
    /// A sender's fault without a code of its own; a peer protocol that was refused.
    F00_BAD_REQUEST = b"F00", "Bad Request";
    /// The packet, or what a peer protocol put into it, is malformed.
    F01_INVALID_PACKET = b"F01", "Invalid Packet";
    /// No route leads there.
    F02_UNREACHABLE = b"F02", "Unreachable";
    /// The amount cannot be expressed in the asset.
    F03_INVALID_AMOUNT = b"F03", "Invalid Amount";
    /// The receiver expected more. Receivers only.
    F04_INSUFFICIENT_DESTINATION_AMOUNT = b"F04", "Insufficient Destination Amount";
    /// The next hop returned a fulfillment of another condition.
    F05_WRONG_CONDITION = b"F05", "Wrong Condition";
    /// The receiver did not expect this. Receivers only.
    F06_UNEXPECTED_PAYMENT = b"F06", "Unexpected Payment";
    /// The receiver cannot take it. Receivers only.
    F07_CANNOT_RECEIVE = b"F07", "Cannot Receive";
    /// More than an account may send in one packet; see
    /// [`amount_too_large_data`](super::packet::amount_too_large_data).
    F08_AMOUNT_TOO_LARGE = b"F08", "Amount Too Large";
    /// Not in RFC 27, but sent by a widely used node in place of F05. Never sent by us.
    F09_INVALID_PEER_RESPONSE = b"F09", "Invalid Peer Response";
    /// For the application to interpret.
    F99_APPLICATION_ERROR = b"F99", "Application Error";
    /// A fault of our own, or a next hop that answered with something unreadable.
    T00_INTERNAL_ERROR = b"T00", "Internal Error";
    /// There is a route, but the link to the next hop is down.
    T01_PEER_UNREACHABLE = b"T01", "Peer Unreachable";
    /// The next hop said at its link that it has too much to do.
    T02_PEER_BUSY = b"T02", "Peer Busy";
    /// We have too much to do.
    T03_CONNECTOR_BUSY = b"T03", "Connector Busy";
    /// A limit of balance, of credit, or of the amount per time.
    T04_INSUFFICIENT_LIQUIDITY = b"T04", "Insufficient Liquidity";
    /// A limit of packets per time.
    T05_RATE_LIMITED = b"T05", "Rate Limited";
    /// For the application to interpret.
    T99_APPLICATION_ERROR = b"T99", "Application Error";
    /// No answer came before the expiry.
    R00_TRANSFER_TIMED_OUT = b"R00", "Transfer Timed Out";
    /// A positive amount would have become zero.
    R01_INSUFFICIENT_SOURCE_AMOUNT = b"R01", "Insufficient Source Amount";
    /// Too little time is left to forward it.
    R02_INSUFFICIENT_TIMEOUT = b"R02", "Insufficient Timeout";
    /// For the application to interpret.
    R99_APPLICATION_ERROR = b"R99", "Application Error";
}

impl ErrorCode {
    /// The length of every code.
    pub const BYTES: usize = 3;

    /// `None` unless all three are ASCII. Codes without a name are accepted: others may know them.
    #[inline]
    pub const fn new(bytes: [u8; Self::BYTES]) -> Option<Self> {
        if bytes.is_ascii() { Some(Self(bytes)) } else { None }
    }

    /// The code as it stands in a packet.
    #[inline]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The code as it is, control characters and all; `{}` writes those as escapes.
    pub fn as_str(&self) -> &str {
        // Never the replacement: a code is ASCII.
        str::from_utf8(&self.0).unwrap_or("???")
    }

    /// What the first character says.
    #[inline]
    pub const fn class(self) -> ErrorClass {
        match self.0[0] {
            b'F' => ErrorClass::Final,
            b'T' => ErrorClass::Temporary,
            b'R' => ErrorClass::Relative,
            _ => ErrorClass::Unknown,
        }
    }
}

impl fmt::Display for ErrorCode {
    // Peers choose it, and it ends up in logs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(formatter)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_classes_and_names() {
        let cases = [
            ("F02", ErrorClass::Final, "Unreachable"),
            ("F08", ErrorClass::Final, "Amount Too Large"),
            ("T03", ErrorClass::Temporary, "Connector Busy"),
            ("R02", ErrorClass::Relative, "Insufficient Timeout"),
            ("F77", ErrorClass::Final, "Unknown Error"),
            ("X00", ErrorClass::Unknown, "Unknown Error"),
        ];
        for (text, class, name) in cases {
            let code = ErrorCode::new(*text.as_bytes().first_chunk().unwrap()).unwrap();
            assert_eq!((code.as_str(), code.class(), code.name()), (text, class, name));
        }
        assert_eq!(ErrorCode::new(*b"F0\xb0"), None);
        assert_eq!(ErrorCode::new(*b"F\n0").unwrap().to_string(), "F\\n0");
    }
}
