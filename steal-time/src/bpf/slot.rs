//! The state of one vCPU that monitor and program share.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The address of a vCPU's record: an element of the page map, and an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordAddr(u64);

impl RecordAddr {
    const PUBLISH: u64 = 1;
    const DESCHEDULED: u64 = 2;
    const OFFSET: u64 = 0xfc0;
    const PAGE_SHIFT: u32 = 12;

    /// Returns the address of the record at byte `offset` of element `page` of the page map.
    ///
    /// Only bits 6 to 11 of `offset` count, so a record's guest physical address can be passed.
    pub const fn new(page: usize, offset: usize) -> Self {
        Self((page as u64) << Self::PAGE_SHIFT | offset as u64 & Self::OFFSET | Self::PUBLISH)
    }

    /// Returns the index in the page map.
    pub const fn page(self) -> usize {
        (self.0 >> Self::PAGE_SHIFT) as usize
    }

    /// Returns the record's offset in its page (bytes).
    pub const fn offset(self) -> usize {
        (self.0 & Self::OFFSET) as usize
    }
}

/// The slot of one vCPU, in memory shared with the program: `struct slot` of `record.bpf.h`, which
/// documents its fields.
///
/// Only the vCPU's own thread sets the address of the record
/// ([`AttachedThread`](super::AttachedThread)). The program clears it at INIT.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Slot {
    /// A [`RecordAddr`], or 0; the bit `DESCHEDULED` may be set in either.
    record_addr: AtomicU64,
    accounted_ns: AtomicU64,
    descheduled_ns: AtomicU64,
    sched_out: AtomicU64,
    sched_in: AtomicU64,
    blocked: AtomicU64,
    healed: AtomicU64,
    inits: AtomicU32,
    inits_settled: AtomicU32,
    /// Internal to the program.
    _init_at: AtomicU64,
    /// 1 while the thread has a CPU, as far as the program knows; 2 while the program repairs a
    /// lost switch-in.
    on_cpu: AtomicU64,
    unseen: AtomicU64,
    corrected: AtomicU64,
    lose_every: AtomicU64,
    /// Internal to the program.
    _sched_in_seq: AtomicU64,
    published_seq: AtomicU64,
    kick_signal: AtomicU32,
    inits_judged: AtomicU32,
}

/// INITs that vCPUs with this APIC ID were sent, in any VM: the thread has to find out whether they
/// reset its own vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inits {
    /// Their number so far.
    seq: u32,
    /// The last of them has arrived at its vCPU: KVM has cleared that vCPU's MSR, or will at the
    /// next entry into the guest.
    pub is_settled: bool,
}

/// Context switches of a vCPU's thread, counted by the program while the thread is attached,
/// published or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SwitchCounts {
    /// Switched out while runnable: the thread was preempted.
    pub sched_out: u64,
    /// Switched in, and the switch was traced. Some hosts lose the trace of a switch-in now and
    /// then, but never that of a switch-out.
    pub sched_in: u64,
    /// Switched out to sleep.
    pub blocked: u64,
    /// Found on a CPU although no switch-in was traced, and published then.
    pub healed: u64,
    /// Switched out again before its untraced switch-in was found.
    pub unseen: u64,
    /// Found on a CPU, as the program knew, but with `preempted` set by another writer; cleared
    /// then.
    pub corrected: u64,
}

impl SwitchCounts {
    /// Returns the number of all switch-ins, traced or not.
    pub fn timeslices(&self) -> u64 {
        self.sched_in + self.healed + self.unseen
    }

    /// Returns the growth since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sched_out: self.sched_out.saturating_sub(earlier.sched_out),
            sched_in: self.sched_in.saturating_sub(earlier.sched_in),
            blocked: self.blocked.saturating_sub(earlier.blocked),
            healed: self.healed.saturating_sub(earlier.healed),
            unseen: self.unseen.saturating_sub(earlier.unseen),
            corrected: self.corrected.saturating_sub(earlier.corrected),
        }
    }
}

impl Slot {
    /// Adds `ns` nanoseconds, for which the monitor descheduled the vCPU, to the steal that its
    /// next switch-in publishes.
    ///
    /// It must contain none of the thread's run delay, so that no time counts twice.
    pub fn add_descheduled_ns(&self, ns: u64) {
        self.descheduled_ns.fetch_add(ns, Ordering::Release);
    }

    /// Returns the counts. Each is read atomically, but not all at one moment.
    pub fn counts(&self) -> SwitchCounts {
        SwitchCounts {
            sched_out: self.sched_out.load(Ordering::Relaxed),
            sched_in: self.sched_in.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed),
            healed: self.healed.load(Ordering::Relaxed),
            unseen: self.unseen.load(Ordering::Relaxed),
            corrected: self.corrected.load(Ordering::Relaxed),
        }
    }

    /// Fault injection: makes the program ignore each `every`-th switch-in, as on a host that loses
    /// traces; 0 for none.
    pub fn lose_every(&self, every: u64) {
        self.lose_every.store(every, Ordering::Relaxed);
    }

    /// Counts the latest switch-in of the calling thread, the vCPU's own, if it was not traced.
    ///
    /// The program counts in interrupts of this same thread, so each of these operations is atomic
    /// for it. It publishes the switch-in with the next one.
    pub(super) fn count_this_sched_in(&self) {
        if self.on_cpu.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.unseen.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that the thread has a CPU. The thread itself calls it before it is attached.
    pub(super) fn set_on_cpu(&self) {
        self.on_cpu.store(1, Ordering::Relaxed);
    }

    /// Makes the program send `signal` to the thread, at each timer interrupt, while the thread has
    /// an INIT to judge ([`Inits`]). The classic program also sends it until the thread updates its
    /// steal after a switch-in ([`take_sched_in`](Self::take_sched_in)).
    pub fn set_kick_signal(&self, signal: libc::c_int) {
        self.kick_signal.store(u32::try_from(signal).unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns whether the thread was switched in since the last call. The thread itself calls it,
    /// and then updates its steal.
    pub fn take_sched_in(&self) -> bool {
        let seq = self.sched_in.load(Ordering::Relaxed) + self.healed.load(Ordering::Relaxed);
        // Called at each entry, so it stores only if there is news. The thread is the only writer
        let is_new = self.published_seq.load(Ordering::Relaxed) != seq;
        if is_new {
            self.published_seq.store(seq, Ordering::Relaxed);
        }
        is_new
    }

    /// Returns the INITs that the thread has to judge, or `None`. The program stops publication at
    /// each.
    pub fn unjudged_inits(&self) -> Option<Inits> {
        let seq = self.inits.load(Ordering::Acquire);
        if seq == self.inits_judged.load(Ordering::Relaxed) {
            return None;
        }
        Some(Inits { seq, is_settled: seq == self.inits_settled.load(Ordering::Acquire) })
    }

    /// Ends the judgement of `inits`. The thread itself calls it.
    pub fn set_judged(&self, inits: Inits) {
        self.inits_judged.store(inits.seq, Ordering::Relaxed);
    }

    /// Does what the program does when a vCPU with this APIC ID is sent INIT.
    #[cfg(test)]
    pub(crate) fn simulate_init(&self) {
        self.withdraw();
        self.inits.fetch_add(1, Ordering::Release);
    }

    /// Returns the address of the record that is being published, or `None`.
    pub(super) fn record_addr(&self) -> Option<RecordAddr> {
        let word = self.record_addr.load(Ordering::Relaxed);
        (word & RecordAddr::PUBLISH != 0).then_some(RecordAddr(word & !RecordAddr::DESCHEDULED))
    }

    /// Marks `run_delay_ns` and all descheduled time as contained in steal. Returns the part (ns)
    /// that was not.
    pub(super) fn account(&self, run_delay_ns: u64) -> u64 {
        let total = run_delay_ns + self.descheduled_ns.load(Ordering::Relaxed);
        total.saturating_sub(self.accounted_ns.swap(total, Ordering::Relaxed))
    }

    /// Starts publication at `addr`.
    pub(super) fn publish(&self, addr: RecordAddr) {
        self.record_addr.store(addr.0, Ordering::Release);
    }

    /// Stops publication.
    pub(super) fn withdraw(&self) {
        self.record_addr.store(0, Ordering::Release);
    }

    /// Makes the program leave `preempted` alone.
    pub(super) fn set_descheduled(&self) {
        self.record_addr.fetch_or(RecordAddr::DESCHEDULED, Ordering::Release);
    }

    /// Makes the program maintain `preempted`.
    pub(super) fn clear_descheduled(&self) {
        self.record_addr.fetch_and(!RecordAddr::DESCHEDULED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_addr_of_any_record_gives_back_its_page_and_offset() {
        for page in [0, 1, 254, u32::MAX as usize] {
            for offset in (0..4096).step_by(64) {
                let addr = RecordAddr::new(page, offset);
                assert_eq!((addr.page(), addr.offset()), (page, offset));
            }
        }
    }

    #[test]
    fn record_addr_is_the_word_that_the_program_decodes() {
        assert_eq!(RecordAddr::new(3, 0x40), RecordAddr(3 << 12 | 0x40 | 1));
    }

    #[test]
    fn record_addr_by_guest_address_equals_the_one_by_offset() {
        assert_eq!(RecordAddr::new(3, 0x1234_5fc0), RecordAddr::new(3, 0xfc0));
    }

    #[test]
    fn deschedule_and_schedule_leave_the_record_addr_as_it_was() {
        let slot = Slot::default();
        assert_eq!(slot.record_addr(), None);
        slot.publish(RecordAddr::new(3, 0x40));
        slot.set_descheduled();
        assert_eq!(slot.record_addr(), Some(RecordAddr::new(3, 0x40)));
        assert_ne!(slot.record_addr.load(Ordering::Relaxed), RecordAddr::new(3, 0x40).0);
        slot.clear_descheduled();
        assert_eq!(slot.record_addr.load(Ordering::Relaxed), RecordAddr::new(3, 0x40).0);
        slot.withdraw();
        slot.set_descheduled();
        assert_eq!(slot.record_addr(), None);
    }

    #[test]
    fn account_returns_each_nanosecond_once() {
        let slot = Slot::default();
        assert_eq!(slot.account(100), 100);
        slot.add_descheduled_ns(7);
        assert_eq!(slot.account(130), 37);
        assert_eq!(slot.account(130), 0);
    }

    #[test]
    fn untraced_switch_in_is_counted_once() {
        let slot = Slot::default();
        slot.count_this_sched_in();
        slot.count_this_sched_in();
        assert_eq!(slot.counts(), SwitchCounts { unseen: 1, ..SwitchCounts::default() });
        assert_eq!(slot.counts().timeslices(), 1);
    }

    #[test]
    fn inits_are_judged_once_and_settled_only_with_the_last_of_them() {
        let slot = Slot::default();
        assert_eq!(slot.unjudged_inits(), None);
        slot.inits.store(2, Ordering::Relaxed);
        slot.inits_settled.store(1, Ordering::Relaxed);
        assert_eq!(slot.unjudged_inits(), Some(Inits { seq: 2, is_settled: false }));
        slot.inits_settled.store(2, Ordering::Relaxed);
        let inits = slot.unjudged_inits().unwrap();
        assert!(inits.is_settled);
        slot.inits.store(3, Ordering::Relaxed);
        slot.set_judged(inits);
        assert_eq!(slot.unjudged_inits(), Some(Inits { seq: 3, is_settled: false }));
    }

    #[test]
    fn slot_is_two_cache_lines_so_that_vcpus_share_none() {
        assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (128, 128));
    }
}
