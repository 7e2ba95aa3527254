//! A record as a guest sees it, and snapshots that compare it with the kernel's counts.
#![expect(unsafe_code, reason = "maps a page of the BPF array, as guest memory is mapped")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use steal_time::bpf::{Program, RecordAddr, Slot, SwitchCounts};

use super::spin_until;

/// One record, in its own mapping.
pub(super) struct Record {
    pub(super) words: &'static [AtomicU64; 8],
}

impl Record {
    /// Maps the record. The mapping lives as long as the process.
    pub(super) fn map(program: &Program, addr: RecordAddr) -> Self {
        let (pages, offset) =
            (program.pages().as_fd(), libc::off_t::try_from(addr.page() * 4096).expect("small"));
        // SAFETY: the kernel chooses the address, so the new mapping replaces no other.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                pages.as_raw_fd(),
                offset,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: the page is never unmapped. All bit patterns are valid atomics, and atomics allow
        // concurrent writers.
        let page = unsafe { &*page.cast::<[[AtomicU64; 8]; 64]>() };
        Self { words: &page[addr.offset() / 64] }
    }

    pub(super) fn steal(&self) -> u64 {
        self.words[0].load(Ordering::Relaxed)
    }

    pub(super) fn version(&self) -> u32 {
        (self.words[1].load(Ordering::Relaxed) & 0xffff_ffff) as u32
    }

    pub(super) fn preempted(&self) -> u8 {
        (self.words[2].load(Ordering::Relaxed) & 0xff) as u8
    }

    pub(super) fn words(&self) -> [u64; 8] {
        self.words.each_ref().map(|word| word.load(Ordering::Relaxed))
    }
}

/// The counts of this thread's slot and record, and those of the kernel, between two switches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    pub(super) counts: SwitchCounts,
    /// Preemptions and blocking switches, counted by the kernel (`status`).
    pub(super) preemptions: u64,
    pub(super) blocked: u64,
    /// Run delay (ns) and number of switch-ins, counted by the kernel (`schedstat`).
    pub(super) run_delay: u64,
    pub(super) timeslices: u64,
    pub(super) steal: u64,
}

impl Snapshot {
    /// Reads again until no switch came between the readings, and all are published.
    pub(super) fn take(slot: &Slot, record: &Record) -> Self {
        let mut read = None;
        spin_until("nothing is unpublished", || {
            let counts = slot.counts();
            let status = fs::read_to_string("/proc/thread-self/status").expect("status");
            let schedstat = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
            let steal = record.steal();
            read = Some((counts, status, schedstat, steal));
            record.preempted() == 0 && slot.counts() == counts
        });
        let (counts, status, schedstat, steal) = read.expect("read at least once");
        let status = |name| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("in status");
            value.trim().parse().expect("a number")
        };
        let schedstat: Vec<u64> =
            schedstat.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        Self {
            counts,
            preemptions: status("nonvoluntary_ctxt_switches:"),
            blocked: status("voluntary_ctxt_switches:"),
            run_delay: schedstat[1],
            timeslices: schedstat[2],
            steal,
        }
    }
}
