//! Patience: when a spinning waiter stops.
//!
//! A spin loop asks one question each time around: is it still worth it? There are three ways to answer:
//!
//! - **ignore**: always. Whoever is waited for will come, some time slice or other.
//! - **threshold**: for so much spun CPU time. It needs no host; but it cannot tell a holder that was preempted from one
//!   that is merely slow, and it spins its threshold away each time.
//! - **byte**: while the vCPU waited for is running. It asks the host, through the check.
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
    /// Spin while the vCPU waited for is running. The cycles are for locks that cannot always name it: see
    /// [`Patience::is_exhausted`].
    Byte {
        /// CPU time after which a waiter that can blame nobody stops all the same.
        backstop: u64,
    },
}

/// What waiting has cost one vCPU. Counts only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// CPU time spent spinning (cycles).
    pub spin_cycles: u64,
    /// Times halted.
    pub halts: u64,
    /// Time from entering a halt to going on (cycles).
    pub halt_cycles: u64,
    /// Kicks sent.
    pub kicks: u64,
    /// CPU time that sending them took (cycles).
    pub kick_cycles: u64,
    /// Times that the vCPU waited for was seen to be preempted.
    pub preempted_seen: u64,
    /// Times that a queue was left, or a turn in it lost.
    pub queue_exits: u64,
}

/// One wait's patience.
#[derive(Debug)]
pub struct Patience {
    strategy: Strategy,
    spun: u64,
    last: u64,
}

impl Patience {
    /// Patience at its beginning.
    pub fn new(strategy: Strategy, cpu: &impl Cpu) -> Self {
        Self { strategy, spun: 0, last: cpu.cycles() }
    }

    /// Spins once.
    #[inline]
    pub fn spin(&mut self, cpu: &impl Cpu, tally: &mut Tally) {
        cpu.relax();
        let now = cpu.cycles();
        let step = now.wrapping_sub(self.last);
        self.last = now;
        if step <= cpu.longest_step() {
            self.spun += step;
            tally.spin_cycles += step;
        }
    }

    /// Whether to stop spinning for `awaited`.
    #[inline]
    pub fn is_lost_on(&self, awaited: VcpuId, cpu: &impl Cpu, tally: &mut Tally) -> bool {
        match self.strategy {
            Strategy::Ignore => false,
            Strategy::Threshold(cycles) => self.spun > cycles,
            Strategy::Byte { .. } => {
                let preempted = cpu.is_preempted(awaited);
                tally.preempted_seen += u64::from(preempted);
                preempted
            }
        }
    }

    /// Whether to stop spinning although nobody can be blamed.
    ///
    /// A queue that is passed on has moments in which nobody can name the next holder: between taking a ticket and
    /// writing one's name beside it, say. A vCPU that is preempted there is blamed by no byte, and everybody behind it
    /// would spin its time slice away.
    #[inline]
    pub fn is_exhausted(&self) -> bool {
        match self.strategy {
            Strategy::Ignore => false,
            Strategy::Threshold(cycles) | Strategy::Byte { backstop: cycles } => self.spun > cycles,
        }
    }
}
