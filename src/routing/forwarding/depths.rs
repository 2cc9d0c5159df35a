//! Which depths (numbers of segments) prefixes have: a look-up tries no other.

use super::DEPTHS_MAX;

const WORDS: usize = DEPTHS_MAX.div_ceil(u64::BITS as usize);

/// A set of depths.
#[derive(Clone, Default)]
pub(super) struct Depths {
    words: [u64; WORDS],
    /// How many.
    different: usize,
    deepest: Option<usize>,
}

impl Depths {
    #[inline]
    pub(super) fn has(&self, depth: usize) -> bool {
        let (word, bit) = place(depth);
        self.words[word] & bit != 0
    }

    pub(super) fn add(&mut self, depth: usize) {
        let (word, bit) = place(depth);
        self.different += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
        self.deepest = self.deepest.max(Some(depth));
    }

    #[inline]
    pub(super) fn different(&self) -> usize {
        self.different
    }

    #[inline]
    pub(super) fn deepest(&self) -> Option<usize> {
        self.deepest
    }
}

#[inline]
fn place(depth: usize) -> (usize, u64) {
    let bits = u64::BITS as usize;
    (depth / bits, 1 << (depth % bits))
}

/// The number of segments of a prefix: 0 for the empty one, 1 for a scheme.
pub(super) fn depth_of(prefix: &str) -> usize {
    if prefix.is_empty() {
        return 0;
    }
    1 + prefix.bytes().filter(|&byte| byte == b'.').count()
}
