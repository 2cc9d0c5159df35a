//! What a peer of these tests does with a Prepare: the same words for peers over HTTP and over BTP.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::packet::{Prepare, Reply};

/// One peer's answer to one Prepare.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The preimage that the Prepare carries.
    Fulfill,
    Reply(Reply),
    /// These bytes, where a packet should be.
    Bytes(Vec<u8>),
    /// These bytes on the connection as they are; over BTP as a binary message.
    Raw(Vec<u8>),
    /// An HTTP status with an empty body; over BTP an ERROR frame.
    Status(u16),
    /// The connection is closed instead of an answer.
    Close,
    /// No answer at all.
    Nothing,
    After(Duration, Box<Answer>),
}

impl Answer {
    pub fn after(self, time: Duration) -> Self {
        Self::After(time, Box::new(self))
    }

    pub fn reject(code: &str) -> Self {
        Self::Reply(Reply::reject(code, "test.peer", "as the test says", b"from the peer"))
    }
}

/// A peer's rule and its own book: what came in, and how much of it the peer has fulfilled.
#[derive(Clone)]
pub struct Rule {
    answer: Arc<dyn Fn(&Prepare) -> Answer + Send + Sync>,
    book: Arc<Book>,
}

#[derive(Default)]
struct Book {
    received: Mutex<Vec<Prepare>>,
    fulfilled: AtomicU64,
}

/// More than any test sends and keeps; past it only sums are kept.
const RECEIVED_MAX: usize = 100_000;

impl Rule {
    pub fn new(answer: impl Fn(&Prepare) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            answer: Arc::new(answer),
            book: Arc::default(),
        }
    }

    /// Fulfills everything at once.
    pub fn fulfill() -> Self {
        Self::new(|_| Answer::Fulfill)
    }

    /// The same answer to everything.
    pub fn always(answer: Answer) -> Self {
        Self::new(move |_| answer.clone())
    }

    pub fn decide(&self, prepare: &Prepare) -> Answer {
        let mut received = self.book.received.lock().expect("no test panics here");
        if received.len() < RECEIVED_MAX {
            received.push(prepare.clone());
        }
        drop(received);
        (self.answer)(prepare)
    }

    /// The peer notes an amount **before** it sends the Fulfill, so what it notes is never less than what the node
    /// may have booked.
    pub fn note_fulfilled(&self, prepare: &Prepare) {
        self.book.fulfilled.fetch_add(prepare.amount, Ordering::SeqCst);
    }

    /// What came in so far, as it came.
    pub fn received(&self) -> Vec<Prepare> {
        self.book.received.lock().expect("no test panics here").clone()
    }

    /// The only Prepare that came in.
    pub fn received_one(&self) -> Prepare {
        let mut received = self.received();
        assert_eq!(
            received.len(),
            1,
            "the peer received {} Prepares instead of one",
            received.len()
        );
        received.remove(0)
    }

    /// Sum of the amounts fulfilled.
    pub fn fulfilled(&self) -> u64 {
        self.book.fulfilled.load(Ordering::SeqCst)
    }
}
