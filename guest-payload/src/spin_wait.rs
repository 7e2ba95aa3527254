//! Spin wait: when a spinning waiter stops.
//!
//! Each iteration of a spin loop asks one question: is spinning still worth it? A [`WaitPolicy`]
//! answers it:
//!
//! - **spin**: always. The vCPU waited for will run again, some time slice later.
//! - **threshold**: for a fixed CPU time. It needs no host. But it cannot tell a preempted holder
//!   from a slow one, and it spins its threshold away each time. It is the control that `preempted`
//!   has to beat.
//! - **cap**: for a fixed number of iterations, as Linux' paravirtual locks count.
//! - **preempted**: while the vCPU waited for is running, which the check reads from its record; in
//!   every iteration or every few, acting on the first set byte or on the second. A time limit is
//!   the backstop for waits in which no vCPU can be named.
//! - **yield**: always; but while the vCPU waited for is preempted, ask the host to run it.
//!
//! Spun time is CPU time. A step of the clock that is too long for one iteration does not count:
//! this vCPU was off its own CPU meanwhile.

use protocol::VcpuId;

use crate::cpu::Cpu;

/// What a waiter does while it waits for another vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Spin, and ignore `preempted`.
    Spin,
    /// Spin for this CPU time (cycles).
    Threshold(u64),
    /// Spin for this number of iterations.
    Cap(u32),
    /// Spin while the vCPU waited for is running.
    Preempted {
        /// Iterations between two checks; at least 1.
        every: u32,
        /// Whether to act only on the second set byte in a row.
        twice: bool,
        /// CPU time (cycles) after which a waiter stops in any case. Some locks cannot always name
        /// the vCPU that a waiter waits for.
        backstop: u64,
    },
    /// Spin, and yield to the vCPU waited for while it is preempted.
    Yield {
        /// Iterations between two checks; at least 1.
        every: u32,
    },
}

impl WaitPolicy {
    /// Returns whether a waiter may halt.
    pub const fn may_halt(self) -> bool {
        !matches!(self, Self::Spin | Self::Yield { .. })
    }

    /// Returns whether a waiter reads `preempted`.
    pub const fn reads_preempted(self) -> bool {
        matches!(self, Self::Preempted { .. } | Self::Yield { .. })
    }
}

/// Statistics of the waits of one vCPU. All counts grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitStats {
    /// CPU time spent spinning (cycles).
    pub spin_cycles: u64,
    /// Part of it in which the vCPU waited for was preempted (cycles). Sampled every [`SAMPLED`]
    /// iterations; the waiter does not act on the samples.
    pub wasted_cycles: u64,
    /// Number of halts.
    pub halts: u64,
    /// Time from a halt until this vCPU ran again (cycles).
    pub halt_cycles: u64,
    /// Halts that ended without a wake-up.
    pub spurious_wakes: u64,
    /// Number of kicks sent.
    pub kicks: u64,
    /// CPU time of sending them (cycles).
    pub kick_cycles: u64,
    /// Times that the vCPU waited for was found preempted.
    pub preempted_seen: u64,
    /// Yields to the vCPU waited for.
    pub yields: u64,
    /// Times that this vCPU left a queue or lost its turn in it.
    pub queue_exits: u64,
    /// Acquisitions that overtook queued waiters.
    pub steals: u64,
    /// Halts because the neighbour in the queue did not run, before the policy's own limit.
    pub early_waits: u64,
    /// Times that this vCPU was off its CPU in a place where no waiter could name it as the one to
    /// wait for.
    pub unnamed: u64,
    /// Total time of these (cycles).
    pub unnamed_cycles: u64,
    /// When this vCPU last returned to its CPU while it spun (time in cycles).
    pub back_at: u64,
}

/// Iterations between two samples for [`WaitStats::wasted_cycles`].
pub const SAMPLED: u32 = 64;

/// Iterations between the two checks of [`WaitPolicy::Preempted`] with `twice`: about a
/// microsecond.
const RECHECK: u32 = 32;

/// Longest time that an interrupt takes, in [`Cpu::longest_step`]s. A longer step is an absence.
const INTERRUPTS: u64 = 100;

/// Why a waiter stopped spinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Time,
    Preempted,
}

/// The state of one wait.
#[derive(Debug)]
pub struct SpinWait {
    policy: WaitPolicy,
    /// CPU time spun (cycles).
    spun: u64,
    /// Iterations so far.
    turns: u32,
    /// Time of the last iteration (cycles).
    last: u64,
    /// The iteration at which to check again.
    due: u32,
    /// The vCPU that the last check found preempted, if the policy takes two.
    suspect: Option<VcpuId>,
    /// The vCPU waited for, if known.
    awaited: Option<VcpuId>,
    /// `spun` at the last sample.
    sampled: u64,
    reason: Reason,
}

impl SpinWait {
    /// Starts a wait under `policy`.
    pub fn new(policy: WaitPolicy, cpu: &impl Cpu) -> Self {
        let last = cpu.cycles();
        Self {
            policy,
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

    /// Returns the CPU time spun so far (cycles).
    pub fn spun(&self) -> u64 {
        self.spun
    }

    /// Returns the number of iterations so far.
    pub fn turns(&self) -> u32 {
        self.turns
    }

    /// Spins for one iteration.
    #[inline]
    pub fn spin(&mut self, cpu: &impl Cpu, stats: &mut WaitStats) {
        cpu.relax();
        let now = cpu.cycles();
        let step = now.wrapping_sub(self.last);
        self.last = now;
        self.turns = self.turns.wrapping_add(1);
        if step <= cpu.longest_step() {
            self.spun += step;
            stats.spin_cycles += step;
        } else if is_absence(step, cpu) {
            stats.back_at = now;
        }
        if self.turns.is_multiple_of(SAMPLED) {
            self.sample(cpu, stats);
        }
    }

    fn sample(&mut self, cpu: &impl Cpu, stats: &mut WaitStats) {
        if self.awaited.is_some_and(|awaited| cpu.is_preempted(awaited)) {
            stats.wasted_cycles += self.spun - self.sampled;
        }
        self.sampled = self.spun;
    }

    /// Returns whether to stop spinning for `awaited`, or for a vCPU that cannot be named.
    #[inline]
    pub fn should_stop_spinning(
        &mut self,
        awaited: Option<VcpuId>,
        cpu: &impl Cpu,
        stats: &mut WaitStats,
    ) -> bool {
        self.awaited = awaited;
        self.reason = Reason::Time;
        match self.policy {
            WaitPolicy::Spin => false,
            WaitPolicy::Threshold(cycles) => self.spun > cycles,
            WaitPolicy::Cap(turns) => self.turns > turns,
            WaitPolicy::Preempted { every, twice, backstop } => {
                self.is_seen_preempted(every, twice, cpu, stats) || self.spun > backstop
            }
            WaitPolicy::Yield { every } => {
                if let Some(awaited) = awaited
                    && self.is_seen_preempted(every, false, cpu, stats)
                {
                    stats.yields += 1;
                    cpu.yield_to(awaited);
                }
                false
            }
        }
    }

    /// Runs the check if it is due. Returns whether the policy should act on it.
    #[inline]
    fn is_seen_preempted(&mut self, every: u32, twice: bool, cpu: &impl Cpu, stats: &mut WaitStats) -> bool {
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
            self.due = self.turns.saturating_add(RECHECK.max(every));
            return false;
        }
        stats.preempted_seen += 1;
        self.reason = Reason::Preempted;
        true
    }

    /// Returns whether the reason to stop still applies, now that other vCPUs can see that this one
    /// is about to halt. A time limit that has passed always applies.
    pub fn still_applies(&self, awaited: VcpuId, cpu: &impl Cpu) -> bool {
        self.reason == Reason::Time || cpu.is_preempted(awaited)
    }
}

/// Returns whether a `step` of the clock (cycles) is so long that this vCPU was off its CPU.
pub fn is_absence(step: u64, cpu: &impl Cpu) -> bool {
    step > INTERRUPTS * cpu.longest_step()
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use core::cell::Cell;

    use super::*;
    use crate::sync::AtomicU32;

    /// A CPU whose clock advances by 10 with each read. The test sets whether vCPU 1 is preempted.
    #[derive(Default)]
    struct TestCpu {
        now: Cell<u64>,
        preempted: Cell<bool>,
        checks: Cell<u32>,
        yielded: Cell<u32>,
    }

    impl Cpu for TestCpu {
        fn id(&self) -> VcpuId {
            VcpuId::BOOT
        }
        fn is_preempted(&self, vcpu: VcpuId) -> bool {
            self.checks.set(self.checks.get() + 1);
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

    /// Returns the iteration at which a waiter for vCPU 1 stops; `None` if it does not within
    /// 1,000.
    fn turns(cpu: &TestCpu, policy: WaitPolicy) -> Option<u32> {
        let (mut wait, mut stats) = (SpinWait::new(policy, cpu), WaitStats::default());
        (0..1000).find(|_| {
            if wait.should_stop_spinning(VcpuId::new(1), cpu, &mut stats) {
                return true;
            }
            wait.spin(cpu, &mut stats);
            false
        })
    }

    #[test]
    fn each_policy_stops_by_its_own_rule() {
        let (running, preempted) =
            (TestCpu::default(), TestCpu { preempted: Cell::new(true), ..TestCpu::default() });
        let preempted_policy = |every, twice| WaitPolicy::Preempted { every, twice, backstop: u64::MAX };
        assert_eq!(turns(&preempted, WaitPolicy::Spin), None);
        assert_eq!(turns(&running, WaitPolicy::Threshold(500)), Some(51));
        assert_eq!(turns(&running, WaitPolicy::Cap(500)), Some(501));
        assert_eq!(turns(&preempted, preempted_policy(1, false)), Some(0));
        assert_eq!(turns(&preempted, preempted_policy(1, true)), Some(RECHECK), "second check");
        assert_eq!(turns(&running, preempted_policy(1, false)), None);
        assert_eq!(
            turns(&running, WaitPolicy::Preempted { every: 1, twice: false, backstop: 500 }),
            Some(51)
        );
        assert_eq!(turns(&preempted, WaitPolicy::Yield { every: 100 }), None);
        assert_eq!(preempted.yielded.get(), 10);
    }

    #[test]
    fn preempted_is_read_only_when_a_check_is_due() {
        for (every, checks) in [(1, 1000), (16, 63), (256, 4)] {
            let cpu = TestCpu::default();
            turns(&cpu, WaitPolicy::Preempted { every, twice: false, backstop: u64::MAX });
            // Samples of wasted time also read the byte.
            assert_eq!(cpu.checks.get() - 1000 / SAMPLED, checks, "every {every} iterations");
        }
    }

    #[test]
    fn first_check_is_forgotten_when_the_second_finds_the_vcpu_running() {
        let cpu = TestCpu { preempted: Cell::new(true), ..TestCpu::default() };
        let policy = WaitPolicy::Preempted { every: 1, twice: true, backstop: u64::MAX };
        let (mut wait, mut stats) = (SpinWait::new(policy, &cpu), WaitStats::default());
        assert!(!wait.should_stop_spinning(VcpuId::new(1), &cpu, &mut stats));
        (0..RECHECK).for_each(|_| wait.spin(&cpu, &mut stats));
        cpu.preempted.set(false);
        assert!(!wait.should_stop_spinning(VcpuId::new(1), &cpu, &mut stats));
        assert_eq!(stats.preempted_seen, 0);
    }

    #[test]
    fn spinning_for_a_preempted_vcpu_counts_as_wasted_under_any_policy() {
        let cpu = TestCpu { preempted: Cell::new(true), ..TestCpu::default() };
        let (mut wait, mut stats) = (SpinWait::new(WaitPolicy::Spin, &cpu), WaitStats::default());
        for _ in 0..10 * SAMPLED {
            assert!(!wait.should_stop_spinning(VcpuId::new(1), &cpu, &mut stats));
            wait.spin(&cpu, &mut stats);
        }
        assert_eq!((stats.wasted_cycles, stats.spin_cycles), (6400, 6400));
    }
}
