//! HTTP/1.1 messages (RFC 9112, RFC 9110): heads, bodies, credentials, and what we write.
//!
//! Owns the bytes of one message. Knows nothing of connections (`link::http`), of paths and JSON
//! (`api`) or of sockets. HTTP/2 is not here.
//!
//! What holds for every parser here:
//! - **"Not yet" is not "wrong".** `Ok(None)` means that more bytes may make it whole; an error means
//!   that no further byte can mend it and that the connection must close.
//! - **No allocation** for a head: everything borrows from the received bytes. A decoded body grows
//!   with the bytes that did arrive, never by a length that was merely announced.
//! - **One reading.** Wherever two implementations are known to disagree about where a message ends
//!   (request smuggling, RFC 9112 section 11.2), the message is refused, also where the RFC would let
//!   us mend it. Whatever we accept, any other parser reads the same way.
//! - No panic, whatever the bytes.

pub mod authorization;
pub mod body;
pub mod fields;
pub mod head;
pub mod malformed;
pub mod percent;
pub mod write;

pub use authorization::{Credentials, parse_authorization};
pub use body::{BodyError, ChunkedDecoder};
pub use fields::{Fields, HEADERS_MAX};
pub use head::{
    Framing, HEAD_BYTES_MAX, Method, RequestHead, ResponseHead, WebSocketUpgrade, parse_request, parse_response,
};
pub use malformed::Malformed;
