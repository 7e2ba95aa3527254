//! Parking: how a waiter halts, and how it is woken.
//!
//! Each vCPU has a slot with one word: 1 while it is parked, or about to be. Each lock has a set of
//! the vCPUs that are parked for it. No wake-up is lost:
//!
//! - The waiter sets its word, enters the set, and then looks at the lock once more. The releasing
//!   vCPU first releases the lock, then looks at the set. All four accesses are sequentially
//!   consistent, so at least one of the two sees the other: either the waiter does not halt, or it
//!   is woken.
//! - The waker exchanges the word from 1 to 0, and kicks only if it was 1. The halt tests the word
//!   again with interrupts off, so a kick between test and halt ends the halt.
//! - A kick is sent after the release, never under the lock: it may cost its sender the CPU.
//!
//! **Blocked.** `preempted` does not show a vCPU that was woken and has no CPU yet: it was not
//! preempted, it slept. A lock that hands over must know. So the vCPU keeps a second word,
//! `blocked`: set before it halts, cleared when it runs again.

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::spin_wait::{SpinWait, WaitPolicy, WaitStats, is_absence};
use crate::sync::{AtomicU32, AtomicU64, Ordering, SLOTS, const_array, const_new};

/// The slot of one vCPU, on cache lines of its own.
#[repr(align(128))]
struct Slot {
    parked: AtomicU32,
    blocked: AtomicU32,
    /// When the vCPU last prepared to park (cycles).
    since: AtomicU64,
    /// When the vCPU was last kicked (cycles).
    kicked: AtomicU64,
}

/// The slots of all vCPUs.
pub struct ParkingLot([Slot; SLOTS]);

impl Slot {
    const_new! {
        fn new() -> Self {
            Self {
                parked: AtomicU32::new(0),
                blocked: AtomicU32::new(0),
                since: AtomicU64::new(0),
                kicked: AtomicU64::new(0),
            }
        }
    }
}

impl ParkingLot {
    const_new! {
        /// Returns a lot in which no vCPU is parked.
        pub fn new() -> Self {
            Self(const_array![Slot::new(); SLOTS])
        }
    }

    /// Returns whether `vcpu` is parked, or about to be.
    pub fn is_parked(&self, vcpu: VcpuId) -> bool {
        self.slot(vcpu).parked.load(Ordering::SeqCst) != 0
    }

    /// Returns whether `vcpu` has halted and does not run again yet, woken or not.
    pub fn is_blocked(&self, vcpu: VcpuId) -> bool {
        self.slot(vcpu).blocked.load(Ordering::SeqCst) != 0
    }

    fn slot(&self, vcpu: VcpuId) -> &Slot {
        &self.0[vcpu.index()]
    }
}

impl Default for ParkingLot {
    fn default() -> Self {
        Self::new()
    }
}

/// The set of vCPUs that are parked for one lock.
#[repr(align(64))]
pub struct WaiterSet([AtomicU64; SLOTS.div_ceil(64)]);

impl WaiterSet {
    const_new! {
        /// Returns an empty set.
        pub fn new() -> Self {
            Self(const_array![AtomicU64::new(0); SLOTS.div_ceil(64)])
        }
    }

    /// Adds `vcpu` to the set.
    pub fn add(&self, vcpu: VcpuId) {
        let (word, bit) = Self::place(vcpu);
        self.0[word].fetch_or(bit, Ordering::SeqCst);
    }

    /// Removes `vcpu`. Returns whether it was in the set; of several concurrent calls, one returns
    /// `true`.
    pub fn remove(&self, vcpu: VcpuId) -> bool {
        let (word, bit) = Self::place(vcpu);
        self.0[word].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Returns the vCPU that has been parked longest.
    pub fn longest(&self, lot: &ParkingLot) -> Option<VcpuId> {
        self.iter().min_by_key(|vcpu| lot.slot(*vcpu).since.load(Ordering::Relaxed))
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| bits.load(Ordering::SeqCst) == 0)
    }

    /// Returns a vCPU for which `predicate` holds.
    pub fn find(&self, predicate: impl Fn(VcpuId) -> bool) -> Option<VcpuId> {
        self.iter().find(|vcpu| predicate(*vcpu))
    }

    fn iter(&self) -> impl Iterator<Item = VcpuId> {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            let mut bits = bits.load(Ordering::SeqCst);
            core::iter::from_fn(move || {
                let vcpu =
                    if bits == 0 { None } else { VcpuId::new(word * 64 + bits.trailing_zeros() as usize) };
                bits &= bits.wrapping_sub(1);
                vcpu
            })
        })
    }

    const fn place(vcpu: VcpuId) -> (usize, u64) {
        (vcpu.index() / 64, 1 << (vcpu.index() % 64))
    }
}

impl Default for WaiterSet {
    fn default() -> Self {
        Self::new()
    }
}

/// The context of one vCPU in all lock operations: its CPU, its wait policy, its statistics.
pub struct LockCtx<'l, C> {
    /// The CPU that the vCPU runs on.
    pub cpu: C,
    /// The policy of all waits.
    pub policy: WaitPolicy,
    /// The slots of all vCPUs.
    pub lot: &'l ParkingLot,
    /// Statistics of all waits so far.
    pub stats: WaitStats,
}

impl<'l, C: Cpu> LockCtx<'l, C> {
    /// Returns the context of a vCPU that has not waited yet.
    pub fn new(cpu: C, policy: WaitPolicy, lot: &'l ParkingLot) -> Self {
        Self { cpu, policy, lot, stats: WaitStats::default() }
    }

    /// Returns the vCPU of this context.
    pub fn id(&self) -> VcpuId {
        self.cpu.id()
    }

    /// Starts a wait.
    pub fn start_wait(&self) -> SpinWait {
        SpinWait::new(self.policy, &self.cpu)
    }

    /// Spins for one iteration.
    #[inline]
    pub fn spin(&mut self, wait: &mut SpinWait) {
        wait.spin(&self.cpu, &mut self.stats);
    }

    /// Returns whether to stop spinning for `awaited`, or for a vCPU that cannot be named.
    #[inline]
    pub fn should_stop_spinning(&mut self, awaited: Option<VcpuId>, wait: &mut SpinWait) -> bool {
        wait.should_stop_spinning(awaited, &self.cpu, &mut self.stats)
    }

    /// Returns whether to stop spinning for the predecessor in a queue. The turn does not come
    /// while it is preempted or halted.
    #[inline]
    pub fn should_stop_spinning_behind(&mut self, neighbour: Option<VcpuId>, wait: &mut SpinWait) -> bool {
        let is_early = matches!(self.policy, WaitPolicy::Preempted { .. })
            && neighbour.is_some_and(|neighbour| self.lot.is_blocked(neighbour));
        self.stats.early_waits += u64::from(is_early);
        is_early || self.should_stop_spinning(neighbour, wait)
    }

    /// Runs `operation`, during which other vCPUs may wait for this one and cannot name it. Counts
    /// it as unnamed if this vCPU was off its CPU meanwhile.
    #[inline]
    pub fn count_unnamed<R>(&mut self, operation: impl FnOnce(&mut Self) -> R) -> R {
        let began = self.cpu.cycles();
        let result = operation(self);
        let took = self.cpu.cycles().wrapping_sub(began);
        if is_absence(took, &self.cpu) {
            self.stats.unnamed += 1;
            self.stats.unnamed_cycles += took;
        }
        result
    }

    /// Returns whether `vcpu` is off its CPU: preempted, or halted and not running again yet.
    pub fn is_off_cpu(&self, vcpu: VcpuId) -> bool {
        self.cpu.is_preempted(vcpu) || self.lot.is_blocked(vcpu)
    }

    /// Parks for a lock whose parked vCPUs are `waiters`, if `must_wait` still holds once other
    /// vCPUs can see that this one is about to park. On return this vCPU is not parked, and not in
    /// the set.
    pub fn park_if(&mut self, waiters: &WaiterSet, must_wait: impl FnOnce(&Self) -> bool) {
        self.prepare_to_park();
        waiters.add(self.id());
        if must_wait(self) {
            self.park();
        } else {
            self.cancel_park();
        }
        waiters.remove(self.id());
    }

    /// Marks this vCPU as about to park. The caller then looks at the lock once more, and either
    /// parks or calls [`LockCtx::cancel_park`].
    pub fn prepare_to_park(&self) {
        let slot = self.lot.slot(self.id());
        slot.since.store(self.cpu.cycles(), Ordering::Relaxed);
        slot.parked.store(1, Ordering::SeqCst);
    }

    /// Undoes [`LockCtx::prepare_to_park`]. Returns `false` if another vCPU has already woken this
    /// one.
    pub fn cancel_park(&self) -> bool {
        self.lot.slot(self.id()).parked.swap(0, Ordering::SeqCst) == 1
    }

    /// Halts until another vCPU wakes this one.
    pub fn park(&mut self) {
        let slot = self.lot.slot(self.id());
        let began = self.cpu.cycles();
        slot.blocked.store(1, Ordering::SeqCst);
        while slot.parked.load(Ordering::SeqCst) == 1 {
            self.stats.halts += 1;
            self.cpu.halt_while(&slot.parked, 1);
            self.stats.spurious_wakes += u64::from(slot.parked.load(Ordering::Relaxed) == 1);
        }
        slot.blocked.store(0, Ordering::SeqCst);
        let now = self.cpu.cycles();
        self.stats.halt_cycles += now.wrapping_sub(began);
        let kicked = slot.kicked.load(Ordering::Relaxed);
        if kicked > began {
            self.cpu.record_wake(now.saturating_sub(kicked));
        }
    }

    /// Wakes `vcpu` if it is parked. Returns whether it was. The caller must have released the
    /// lock.
    pub fn wake(&mut self, vcpu: VcpuId) -> bool {
        let slot = self.lot.slot(vcpu);
        // Most vCPUs are not parked. Finding that out needs no write.
        let is_ours = slot.parked.load(Ordering::SeqCst) == 1 && slot.parked.swap(0, Ordering::SeqCst) == 1;
        if is_ours {
            let began = self.own_cycles();
            slot.kicked.store(self.cpu.cycles(), Ordering::Relaxed);
            self.cpu.kick(vcpu);
            self.stats.kicks += 1;
            self.stats.kick_cycles += self.own_cycles().saturating_sub(began);
        }
        is_ours
    }

    /// Returns the time (cycles) without steal. A kick may cost its sender the CPU, and the time in
    /// which the woken vCPU then runs is not a cost of the kick.
    fn own_cycles(&self) -> u64 {
        self.cpu.cycles().saturating_sub(self.cpu.stolen())
    }

    /// Wakes the vCPU of `waiters` that has been parked longest, and removes it. Returns whether
    /// there was one. The caller must have released the lock.
    pub fn wake_longest(&mut self, waiters: &WaiterSet) -> bool {
        let longest = waiters.longest(self.lot);
        if let Some(vcpu) = longest {
            waiters.remove(vcpu);
            self.wake(vcpu);
        }
        longest.is_some()
    }

    /// Parks, unless `is_over` holds once other vCPUs can see that this one is about to park. The
    /// vCPU that makes it so must wake this one by name.
    pub fn park_unless(&mut self, is_over: impl FnOnce(&Self) -> bool) {
        self.prepare_to_park();
        if is_over(self) {
            self.cancel_park();
        } else {
            self.park();
        }
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use core::cell::Cell;

    use super::*;

    fn vcpu(index: usize) -> VcpuId {
        VcpuId::new(index).unwrap()
    }

    #[test]
    fn longest_is_the_one_parked_first_wherever_its_bit_lies() {
        let (lot, waiters) = (ParkingLot::new(), WaiterSet::new());
        for (index, since) in [(0, 30), (63, 20), (64, 10), (254, 40)] {
            lot.slot(vcpu(index)).since.store(since, Ordering::Relaxed);
            waiters.add(vcpu(index));
        }
        for expected in [64, 63, 0, 254] {
            let longest = waiters.longest(&lot).unwrap();
            assert_eq!(longest.index(), expected);
            waiters.remove(longest);
        }
        assert_eq!(waiters.longest(&lot), None);
    }

    /// A vCPU that loses its CPU with each kick: sending takes 10 cycles, and the wait for a CPU
    /// 1,000.
    #[derive(Default)]
    struct Kicker {
        now: Cell<u64>,
        stolen: Cell<u64>,
    }

    impl Cpu for Kicker {
        fn id(&self) -> VcpuId {
            VcpuId::BOOT
        }
        fn is_preempted(&self, _vcpu: VcpuId) -> bool {
            false
        }
        fn halt_while(&self, _word: &AtomicU32, _value: u32) {}
        fn kick(&self, _vcpu: VcpuId) {
            self.now.set(self.now.get() + 1010);
            self.stolen.set(self.stolen.get() + 1000);
        }
        fn cycles(&self) -> u64 {
            self.now.get()
        }
        fn stolen(&self) -> u64 {
            self.stolen.get()
        }
        fn longest_step(&self) -> u64 {
            100
        }
        fn relax(&self) {}
    }

    #[test]
    fn kick_that_costs_its_sender_the_cpu_counts_what_sending_took() {
        let lot = ParkingLot::new();
        let mut ctx = LockCtx::new(Kicker::default(), WaitPolicy::Spin, &lot);
        lot.slot(vcpu(1)).parked.store(1, Ordering::Relaxed);
        ctx.wake(vcpu(1));
        ctx.wake(vcpu(1));
        assert_eq!((ctx.stats.kicks, ctx.stats.kick_cycles), (1, 10));
    }
}
