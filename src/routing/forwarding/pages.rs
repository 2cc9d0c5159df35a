//! Memory for a table that is written once and then read by all shards: straight from the kernel, zeroed, and the
//! kernel's again in the moment in which it is dropped, however much it is.
//!
//! Owns the size of its pages. A look-up goes to a few random places: among small pages, each would first cost a walk
//! through the page tables, which are not in the caches either. Leaves what is written there to [`super`].

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, null_mut};

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// From here on whole huge pages are asked for, so at most an eighth is unused. Below, the addresses of all small pages
/// find room in the core's buffer for them.
const HUGE_FROM_BYTES: usize = 8 * HUGE_PAGE_BYTES;

pub(super) struct Pages {
    first: NonNull<u8>,
    bytes: usize,
    /// What the kernel gave: the same, or more, of which nothing else is ever touched.
    mapped: (NonNull<libc::c_void>, usize),
}

// SAFETY: it is memory that nobody else has, shared and changed by the rules of references only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// So many bytes, all zero. Ends the process when there is no memory, as every allocation does.
    pub(super) fn new(bytes: usize) -> Self {
        let is_large = bytes >= HUGE_FROM_BYTES;
        // More than is used, so that there is a border of huge pages to begin at.
        let mapped_bytes = match is_large {
            true => bytes.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES,
            false => bytes.max(1),
        };
        // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that is there.
        let mapped = unsafe {
            libc::mmap(
                null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let mapped = match NonNull::new(mapped) {
            Some(mapped) if mapped.as_ptr() != libc::MAP_FAILED => mapped,
            _ => handle_alloc_error(Layout::array::<u8>(mapped_bytes).expect("a table is smaller than half of all")),
        };
        let mut first = mapped.cast::<u8>();
        if is_large {
            let unused = first.align_offset(HUGE_PAGE_BYTES);
            // SAFETY: less than the huge page that was asked for beyond what is used. The advice is about memory that
            // is ours, and one that the kernel does not follow changes nothing but the speed.
            unsafe {
                first = first.add(unused);
                libc::madvise(
                    first.as_ptr().cast(),
                    bytes.next_multiple_of(HUGE_PAGE_BYTES),
                    libc::MADV_HUGEPAGE,
                );
            }
        }
        Self {
            first,
            bytes,
            mapped: (mapped, mapped_bytes),
        }
    }

    /// Has the processor fetch the line of its cache that the byte `at` is in, while it does something else.
    #[inline]
    pub(super) fn prefetch(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: fetching never fails and changes nothing, wherever the address leads.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.first.as_ptr().wrapping_add(at).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}

impl Deref for Pages {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: all of it is mapped, readable and zeroed or written since, until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Pages {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let (mapped, bytes) = self.mapped;
        // SAFETY: it is what was mapped, and no reference into it outlives `self`.
        let unmapped = unsafe { libc::munmap(mapped.as_ptr(), bytes) };
        debug_assert_eq!(unmapped, 0, "what was mapped can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_zero_and_can_be_written() {
        for bytes in [
            0,
            1,
            64,
            5_000,
            HUGE_FROM_BYTES - 1,
            HUGE_FROM_BYTES,
            HUGE_FROM_BYTES + 1,
        ] {
            let mut pages = Pages::new(bytes);
            assert_eq!(pages.len(), bytes);
            assert!(pages.iter().all(|byte| *byte == 0));
            pages.fill(7);
            assert!(pages.iter().all(|byte| *byte == 7));
            let huge = bytes >= HUGE_FROM_BYTES;
            assert!(
                !huge || pages.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES),
                "{bytes}"
            );
            pages.prefetch(0);
            pages.prefetch(bytes * 2); // harmless
        }
    }
}
