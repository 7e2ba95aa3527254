//! The decision log: what a policy decided, and when it was applied.

use crate::policy::schedule::Refusal;
use crate::policy::{Cpu, Ns, Vcpu};

/// Capacity of each list; the log counts further entries as lost.
const CAPACITY: usize = 1 << 18;

/// A change of the assignment of a CPU. Timestamps are of `CLOCK_MONOTONIC` (ns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignmentChange {
    /// When the event was due; for an event without a due time, when the policy decided.
    pub due_ns: Ns,
    /// When the policy decided.
    pub decided_ns: Ns,
    /// When all system calls for it had returned.
    pub applied_ns: Ns,
    /// The CPU.
    pub cpu: Cpu,
    /// The vCPU that was assigned; `None` if the CPU was idle or the host's.
    pub from: Option<Vcpu>,
    /// The vCPU that is assigned; `None` if the CPU is idle or the host's.
    pub to: Option<Vcpu>,
    /// Whether the host's scheduler chooses on this CPU from now on.
    pub to_host: bool,
}

impl AssignmentChange {
    /// Returns the time from the moment at which the event was due to the decision (ns).
    pub fn decision_delay_ns(&self) -> Ns {
        self.decided_ns.saturating_sub(self.due_ns)
    }
}

/// A vCPU was throttled or unthrottled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleChange {
    /// When the policy decided (ns, `CLOCK_MONOTONIC`).
    pub decided_ns: Ns,
    /// The vCPU.
    pub vcpu: Vcpu,
    /// Whether it is throttled from now on.
    pub is_throttled: bool,
}

/// Number of refused decisions, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// A slice or timer would have ended in the past.
    pub late: u64,
    /// The decisions on one event contradicted each other.
    pub contradictory: u64,
    /// A CPU or vCPU did not exist.
    pub impossible: u64,
}

impl Refused {
    /// Returns the sum.
    pub fn total(self) -> u64 {
        self.late + self.contradictory + self.impossible
    }
}

/// The decisions of a session.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Changes of assignments, in order.
    pub assignments: Vec<AssignmentChange>,
    /// Changes of throttling, in order.
    pub throttles: Vec<ThrottleChange>,
    /// Number of entries that full lists dropped.
    pub lost: u64,
    /// Number of events delivered to the policy.
    pub events: u64,
    /// Refused decisions.
    pub refused: Refused,
    /// Number of ticks without a valid decision for their CPU. The slice was extended.
    pub unanswered_ticks: u64,
    /// Number of events that the guests caused: doorbells and changed hints.
    pub guest_events: u64,
}

impl Log {
    /// Creates a log with room for a usual session, so that recording does not allocate.
    pub(super) fn with_room() -> Self {
        Self {
            assignments: Vec::with_capacity(CAPACITY / 8),
            throttles: Vec::with_capacity(CAPACITY / 64),
            ..Self::default()
        }
    }

    pub(super) fn add_assignment(&mut self, change: AssignmentChange) {
        self.lost += u64::from(!push_bounded(&mut self.assignments, CAPACITY, change));
    }

    pub(super) fn add_throttle(&mut self, change: ThrottleChange) {
        self.lost += u64::from(!push_bounded(&mut self.throttles, CAPACITY, change));
    }

    pub(super) fn add_refusal(&mut self, refusal: Refusal) {
        *match refusal {
            Refusal::Late => &mut self.refused.late,
            Refusal::Contradictory => &mut self.refused.contradictory,
            Refusal::Impossible => &mut self.refused.impossible,
        } += 1;
    }
}

/// Adds `entry` unless the list has `capacity` entries; returns whether it did.
pub(super) fn push_bounded<T>(list: &mut Vec<T>, capacity: usize, entry: T) -> bool {
    let has_room = list.len() < capacity;
    if has_room {
        list.push(entry);
    }
    has_room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_lists_drop_later_decisions_and_count_them() {
        let mut log = Log::with_room();
        let change = AssignmentChange {
            due_ns: 0,
            decided_ns: 0,
            applied_ns: 0,
            cpu: 0,
            from: None,
            to: None,
            to_host: false,
        };
        for decided_ns in 0..1_000_000 {
            log.add_assignment(AssignmentChange { decided_ns, ..change });
            log.add_throttle(ThrottleChange { decided_ns, vcpu: 0, is_throttled: true });
        }
        assert_eq!((log.assignments.len(), log.throttles.len()), (CAPACITY, CAPACITY));
        assert_eq!(log.lost, 2 * (1_000_000 - CAPACITY as u64));
        assert_eq!(log.assignments.last().map(|last| last.decided_ns), Some(CAPACITY as u64 - 1));
    }
}
