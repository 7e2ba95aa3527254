//! Parking: how a waiter halts, and who wakes it.
//!
//! Each vCPU has a spot with one word: 1 while it is parked, or about to be. Each lock has a set of those who are parked
//! for it. Why no wake-up is lost:
//!
//! - The waiter sets its word, enters the set, and then looks at the lock once more. Whoever releases first lets the lock
//!   go, then looks at the set. All four are sequentially consistent, so at least one of the two sees the other: either
//!   the waiter does not halt, or it is woken.
//! - Whoever wakes takes the word from 1 to 0 by an exchange, and kicks only if it was 1. The halt tests the word
//!   again with interrupts off, so a kick between test and halt ends the halt.
//! - A kick is sent after the lock is released, never inside: it may cost its sender the CPU.
//!
//! **Off-line.** A vCPU that was woken but has no CPU yet is invisible to the byte: it slept, so the byte says 0. A lock
//! that passes its turn on must know, so the vCPU itself keeps a second word: set before it halts, cleared when it
//! runs again.

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::patience::{Patience, Strategy, Tally, is_absence};
use crate::sync::{AtomicU32, AtomicU64, Ordering, PLACES, each, maker};

/// A vCPU's spot, on cache lines of its own.
#[repr(align(128))]
struct Spot {
    parked: AtomicU32,
    off_line: AtomicU32,
    /// When it was last parked (cycles).
    since: AtomicU64,
    /// When it was last kicked (cycles).
    kicked: AtomicU64,
}

/// Everybody's spot.
pub struct Lot([Spot; PLACES]);

impl Spot {
    maker! {
        fn new() -> Self {
            Self {
                parked: AtomicU32::new(0),
                off_line: AtomicU32::new(0),
                since: AtomicU64::new(0),
                kicked: AtomicU64::new(0),
            }
        }
    }
}

impl Lot {
    maker! {
        /// Nobody is parked.
        pub fn new() -> Self {
            Self(each![Spot::new(); PLACES])
        }
    }

    /// Whether `vcpu` is parked, or about to be.
    pub fn is_parked(&self, vcpu: VcpuId) -> bool {
        self.spot(vcpu).parked.load(Ordering::SeqCst) != 0
    }

    /// Whether `vcpu` has halted and does not run again yet, woken or not.
    pub fn is_off_line(&self, vcpu: VcpuId) -> bool {
        self.spot(vcpu).off_line.load(Ordering::SeqCst) != 0
    }

    fn spot(&self, vcpu: VcpuId) -> &Spot {
        &self.0[vcpu.index()]
    }
}

impl Default for Lot {
    fn default() -> Self {
        Self::new()
    }
}

/// Who is parked for one lock.
#[repr(align(64))]
pub struct Waiters([AtomicU64; PLACES.div_ceil(64)]);

impl Waiters {
    maker! {
        /// Nobody.
        pub fn new() -> Self {
            Self(each![AtomicU64::new(0); PLACES.div_ceil(64)])
        }
    }

    /// Adds `vcpu`.
    pub fn add(&self, vcpu: VcpuId) {
        let (word, bit) = Self::place(vcpu);
        self.0[word].fetch_or(bit, Ordering::SeqCst);
    }

    /// Takes `vcpu` out, and says whether it was in. Of several who try, one does it.
    pub fn remove(&self, vcpu: VcpuId) -> bool {
        let (word, bit) = Self::place(vcpu);
        self.0[word].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// The one that has been parked for longest.
    pub fn longest(&self, lot: &Lot) -> Option<VcpuId> {
        self.iter().min_by_key(|vcpu| lot.spot(*vcpu).since.load(Ordering::Relaxed))
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| bits.load(Ordering::SeqCst) == 0)
    }

    /// One for whom `is_it` holds.
    pub fn find(&self, is_it: impl Fn(VcpuId) -> bool) -> Option<VcpuId> {
        self.iter().find(|vcpu| is_it(*vcpu))
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

impl Default for Waiters {
    fn default() -> Self {
        Self::new()
    }
}

/// A vCPU that takes locks: its machine, its way to wait, its spot, what waiting has cost it.
pub struct Me<'l, C> {
    /// The machine.
    pub cpu: C,
    /// The way to wait.
    pub strategy: Strategy,
    /// Everybody's spots.
    pub lot: &'l Lot,
    /// What waiting has cost.
    pub tally: Tally,
}

impl<'l, C: Cpu> Me<'l, C> {
    /// A vCPU that has not waited yet.
    pub fn new(cpu: C, strategy: Strategy, lot: &'l Lot) -> Self {
        Self { cpu, strategy, lot, tally: Tally::default() }
    }

    /// Which vCPU this is.
    pub fn id(&self) -> VcpuId {
        self.cpu.id()
    }

    /// A wait begins.
    pub fn patience(&self) -> Patience {
        Patience::new(self.strategy, &self.cpu)
    }

    /// Spins once.
    #[inline]
    pub fn spin(&mut self, patience: &mut Patience) {
        patience.spin(&self.cpu, &mut self.tally);
    }

    /// Whether to stop spinning for `awaited`, or for somebody whom nobody can name.
    #[inline]
    pub fn gives_up_on(&mut self, awaited: Option<VcpuId>, patience: &mut Patience) -> bool {
        patience.is_lost_on(awaited, &self.cpu, &mut self.tally)
    }

    /// Whether to stop spinning for a neighbour in a queue, behind whom the turn does not come while he is preempted, or
    /// halted.
    #[inline]
    pub fn gives_up_behind(&mut self, neighbour: Option<VcpuId>, patience: &mut Patience) -> bool {
        let is_early = matches!(self.strategy, Strategy::Byte { .. })
            && neighbour.is_some_and(|neighbour| self.lot.is_off_line(neighbour));
        self.tally.early_waits += u64::from(is_early);
        is_early || self.gives_up_on(neighbour, patience)
    }

    /// Does what leaves this vCPU, while it lasts, to be waited for by others who cannot name it; counts absences.
    #[inline]
    pub fn unnamed<R>(&mut self, deed: impl FnOnce(&mut Self) -> R) -> R {
        let began = self.cpu.cycles();
        let result = deed(self);
        let took = self.cpu.cycles().wrapping_sub(began);
        if is_absence(took, &self.cpu) {
            self.tally.unnamed += 1;
            self.tally.unnamed_cycles += took;
        }
        result
    }

    /// Whether `vcpu` cannot do anything now: preempted, or halted and not running again yet.
    pub fn is_off_cpu(&self, vcpu: VcpuId) -> bool {
        self.cpu.is_preempted(vcpu) || self.lot.is_off_line(vcpu)
    }

    /// Parks for a lock whose waiters are `waiters`, unless `is_hopeless` finds, once everybody can see that we are
    /// about to, that it is not (any more). On return we are parked no more, and not in the set.
    pub fn park_if(&mut self, waiters: &Waiters, is_hopeless: impl FnOnce(&Self) -> bool) {
        self.announce();
        waiters.add(self.id());
        if is_hopeless(self) {
            self.halt();
        } else {
            self.cancel();
        }
        waiters.remove(self.id());
    }

    /// Says that we are about to halt. What we then find in the lock decides whether we do.
    pub fn announce(&self) {
        let spot = self.lot.spot(self.id());
        spot.since.store(self.cpu.cycles(), Ordering::Relaxed);
        spot.parked.store(1, Ordering::SeqCst);
    }

    /// Takes [`Me::announce`] back. `false` if somebody was quicker and has woken us.
    pub fn cancel(&self) -> bool {
        self.lot.spot(self.id()).parked.swap(0, Ordering::SeqCst) == 1
    }

    /// Halts until somebody wakes us.
    pub fn halt(&mut self) {
        let spot = self.lot.spot(self.id());
        let began = self.cpu.cycles();
        spot.off_line.store(1, Ordering::SeqCst);
        while spot.parked.load(Ordering::SeqCst) == 1 {
            self.tally.halts += 1;
            self.cpu.halt_while(&spot.parked, 1);
            self.tally.spurious_wakes += u64::from(spot.parked.load(Ordering::Relaxed) == 1);
        }
        spot.off_line.store(0, Ordering::SeqCst);
        let now = self.cpu.cycles();
        self.tally.halt_cycles += now.wrapping_sub(began);
        let kicked = spot.kicked.load(Ordering::Relaxed);
        if kicked > began {
            self.cpu.record_wake(now.saturating_sub(kicked));
        }
    }

    /// Wakes `vcpu` if it is parked, and says whether it was. The lock is released.
    pub fn wake(&mut self, vcpu: VcpuId) -> bool {
        let spot = self.lot.spot(vcpu);
        // Most are not parked, and need no write to say so.
        let is_ours = spot.parked.load(Ordering::SeqCst) == 1 && spot.parked.swap(0, Ordering::SeqCst) == 1;
        if is_ours {
            let began = self.own_cycles();
            spot.kicked.store(self.cpu.cycles(), Ordering::Relaxed);
            self.cpu.kick(vcpu);
            self.tally.kicks += 1;
            self.tally.kick_cycles += self.own_cycles().saturating_sub(began);
        }
        is_ours
    }

    /// The clock, without the time for which this vCPU was kept from running: a kick may cost its sender the CPU, and
    /// that the woken one runs meanwhile is no cost.
    fn own_cycles(&self) -> u64 {
        self.cpu.cycles().saturating_sub(self.cpu.stolen())
    }

    /// Wakes the one of `waiters` that has been parked for longest, and takes it out; says whether there was one. The lock
    /// is released.
    pub fn wake_longest(&mut self, waiters: &Waiters) -> bool {
        let longest = waiters.longest(self.lot);
        if let Some(vcpu) = longest {
            waiters.remove(vcpu);
            self.wake(vcpu);
        }
        longest.is_some()
    }

    /// Halts unless `is_over` finds, once everybody can see that we are about to, that there is no need (any more). Whoever
    /// makes it so wakes us by name.
    pub fn halt_unless(&mut self, is_over: impl FnOnce(&Self) -> bool) {
        self.announce();
        if is_over(self) {
            self.cancel();
        } else {
            self.halt();
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
        let (lot, waiters) = (Lot::new(), Waiters::new());
        for (index, since) in [(0, 30), (63, 20), (64, 10), (254, 40)] {
            lot.spot(vcpu(index)).since.store(since, Ordering::Relaxed);
            waiters.add(vcpu(index));
        }
        for expected in [64, 63, 0, 254] {
            let longest = waiters.longest(&lot).unwrap();
            assert_eq!(longest.index(), expected);
            waiters.remove(longest);
        }
        assert_eq!(waiters.longest(&lot), None);
    }

    /// A CPU that loses its CPU with each kick: sending one takes 10 cycles, and then it waits for 1000.
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
        let lot = Lot::new();
        let mut me = Me::new(Kicker::default(), Strategy::Ignore, &lot);
        lot.spot(vcpu(1)).parked.store(1, Ordering::Relaxed);
        me.wake(vcpu(1));
        me.wake(vcpu(1));
        assert_eq!((me.tally.kicks, me.tally.kick_cycles), (1, 10));
    }
}
