//! Random bytes that nobody can foresee, from the kernel, many at a time: asking for each nonce would be a system call
//! per packet.

/// Bytes asked for at once.
const BUFFER_BYTES: usize = 4_096;

/// Gives every byte once.
pub struct Entropy {
    buffer: Box<[u8; BUFFER_BYTES]>,
    used: usize,
}

impl Default for Entropy {
    fn default() -> Self {
        Self {
            buffer: Box::new([0; BUFFER_BYTES]),
            used: BUFFER_BYTES,
        }
    }
}

impl Entropy {
    pub fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.used == BUFFER_BYTES {
                getrandom::fill(&mut *self.buffer).expect("the kernel gives random bytes once it has started");
                self.used = 0;
            }
            let count = bytes.len().min(BUFFER_BYTES - self.used);
            let (now, later) = bytes.split_at_mut(count);
            let given = &mut self.buffer[self.used..self.used + count];
            now.copy_from_slice(given);
            // What was given away is not kept.
            given.fill(0);
            self.used += count;
            bytes = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_given_once() {
        let mut entropy = Entropy::default();
        let mut seen = std::collections::HashSet::new();
        for length in [0, 16, 4_080, 16, 5_000, 16] {
            let mut bytes = vec![0; length];
            entropy.fill(&mut bytes);
            for piece in bytes.chunks_exact(16) {
                assert!(seen.insert(piece.to_vec()));
            }
        }
    }
}
