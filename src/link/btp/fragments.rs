//! Messages that come in several WebSocket frames (RFC 6455, section 5.4). BTP peers send none,
//! their libraries may.
//!
//! Owns the order of fragments and the memory they wait in. Leaves to the caller the control frames
//! between them, and every message that comes whole: those never pass here.
//! Always: no more bytes wait than the session allows, and none once the message is over.

use crate::wire::websocket::{CloseCode, FrameHead, Opcode};

/// The message in progress, if there is one.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    progress: Progress,
    /// Bytes of the message so far; those of a text are counted and dropped.
    len: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Progress {
    #[default]
    Idle,
    Binary,
    /// Ignored as a whole, so nobody looks whether it is UTF-8.
    Text,
    /// The event in the caller's hands borrows `bytes`.
    Complete,
}

impl Reassembly {
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.progress == Progress::Idle
    }

    /// Gives a message's memory back when its event is over.
    #[inline]
    pub(super) fn release(&mut self) {
        if self.progress == Progress::Complete {
            *self = Self::default();
        }
    }

    /// Memory that waits for the rest of a message.
    #[cfg(test)]
    pub(super) fn bytes_held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Takes a data frame; returns the binary message it completes. `Err`: the frame is out of
    /// order, or the message is longer than `message_bytes_max`.
    #[cold]
    pub(super) fn add(
        &mut self,
        head: &FrameHead,
        payload: &[u8],
        message_bytes_max: usize,
    ) -> Result<Option<&mut [u8]>, CloseCode> {
        self.progress = match (head.opcode, self.progress) {
            (Opcode::Binary, Progress::Idle) => Progress::Binary,
            (Opcode::Text, Progress::Idle) => Progress::Text,
            (Opcode::Continuation, Progress::Binary | Progress::Text) => self.progress,
            // A continuation of nothing, or a message within a message.
            _ => return Err(CloseCode::ProtocolError),
        };
        self.len += payload.len();
        if self.len > message_bytes_max {
            return Err(CloseCode::MessageTooBig);
        }
        if self.progress == Progress::Binary {
            self.bytes.extend_from_slice(payload);
        }
        if !head.fin {
            return Ok(None);
        }
        if self.progress == Progress::Text {
            *self = Self::default();
            return Ok(None);
        }
        self.progress = Progress::Complete;
        Ok(Some(&mut self.bytes))
    }
}
