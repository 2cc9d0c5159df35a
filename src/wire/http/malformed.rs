//! What can be wrong with a head, and the answer it gets.
//!
//! Owns the names of the faults, their status (RFC 9110 section 15) and their wording. They are found
//! in [`super::fields`] and [`super::head`]; `link::http` adds those of bodies.

/// What is wrong with a head. Every one of them ends the connection: we no longer know where the
/// next message begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.detail())]
pub enum Malformed {
    /// Not `method SP target SP version`, or a target in a form the method does not allow.
    BadRequestLine,
    /// Not `version SP status [SP reason]`.
    BadStatusLine,
    /// HTTP, but neither 1.0 nor 1.1.
    UnsupportedVersion,
    /// A line that ends without CR.
    BareLf,
    /// A CR that does not end a line.
    BareCr,
    /// A line that begins with a blank (RFC 9112 section 5.2).
    ObsFold,
    /// No colon, a name that is no token, a blank before the colon, a control character in the value.
    BadHeader,
    /// More than [`super::HEADERS_MAX`] field lines.
    TooManyHeaders,
    /// Longer than [`super::HEAD_BYTES_MAX`].
    HeadTooLong,
    /// HTTP/1.1 without Host.
    MissingHost,
    /// Host twice: two readers may each believe another one.
    TwoHosts,
    /// Host is not `host[:port]`.
    BadHost,
    /// Content-Length is not a number of 64 bits.
    BadContentLength,
    /// More than one Content-Length, equal or not.
    RepeatedLength,
    /// Both Content-Length and Transfer-Encoding.
    BothLengths,
    /// Transfer-Encoding ends with `chunked`, as it must, but names something before it.
    UnknownTransferCoding,
    /// Transfer-Encoding does not end with `chunked`, or names it twice: nobody knows where the body ends.
    BadTransferEncoding,
    /// Transfer-Encoding in HTTP/1.0, which knows none.
    CodedOldVersion,
}

impl Malformed {
    /// The status of the answer to a request with this fault.
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooLong | Self::TooManyHeaders => 431,
            Self::UnknownTransferCoding => 501,
            Self::UnsupportedVersion => 505,
            _ => 400,
        }
    }

    /// One line for the answer and the log; it quotes nothing of what was received.
    pub fn detail(self) -> &'static str {
        match self {
            Self::BadRequestLine => "malformed request line",
            Self::BadStatusLine => "malformed status line",
            Self::UnsupportedVersion => "HTTP version is neither 1.0 nor 1.1",
            Self::BareLf => "line ends in LF without CR",
            Self::BareCr => "CR without LF",
            Self::ObsFold => "header line begins with a blank",
            Self::BadHeader => "malformed header line",
            Self::TooManyHeaders => "too many header lines",
            Self::HeadTooLong => "head too long",
            Self::MissingHost => "Host header missing",
            Self::TwoHosts => "more than one Host header",
            Self::BadHost => "malformed Host header",
            Self::BadContentLength => "malformed Content-Length",
            Self::RepeatedLength => "more than one Content-Length",
            Self::BothLengths => "both Content-Length and Transfer-Encoding",
            Self::UnknownTransferCoding => "transfer coding other than chunked",
            Self::BadTransferEncoding => "the transfer coding chunked must be the last one, once",
            Self::CodedOldVersion => "Transfer-Encoding in HTTP/1.0",
        }
    }
}
