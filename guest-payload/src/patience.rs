//! Patience: when a spinning waiter stops.
//!
//! A spin loop asks one question each time around: is it still worth it? A [`Strategy`] is a way to answer:
//!
//! - **ignore**: always. Whoever is waited for will come, some time slice or other.
//! - **threshold**: for so much spun CPU time. It needs no host; but it cannot tell a holder that was preempted from one
//!   that is merely slow, and it spins its threshold away each time. The control that the byte has to beat.
//! - **cap**: for so many turns of the loop, as Linux' paravirtual locks count.
//! - **byte**: while the vCPU waited for is running. It asks the host, through the check: each time around, or each so many
//!   times; at once, or only when it has been told the same twice. Time is its backstop, for where nobody can be blamed.
//! - **yield**: as long as it takes; but while the vCPU waited for is not running, it offers that one its own CPU.
//!
//! Spun time is CPU time: steps of the clock that are too long to be ours, because this vCPU was off its own CPU, do not
//! count.

use protocol::VcpuId;

use crate::cpu::Cpu;

/// A way to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Spin, whatever happens.
    Ignore,
    /// Spin for this much CPU time (cycles).
    Threshold(u64),
    /// Spin for so many turns of the loop.
    Cap(u32),
    /// Spin while the vCPU waited for is running.
    Byte {
        /// Turns of the loop between two checks; at least 1.
        every: u32,
        /// Whether to act only on the second check that says so.
        twice: bool,
        /// CPU time (cycles) after which a waiter stops all the same: some locks cannot always name whom they wait for.
        backstop: u64,
    },
    /// Spin, but let the vCPU waited for have this one's CPU while it is not running.
    Yield {
        /// Turns of the loop between two checks; at least 1.
        every: u32,
    },
}

impl Strategy {
    /// Whether a waiter ever halts.
    pub const fn halts(self) -> bool {
        !matches!(self, Self::Ignore | Self::Yield { .. })
    }

    /// Whether a waiter asks the host who is running.
    pub const fn asks(self) -> bool {
        matches!(self, Self::Byte { .. } | Self::Yield { .. })
    }
}

/// What waiting has cost one vCPU. Counts only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// CPU time spent spinning (cycles).
    pub spin_cycles: u64,
    /// Of it, while the vCPU waited for was preempted (cycles): by a sample each [`SAMPLED`] turns, which nobody acts on.
    pub wasted_cycles: u64,
    /// Times halted.
    pub halts: u64,
    /// Time from entering a halt to going on (cycles).
    pub halt_cycles: u64,
    /// Halts that ended although nobody had woken this vCPU.
    pub spurious_wakes: u64,
    /// Kicks sent.
    pub kicks: u64,
    /// CPU time that sending them took (cycles).
    pub kick_cycles: u64,
    /// Times that the vCPU waited for was seen to be preempted.
    pub preempted_seen: u64,
    /// Times that a vCPU waited for was offered this one's CPU.
    pub yields: u64,
    /// Times that a queue was left, or a turn in it lost.
    pub queue_exits: u64,
    /// Times that a lock was taken past others who were queueing for it.
    pub steals: u64,
    /// Times that a waiter halted because its neighbour in the queue did not run, before it had spun for as long as it may.
    pub early_waits: u64,
    /// Times that this vCPU was off its CPU where no other could have named it as the one to wait for.
    pub unnamed: u64,
    /// For how long (cycles).
    pub unnamed_cycles: u64,
    /// When it last came back to its CPU while it was spinning (cycles of the clock).
    pub back_at: u64,
}

/// Turns of the loop between two samples for [`Tally::wasted_cycles`].
pub const SAMPLED: u32 = 64;

/// Turns of the loop between the two checks of a waiter that wants to be told twice: about a microsecond.
const DOUBT: u32 = 32;

/// Absences shorter than this many of [`Cpu::longest_step`] are interrupts.
const INTERRUPTS: u64 = 100;

/// Why a waiter stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Time,
    Byte,
}

/// One wait's patience.
#[derive(Debug)]
pub struct Patience {
    strategy: Strategy,
    /// CPU time spun (cycles).
    spun: u64,
    /// Turns of the loop.
    turns: u32,
    last: u64,
    /// The turn at which to check again.
    due: u32,
    /// Whom the last check said to be preempted, where it takes two.
    suspect: Option<VcpuId>,
    /// Who is waited for, as far as known.
    awaited: Option<VcpuId>,
    /// `spun` at the last sample.
    sampled: u64,
    reason: Reason,
}

impl Patience {
    /// Patience at its beginning.
    pub fn new(strategy: Strategy, cpu: &impl Cpu) -> Self {
        let last = cpu.cycles();
        Self {
            strategy,
            spun: 0,
            turns: 0,
            last,
            due: 0,
            suspect: None,
            awaited: None,
            sampled: 0,
            reason: Reason::Time,
        }
    }

    /// CPU time spun so far (cycles).
    pub fn spun(&self) -> u64 {
        self.spun
    }

    /// Turns so far.
    pub fn turns(&self) -> u32 {
        self.turns
    }

    /// Spins once.
    #[inline]
    pub fn spin(&mut self, cpu: &impl Cpu, tally: &mut Tally) {
        cpu.relax();
        let now = cpu.cycles();
        let step = now.wrapping_sub(self.last);
        self.last = now;
        self.turns = self.turns.wrapping_add(1);
        if step <= cpu.longest_step() {
            self.spun += step;
            tally.spin_cycles += step;
        } else if is_absence(step, cpu) {
            tally.back_at = now;
        }
        if self.turns.is_multiple_of(SAMPLED) {
            self.sample(cpu, tally);
        }
    }

    fn sample(&mut self, cpu: &impl Cpu, tally: &mut Tally) {
        if self.awaited.is_some_and(|awaited| cpu.is_preempted(awaited)) {
            tally.wasted_cycles += self.spun - self.sampled;
        }
        self.sampled = self.spun;
    }

    /// Whether to stop spinning for `awaited`, or for somebody whom nobody can name.
    #[inline]
    pub fn is_lost_on(&mut self, awaited: Option<VcpuId>, cpu: &impl Cpu, tally: &mut Tally) -> bool {
        self.awaited = awaited;
        self.reason = Reason::Time;
        match self.strategy {
            Strategy::Ignore => false,
            Strategy::Threshold(cycles) => self.spun > cycles,
            Strategy::Cap(turns) => self.turns > turns,
            Strategy::Byte { every, twice, backstop } => {
                self.is_seen_preempted(every, twice, cpu, tally) || self.spun > backstop
            }
            Strategy::Yield { every } => {
                if let Some(awaited) = awaited
                    && self.is_seen_preempted(every, false, cpu, tally)
                {
                    tally.yields += 1;
                    cpu.yield_to(awaited);
                }
                false
            }
        }
    }

    /// The check, if it is due.
    #[inline]
    fn is_seen_preempted(&mut self, every: u32, twice: bool, cpu: &impl Cpu, tally: &mut Tally) -> bool {
        let Some(awaited) = self.awaited else { return false };
        if self.turns < self.due {
            return false;
        }
        self.due = self.turns.saturating_add(every);
        if !cpu.is_preempted(awaited) {
            self.suspect = None;
            return false;
        }
        if twice && self.suspect != Some(awaited) {
            self.suspect = Some(awaited);
            self.due = self.turns.saturating_add(DOUBT.max(every));
            return false;
        }
        tally.preempted_seen += 1;
        self.reason = Reason::Byte;
        true
    }

    /// Whether what made us stop is still so, now that everybody knows that we are about to halt. Time does not come back.
    pub fn still_blames(&self, awaited: VcpuId, cpu: &impl Cpu) -> bool {
        self.reason == Reason::Time || cpu.is_preempted(awaited)
    }
}

/// Whether a `step` of the clock is so long that this vCPU was off its CPU: more than an interrupt takes.
pub fn is_absence(step: u64, cpu: &impl Cpu) -> bool {
    step > INTERRUPTS * cpu.longest_step()
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use core::cell::Cell;

    use super::*;
    use crate::sync::AtomicU32;

    /// A CPU whose clock steps by 10, and on which vCPU 1 is preempted when it is said to be.
    #[derive(Default)]
    struct Desk {
        now: Cell<u64>,
        preempted: Cell<bool>,
        asked: Cell<u32>,
        yielded: Cell<u32>,
    }

    impl Cpu for Desk {
        fn id(&self) -> VcpuId {
            VcpuId::BOOT
        }
        fn is_preempted(&self, vcpu: VcpuId) -> bool {
            self.asked.set(self.asked.get() + 1);
            vcpu.index() == 1 && self.preempted.get()
        }
        fn halt_while(&self, _word: &AtomicU32, _value: u32) {}
        fn kick(&self, _vcpu: VcpuId) {}
        fn yield_to(&self, _vcpu: VcpuId) {
            self.yielded.set(self.yielded.get() + 1);
        }
        fn cycles(&self) -> u64 {
            self.now.set(self.now.get() + 10);
            self.now.get()
        }
        fn stolen(&self) -> u64 {
            0
        }
        fn longest_step(&self) -> u64 {
            100
        }
        fn relax(&self) {}
    }

    /// Turns until a waiter for vCPU 1 stops, `None` if it does not within a thousand.
    fn turns(desk: &Desk, strategy: Strategy) -> Option<u32> {
        let (mut patience, mut tally) = (Patience::new(strategy, desk), Tally::default());
        (0..1000).find(|_| {
            if patience.is_lost_on(VcpuId::new(1), desk, &mut tally) {
                return true;
            }
            patience.spin(desk, &mut tally);
            false
        })
    }

    #[test]
    fn each_strategy_stops_by_its_own_rule() {
        let (running, preempted) = (Desk::default(), Desk { preempted: Cell::new(true), ..Desk::default() });
        let byte = |every, twice| Strategy::Byte { every, twice, backstop: u64::MAX };
        assert_eq!(turns(&preempted, Strategy::Ignore), None);
        assert_eq!(turns(&running, Strategy::Threshold(500)), Some(51));
        assert_eq!(turns(&running, Strategy::Cap(500)), Some(501));
        assert_eq!(turns(&preempted, byte(1, false)), Some(0));
        assert_eq!(turns(&preempted, byte(1, true)), Some(DOUBT), "told twice");
        assert_eq!(turns(&running, byte(1, false)), None);
        assert_eq!(turns(&running, Strategy::Byte { every: 1, twice: false, backstop: 500 }), Some(51));
        assert_eq!(turns(&preempted, Strategy::Yield { every: 100 }), None);
        assert_eq!(preempted.yielded.get(), 10);
    }

    #[test]
    fn byte_is_asked_only_when_a_check_is_due() {
        for (every, checks) in [(1, 1000), (16, 63), (256, 4)] {
            let desk = Desk::default();
            turns(&desk, Strategy::Byte { every, twice: false, backstop: u64::MAX });
            // The samples nobody acts on come besides.
            assert_eq!(desk.asked.get() - 1000 / SAMPLED, checks, "each {every} turns");
        }
    }

    #[test]
    fn doubt_is_over_when_the_second_check_says_otherwise() {
        let desk = Desk { preempted: Cell::new(true), ..Desk::default() };
        let strategy = Strategy::Byte { every: 1, twice: true, backstop: u64::MAX };
        let (mut patience, mut tally) = (Patience::new(strategy, &desk), Tally::default());
        assert!(!patience.is_lost_on(VcpuId::new(1), &desk, &mut tally));
        (0..DOUBT).for_each(|_| patience.spin(&desk, &mut tally));
        desk.preempted.set(false);
        assert!(!patience.is_lost_on(VcpuId::new(1), &desk, &mut tally));
        assert_eq!(tally.preempted_seen, 0);
    }

    #[test]
    fn spinning_for_a_preempted_vcpu_is_wasted_whatever_the_strategy() {
        let desk = Desk { preempted: Cell::new(true), ..Desk::default() };
        let (mut patience, mut tally) = (Patience::new(Strategy::Ignore, &desk), Tally::default());
        for _ in 0..10 * SAMPLED {
            assert!(!patience.is_lost_on(VcpuId::new(1), &desk, &mut tally));
            patience.spin(&desk, &mut tally);
        }
        assert_eq!((tally.wasted_cycles, tally.spin_cycles), (6400, 6400));
    }
}
