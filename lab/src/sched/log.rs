//! The log: what was decided, and when it was carried out.

use crate::policy::schedule::Refusal;
use crate::policy::{Cpu, Ns, Vcpu};

/// As many switches are kept; more are counted.
const MOST: usize = 1 << 18;

/// Another one was chosen for a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// When the policy was due to be asked (ns of the monotonic clock); when it was, if nothing was due.
    pub due_ns: Ns,
    /// When it had decided.
    pub decided_ns: Ns,
    /// When all that takes had been called for.
    pub done_ns: Ns,
    /// Where.
    pub cpu: Cpu,
    /// Who was to run so far; `None` for nobody, or whom the host liked.
    pub from: Option<Vcpu>,
    /// Who is to run now.
    pub to: Option<Vcpu>,
    /// Whether the CPU is the host's to give from now on.
    pub is_hosts: bool,
}

/// A vCPU was parked by policy, or is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// When that was decided.
    pub at_ns: Ns,
    /// Which.
    pub vcpu: Vcpu,
    /// Whether it is stopped from now on.
    pub is_stopped: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Who was chosen where.
    pub chosen: Vec<Chosen>,
    /// Who was parked.
    pub stopped: Vec<Stopped>,
    /// Entries that found no room.
    pub lost: u64,
    /// Times that the policy was asked.
    pub asked: u64,
    /// What it decided that was not taken: too late, contradictory, impossible.
    pub refused: [u64; 3],
    /// Ticks that it gave no usable answer to: what was planned went on.
    pub unanswered: u64,
    /// Events that the guests rang for, and hints.
    pub rings: u64,
}

impl Log {
    /// With room for what a run holds, so that nothing is allocated under way.
    pub(super) fn with_room() -> Self {
        Self {
            chosen: Vec::with_capacity(MOST / 8),
            stopped: Vec::with_capacity(MOST / 64),
            ..Self::default()
        }
    }

    pub(super) fn choose(&mut self, chosen: Chosen) {
        if self.chosen.len() < MOST {
            self.chosen.push(chosen);
        } else {
            self.lost += 1;
        }
    }

    pub(super) fn stop(&mut self, stopped: Stopped) {
        if self.stopped.len() < MOST {
            self.stopped.push(stopped);
        } else {
            self.lost += 1;
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refused[match refusal {
            Refusal::Late => 0,
            Refusal::Contradictory => 1,
            Refusal::Impossible => 2,
        }] += 1;
    }
}
