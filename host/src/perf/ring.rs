//! perf's ring buffer, in memory shared with the kernel.
//!
//! A page of control words precedes the data. The kernel advances `data_head` after it has written,
//! the reader advances `data_tail` after it has read. Both count bytes and never wrap; the offset
//! in the ring is the count modulo the ring's size. Records begin and end at multiples of 8 bytes,
//! so the reader loads atomic words.
//!
//! Source: Linux `include/uapi/linux/perf_event.h`, `struct perf_event_mmap_page`, `struct
//! perf_event_header`.
#![expect(unsafe_code, reason = "maps the ring and lends out its words")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use perf_event_open_sys::bindings::{
    PERF_RECORD_LOST, PERF_RECORD_MISC_SWITCH_OUT, PERF_RECORD_MISC_SWITCH_OUT_PREEMPT, PERF_RECORD_SWITCH,
    perf_event_mmap_page,
};

use super::{Switch, SwitchKind};
use crate::PAGE_SIZE;

const WORD: usize = size_of::<u64>();
const HEAD: usize = offset_of!(perf_event_mmap_page, data_head) / WORD;
const TAIL: usize = offset_of!(perf_event_mmap_page, data_tail) / WORD;

/// A mapped ring buffer. Dropping it unmaps it.
#[derive(Debug)]
pub(super) struct Ring {
    start: NonNull<AtomicU64>,
    pages: usize,
    lost: AtomicU64,
}

// SAFETY: the mapping belongs to the process, so that any thread may access and unmap it.
unsafe impl Send for Ring {}

// SAFETY: `&Ring` gives access to atomics only. Two threads that drain at once may consume a record
// twice, but race on no plain memory.
unsafe impl Sync for Ring {}

impl Ring {
    /// Maps a ring of `pages` pages (a power of two) for `event`.
    pub(super) fn map(event: &OwnedFd, pages: usize) -> io::Result<Self> {
        let bytes = (1 + pages) * PAGE_SIZE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: with a null address and no MAP_FIXED the kernel chooses a free range, so no
        // existing mapping changes.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, event.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, pages, lost: AtomicU64::new(0) })
    }

    /// Returns the number of bytes that the kernel has written.
    pub(super) fn head(&self) -> u64 {
        self.words()[HEAD].load(Ordering::Acquire)
    }

    /// Returns the number of bytes that were consumed.
    pub(super) fn tail(&self) -> u64 {
        self.words()[TAIL].load(Ordering::Relaxed)
    }

    /// Returns the number of lost records, by the records of loss that were read.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Consumes the records written so far, and calls `each` for each switch.
    pub(super) fn drain(&self, each: impl FnMut(Switch)) {
        let (control, data) = self.words().split_at(PAGE_SIZE / WORD);
        let read = Data(data).read(control[TAIL].load(Ordering::Relaxed), self.head(), each);
        self.lost.fetch_add(read.lost, Ordering::Relaxed);
        control[TAIL].store(read.tail, Ordering::Release);
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `map` mapped this many words from `start`, page-aligned, readable and writable,
        // and they stay mapped until `self` is dropped. Any bytes are a valid `AtomicU64`, and
        // atomics allow for the kernel's concurrent stores.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), (1 + self.pages) * PAGE_SIZE / WORD) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this range, and each reference into it borrows `self`, which
        // is being dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), (1 + self.pages) * PAGE_SIZE) };
    }
}

/// The data area of a ring, as words.
struct Data<'r>(&'r [AtomicU64]);

/// The result of reading a ring.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    tail: u64,
    lost: u64,
}

impl Data<'_> {
    /// Reads the records from byte `tail` to byte `head`.
    ///
    /// A malformed record ends reading; it and the rest count as one lost record.
    fn read(&self, tail: u64, head: u64, mut each: impl FnMut(Switch)) -> Read {
        let (mut at, mut lost) = (tail, 0);
        while at < head {
            let header = self.word(at);
            // struct perf_event_header: u32 type, u16 misc, u16 size
            let (kind, misc, size) = (low(header), low(header >> 32) & 0xffff, (header >> 48) as usize);
            if size < WORD || !size.is_multiple_of(WORD) || at + size as u64 > head {
                return Read { tail: head, lost: lost + 1 };
            }
            match kind {
                // The sample ID follows the header: u64 time, u32 CPU, u32 reserved
                PERF_RECORD_SWITCH if size == 3 * WORD => each(Switch {
                    at_ns: self.word(at + WORD as u64),
                    kind: kind_of(misc),
                    cpu: low(self.word(at + 2 * WORD as u64)),
                }),
                // After the header: u64 event ID, u64 number of lost records
                PERF_RECORD_LOST => lost += self.word(at + 2 * WORD as u64),
                _ => {}
            }
            at += size as u64;
        }
        Read { tail: at, lost }
    }

    fn word(&self, at: u64) -> u64 {
        let index = usize::try_from(at).unwrap_or(0) / WORD % self.0.len();
        self.0[index].load(Ordering::Relaxed)
    }
}

/// Returns the lower 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
const fn low(word: u64) -> u32 {
    word as u32
}

fn kind_of(misc: u32) -> SwitchKind {
    match misc & (PERF_RECORD_MISC_SWITCH_OUT | PERF_RECORD_MISC_SWITCH_OUT_PREEMPT) {
        0 => SwitchKind::In,
        PERF_RECORD_MISC_SWITCH_OUT => SwitchKind::Blocked,
        _ => SwitchKind::Preempted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 32 * WORD as u64;

    fn header(kind: u32, misc: u32, words: u64) -> u64 {
        u64::from(kind) | u64::from(misc) << 32 | (words * WORD as u64) << 48
    }

    fn written(words: &[u64], at: usize) -> Vec<AtomicU64> {
        let data: Vec<AtomicU64> = (0..32).map(|_| AtomicU64::new(0)).collect();
        for (offset, word) in words.iter().enumerate() {
            data[(at + offset) % 32].store(*word, Ordering::Relaxed);
        }
        data
    }

    fn read(data: &[AtomicU64], tail: u64, head: u64) -> (Vec<Switch>, Read) {
        let mut switches = Vec::new();
        let read = Data(data).read(tail, head, |switch| switches.push(switch));
        (switches, read)
    }

    #[test]
    fn records_are_read_in_order_across_the_end_of_the_ring() {
        let words = [
            header(PERF_RECORD_SWITCH, PERF_RECORD_MISC_SWITCH_OUT, 3),
            10,
            0,
            header(PERF_RECORD_SWITCH, 0, 3),
            20,
            1,
            header(PERF_RECORD_LOST, 0, 5),
            7,
            3,
            25,
            0,
            header(PERF_RECORD_SWITCH, PERF_RECORD_MISC_SWITCH_OUT | PERF_RECORD_MISC_SWITCH_OUT_PREEMPT, 3),
            30,
            1,
        ];
        let expected =
            [(10, SwitchKind::Blocked, 0), (20, SwitchKind::In, 1), (30, SwitchKind::Preempted, 1)]
                .map(|(at_ns, kind, cpu)| Switch { at_ns, kind, cpu });
        for at in [0, 5, 27, 31] {
            let tail = 4 * SIZE + (at * WORD) as u64;
            let head = tail + (words.len() * WORD) as u64;
            let (switches, read) = read(&written(&words, at), tail, head);
            assert_eq!((&switches[..], read), (&expected[..], Read { tail: head, lost: 3 }), "{at}");
        }
    }

    #[test]
    fn malformed_record_ends_reading_and_counts_as_lost() {
        for bad in [0, header(PERF_RECORD_SWITCH, 0, 9), header(1, 0, 1) | 3 << 48] {
            let data = written(&[header(PERF_RECORD_SWITCH, 0, 3), 10, 0, bad], 0);
            let (switches, read) = read(&data, 0, 6 * WORD as u64);
            assert_eq!((switches.len(), read), (1, Read { tail: 6 * WORD as u64, lost: 1 }));
        }
    }
}
