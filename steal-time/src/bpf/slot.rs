//! What the monitor and the program share about one vCPU.

use std::sync::atomic::{AtomicU64, Ordering};

/// Where a vCPU's record lies: an element of the page map, and an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site(u64);

impl Site {
    const ON: u64 = 1;
    const PARKED: u64 = 2;
    const OFFSET: u64 = 0xfc0;
    const PAGE_SHIFT: u32 = 12;

    /// The record at byte `offset` of element `page` of the page map.
    ///
    /// Of `offset` only the bits count that tell the 64-byte places of a page apart, so that a record's guest
    /// physical address will do.
    pub const fn new(page: usize, offset: usize) -> Self {
        Self((page as u64) << Self::PAGE_SHIFT | offset as u64 & Self::OFFSET | Self::ON)
    }

    /// The element of the page map.
    pub const fn page(self) -> usize {
        (self.0 >> Self::PAGE_SHIFT) as usize
    }

    /// The record's first byte in that element.
    pub const fn offset(self) -> usize {
        (self.0 & Self::OFFSET) as usize
    }
}

/// One vCPU's slot, in memory shared with the program (`struct slot` of `steal_time.bpf.c`).
///
/// Its site belongs to the vCPU's own thread: see [`Enrolled`](super::Enrolled). The program takes it away at INIT.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Slot {
    /// A [`Site`], perhaps with [`Site::PARKED`]; without [`Site::ON`] none.
    site: AtomicU64,
    accounted: AtomicU64,
    parked: AtomicU64,
    outs: AtomicU64,
    ins: AtomicU64,
    sleeps: AtomicU64,
    healed: AtomicU64,
    inits: AtomicU64,
    /// The program's own note.
    _asserts: AtomicU64,
    /// 1 while the thread has a CPU, as far as the program knows; 2 for the moment in which it finds that out.
    running: AtomicU64,
    unseen: AtomicU64,
    corrected: AtomicU64,
    lose_every: AtomicU64,
    /// The program's own note.
    _arrivals: AtomicU64,
    told: AtomicU64,
    kick: AtomicU64,
}

/// How often the program has seen a vCPU's thread, since the thread was enrolled first, published or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Switched out while runnable: the host took its CPU away.
    pub outs: u64,
    /// Seen to be switched in. On some hosts a trace is lost now and then; `outs` and `sleeps` never are.
    pub ins: u64,
    /// Switched out to sleep.
    pub sleeps: u64,
    /// Found running although nobody had seen it switched in: the trace was lost, and this made up for it.
    pub healed: u64,
    /// Switched out again before anybody had found it running. With `ins` and `healed` these are all switch-ins.
    pub unseen: u64,
    /// Found running, as was known, with its byte set. Somebody else had set it.
    pub corrected: u64,
}

impl Counts {
    /// How often the thread was switched in, seen or not.
    pub fn arrivals(&self) -> u64 {
        self.ins + self.healed + self.unseen
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            outs: self.outs.saturating_sub(earlier.outs),
            ins: self.ins.saturating_sub(earlier.ins),
            sleeps: self.sleeps.saturating_sub(earlier.sleeps),
            healed: self.healed.saturating_sub(earlier.healed),
            unseen: self.unseen.saturating_sub(earlier.unseen),
            corrected: self.corrected.saturating_sub(earlier.corrected),
        }
    }
}

impl Slot {
    /// Adds `ns` nanoseconds, for which the monitor kept this vCPU from running, to what its next switch-in publishes.
    ///
    /// For whoever wakes the parked thread, before it does: then the record is right when the vCPU runs again. Run
    /// delay begins with the wake-up, so that no time is counted twice.
    pub fn add_parked(&self, ns: u64) {
        self.parked.fetch_add(ns, Ordering::Release);
    }

    /// The counts, each one true at some moment during the call.
    pub fn counts(&self) -> Counts {
        Counts {
            outs: self.outs.load(Ordering::Relaxed),
            ins: self.ins.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            healed: self.healed.load(Ordering::Relaxed),
            unseen: self.unseen.load(Ordering::Relaxed),
            corrected: self.corrected.load(Ordering::Relaxed),
        }
    }

    /// Makes the program overlook each `every`-th switch-in of this vCPU, as some hosts do; 0 for none.
    pub fn lose_every(&self, every: u64) {
        self.lose_every.store(every, Ordering::Relaxed);
    }

    /// Counts a switch-in that nobody has seen yet: for the thread itself, which knows that it runs.
    ///
    /// The program counts in interrupts of this same thread, so each of these operations is whole for it. What it would
    /// have published it publishes at the next switch.
    pub(super) fn count_this_arrival(&self) {
        if self.running.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.unseen.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The thread runs: for itself to say, before the program knows it.
    pub(super) fn begin_running(&self) {
        self.running.store(1, Ordering::Relaxed);
    }

    /// The thread tells its steal by itself: the classic program is to send it `signal`, inside the guest, as long as it has
    /// not since it was switched in.
    pub fn kick_by(&self, signal: libc::c_int) {
        self.kick.store(u64::try_from(signal).unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether the thread, which is about to tell its steal, was switched in since this was last asked.
    pub fn is_to_tell(&self) -> bool {
        let arrivals = self.ins.load(Ordering::Relaxed) + self.healed.load(Ordering::Relaxed);
        // Asked at each entry; the thread alone writes it.
        let is_to_tell = self.told.load(Ordering::Relaxed) != arrivals;
        if is_to_tell {
            self.told.store(arrivals, Ordering::Relaxed);
        }
        is_to_tell
    }

    /// How many INITs the vCPU has been sent. With each the program stops publishing.
    pub fn inits(&self) -> u64 {
        self.inits.load(Ordering::Acquire)
    }

    /// Where the program publishes.
    pub(super) fn site(&self) -> Option<Site> {
        let word = self.site.load(Ordering::Relaxed);
        (word & Site::ON != 0).then_some(Site(word & !Site::PARKED))
    }

    /// Takes `run_delay_ns` and all time parked for published. Returns how much of it was not.
    pub(super) fn account(&self, run_delay_ns: u64) -> u64 {
        let total = run_delay_ns + self.parked.load(Ordering::Relaxed);
        total.saturating_sub(self.accounted.swap(total, Ordering::Relaxed))
    }

    /// Makes the program publish at `site`.
    pub(super) fn publish(&self, site: Site) {
        self.site.store(site.0, Ordering::Release);
    }

    /// Makes the program publish nowhere.
    pub(super) fn withdraw(&self) {
        self.site.store(0, Ordering::Release);
    }

    /// Makes the program leave the byte alone.
    pub(super) fn keep_byte(&self) {
        self.site.fetch_or(Site::PARKED, Ordering::Release);
    }

    /// Makes the program keep the byte true.
    pub(super) fn release_byte(&self) {
        self.site.fetch_and(!Site::PARKED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_of_any_record_gives_back_its_page_and_offset() {
        for page in [0, 1, 254, u32::MAX as usize] {
            for offset in (0..4096).step_by(64) {
                let site = Site::new(page, offset);
                assert_eq!((site.page(), site.offset()), (page, offset));
            }
        }
    }

    #[test]
    fn site_word_is_what_the_program_decodes() {
        assert_eq!(Site::new(3, 0x40), Site(3 << 12 | 0x40 | 1));
    }

    #[test]
    fn site_by_guest_address_is_the_site_by_offset() {
        assert_eq!(Site::new(3, 0x1234_5fc0), Site::new(3, 0xfc0));
    }

    #[test]
    fn parking_and_unparking_leave_the_site_as_it_was() {
        let slot = Slot::default();
        assert_eq!(slot.site(), None);
        slot.publish(Site::new(3, 0x40));
        slot.keep_byte();
        assert_eq!(slot.site(), Some(Site::new(3, 0x40)));
        assert_ne!(slot.site.load(Ordering::Relaxed), Site::new(3, 0x40).0);
        slot.release_byte();
        assert_eq!(slot.site.load(Ordering::Relaxed), Site::new(3, 0x40).0);
        slot.withdraw();
        slot.keep_byte();
        assert_eq!(slot.site(), None);
    }

    #[test]
    fn account_returns_each_nanosecond_once() {
        let slot = Slot::default();
        assert_eq!(slot.account(100), 100);
        slot.add_parked(7);
        assert_eq!(slot.account(130), 37);
        assert_eq!(slot.account(130), 0);
    }

    #[test]
    fn arrival_that_nobody_saw_is_counted_once() {
        let slot = Slot::default();
        slot.count_this_arrival();
        slot.count_this_arrival();
        assert_eq!(slot.counts(), Counts { unseen: 1, ..Counts::default() });
        assert_eq!(slot.counts().arrivals(), 1);
    }

    #[test]
    fn slot_is_two_cache_lines_so_that_vcpus_share_none() {
        assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (128, 128));
    }
}
