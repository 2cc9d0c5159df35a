//! Memory for bytes on their way in and out of the kernel, all of it bounded.
//!
//! Owns the provided-buffer ring from which the kernel takes a buffer for whatever arrives on any socket of the shard,
//! and a small stock of send queues. So a connection that is idle holds no buffer at all.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// Buffers that the kernel may fill at one time. When all are taken, reception pauses until one comes back; a power
/// of two, as the kernel demands.
pub const RECEIVE_BUFFERS: u16 = 256;

/// Bytes in one of them: some 80 BTP packets, so that a busy peer's read is one batch, and 4 MiB in all for a shard.
/// Small messages touch only the first lines of a buffer, so the size costs them no cache.
pub const RECEIVE_BUFFER_BYTES: usize = 16 * 1024;

/// The one group of provided buffers of a ring.
pub const BUFFER_GROUP: u16 = 0;

const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());

const PAGE: usize = 4096;

/// A buffer that the kernel has filled and that is ours until it is given back.
pub struct Buffer {
    start: *mut u8,
    len: usize,
    index: u16,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel initialized `len` bytes and does not touch the buffer until it is given back, which
        // consumes `self`. The memory lives as long as the shard's ring.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// The provided buffers of one ring.
pub struct ReceiveBuffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

impl ReceiveBuffers {
    const ENTRIES_LAYOUT: Layout = Self::layout(RECEIVE_BUFFERS as usize * size_of::<BufRingEntry>());
    const MEMORY_LAYOUT: Layout = Self::layout(RECEIVE_BUFFERS as usize * RECEIVE_BUFFER_BYTES);

    const fn layout(bytes: usize) -> Layout {
        match Layout::from_size_align(bytes, PAGE) {
            Ok(layout) => layout,
            Err(_) => panic!("a page-aligned size"),
        }
    }

    /// Allocates the buffers and registers them with `ring`.
    pub fn register(ring: &IoUring) -> io::Result<Self> {
        let mut buffers = Self {
            entries: allocate(Self::ENTRIES_LAYOUT).cast(),
            memory: allocate(Self::MEMORY_LAYOUT),
            tail: 0,
        };
        // SAFETY: the entries are page aligned, zeroed, large enough for that many, and live as long as `buffers`,
        // which the ring's owner drops after the ring.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(buffers.entries as u64, RECEIVE_BUFFERS, BUFFER_GROUP, 0)?;
        }
        for index in 0..RECEIVE_BUFFERS {
            buffers.provide(index);
        }
        Ok(buffers)
    }

    /// The buffer that the kernel named in a completion, with `len` bytes in it.
    pub fn take(&self, index: u16, len: usize) -> Buffer {
        assert!(
            index < RECEIVE_BUFFERS && len <= RECEIVE_BUFFER_BYTES,
            "the kernel names our own buffers"
        );
        Buffer {
            start: self.start_of(index),
            len,
            index,
        }
    }

    /// Lets the kernel fill the buffer again.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.provide(buffer.index);
    }

    fn start_of(&self, index: u16) -> *mut u8 {
        // SAFETY: `index` is below RECEIVE_BUFFERS, so the result is inside the allocation.
        unsafe { self.memory.add(usize::from(index) * RECEIVE_BUFFER_BYTES) }
    }

    fn provide(&mut self, index: u16) {
        let start = self.start_of(index);
        // SAFETY: the slot is inside the registered entries and, being at the tail, not read by the kernel until the
        // tail has moved past it; the tail is moved with release order, after the slot is complete.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail & (RECEIVE_BUFFERS - 1)));
            entry.set_addr(start as u64);
            entry.set_len(RECEIVE_BUFFER_BYTES as u32);
            entry.set_bid(index);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for ReceiveBuffers {
    fn drop(&mut self) {
        // SAFETY: allocated with these layouts in `register`; the ring that used them is gone.
        unsafe {
            dealloc(self.entries.cast(), Self::ENTRIES_LAYOUT);
            dealloc(self.memory, Self::MEMORY_LAYOUT);
        }
    }
}

fn allocate(layout: Layout) -> *mut u8 {
    // SAFETY: the layouts above have a size other than zero.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        handle_alloc_error(layout);
    }
    start
}

/// Empty send queues kept for the next connection that has something to say, instead of going back to the allocator.
#[derive(Default)]
pub struct SendQueues {
    spare: Vec<Vec<u8>>,
}

/// How many empty queues are kept, and how large one may be to be kept.
const SPARE_QUEUES: usize = 256;
const SPARE_QUEUE_BYTES: usize = 256 * 1024;

impl SendQueues {
    pub fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn give_back(&mut self, mut queue: Vec<u8>) {
        if self.spare.len() < SPARE_QUEUES && (1..=SPARE_QUEUE_BYTES).contains(&queue.capacity()) {
            queue.clear();
            self.spare.push(queue);
        }
    }
}
