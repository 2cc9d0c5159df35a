//! What waits for the disk: responses whose transfer has been handed to the store and is not durable yet.
//!
//! Owns the rule of the house: a Fulfill leaves the node only when its transfer is durable. Transfers are numbered in
//! the order in which they were handed over, and become durable in that order, so a queue is all it takes.

use std::collections::VecDeque;

/// The number of a transfer in the order of one shard: the first is 1. Durable up to 0 means none.
pub type TransferNumber = u64;

/// Responses waiting for their transfers, oldest first.
pub struct Journal<T> {
    waiting: VecDeque<(TransferNumber, T)>,
}

impl<T> Default for Journal<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<T> Journal<T> {
    /// Keeps `response` back until the transfer `number` is durable. Numbers grow.
    pub fn wait(&mut self, number: TransferNumber, response: T) {
        assert!(
            self.waiting.back().is_none_or(|(last, _)| *last < number),
            "transfers are numbered in order"
        );
        self.waiting.push_back((number, response));
    }

    /// The next response whose transfer is among those durable, in order; `None` when the rest must wait.
    pub fn release(&mut self, durable: TransferNumber) -> Option<T> {
        if self.waiting.front()?.0 > durable {
            return None;
        }
        self.waiting.pop_front().map(|(_, response)| response)
    }

    /// The number of the transfer that the next response waits for.
    pub fn next(&self) -> Option<TransferNumber> {
        self.waiting.front().map(|(number, _)| *number)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_before_its_transfer_is_durable() {
        let mut journal = Journal::default();
        for number in 1..=5 {
            journal.wait(number, number * 10);
        }
        let mut released = |durable| std::iter::from_fn(|| journal.release(durable)).collect::<Vec<_>>();
        assert!(released(0).is_empty());
        assert_eq!(released(2), [10, 20]);
        assert!(released(2).is_empty());
        assert_eq!(released(9), [30, 40, 50]);
        assert_eq!(journal.len(), 0);
    }
}
