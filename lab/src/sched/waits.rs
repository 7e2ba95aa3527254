//! How long a vCPU has waited for a CPU, with the wait that lasts.
//!
//! The kernel counts run delay when a wait ends. A policy that runs the vCPU that has waited
//! longest needs it earlier: otherwise the figure of a waiting vCPU stands still, and the figure of
//! the one that runs is the largest. But what a thread does between two readings is known in most
//! cases. A thread that did not block in between either ran or waited.

use crate::policy::Ns;

/// A reading of a vCPU and its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VcpuReading {
    /// The moment (ns, `CLOCK_MONOTONIC`).
    pub(super) at: Ns,
    /// CPU time of the thread so far (ns).
    pub(super) ran: Ns,
    /// Waits that have ended (ns): run delay, and time for which the vCPU was descheduled.
    pub(super) ended_waits: Ns,
    /// Number of times that the thread blocked.
    pub(super) sleeps: u64,
    /// The thread sleeps.
    pub(super) is_asleep: bool,
    /// Since when the vCPU is descheduled (ns, `CLOCK_MONOTONIC`).
    pub(super) descheduled_since: Option<Ns>,
}

impl VcpuReading {
    /// Whether the thread is blocked in the guest. A descheduled thread sleeps outside.
    pub(super) fn is_halted(&self) -> bool {
        self.is_asleep && self.descheduled_since.is_none()
    }
}

/// The waits of one vCPU so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waits {
    last: Option<VcpuReading>,
    waited: Ns,
}

impl Waits {
    /// Adds `reading`. Returns how long the vCPU has waited so far (ns). It never decreases.
    pub(super) fn add(&mut self, reading: VcpuReading) -> Ns {
        let waited = match (self.last, reading.descheduled_since) {
            (_, Some(since)) => reading.ended_waits + reading.at.saturating_sub(since),
            (Some(last), None) if !reading.is_asleep && has_not_blocked(last, reading) => {
                let wall = reading.at.saturating_sub(last.at);
                self.waited + wall.saturating_sub(reading.ran.saturating_sub(last.ran))
            }
            // Halted; or it blocked, or may have: a wait that lasts began at an unknown moment.
            _ => reading.ended_waits,
        };
        self.last = Some(reading);
        self.waited = self.waited.max(waited).max(reading.ended_waits);
        self.waited
    }
}

/// Whether the thread either ran or waited, all the time from `last` to `now`.
fn has_not_blocked(last: VcpuReading, now: VcpuReading) -> bool {
    last.sleeps == now.sleeps && (!last.is_asleep || last.descheduled_since.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: VcpuReading = VcpuReading {
        at: 1_000,
        ran: 100,
        ended_waits: 40,
        sleeps: 7,
        is_asleep: false,
        descheduled_since: None,
    };

    #[test]
    fn wait_in_the_run_queue_grows_while_it_lasts_and_counts_once() {
        let mut waits = Waits::default();
        assert_eq!(waits.add(RUNS), 40);
        // It runs for 60, and then waits
        assert_eq!(waits.add(VcpuReading { at: 1_100, ran: 160, ..RUNS }), 80);
        assert_eq!(waits.add(VcpuReading { at: 1_200, ran: 160, ..RUNS }), 180);
        // The kernel counts the wait of 190 when it has ended
        assert_eq!(waits.add(VcpuReading { at: 1_300, ran: 210, ended_waits: 230, ..RUNS }), 230);
        assert_eq!(waits.add(VcpuReading { at: 1_400, ran: 310, ended_waits: 230, ..RUNS }), 230);
    }

    #[test]
    fn descheduled_vcpu_waits_though_its_thread_sleeps() {
        let mut waits = Waits::default();
        assert_eq!(waits.add(RUNS), 40);
        let held = VcpuReading { sleeps: 8, is_asleep: true, descheduled_since: Some(1_050), ..RUNS };
        assert_eq!(waits.add(VcpuReading { at: 1_200, ran: 150, ..held }), 190);
        assert_eq!(waits.add(VcpuReading { at: 1_500, ran: 150, sleeps: 9, ..held }), 490);
        // Scheduled at 1500: until its thread has a CPU, the wait lasts
        let woken = VcpuReading { at: 1_510, ran: 150, sleeps: 9, ..RUNS };
        assert_eq!(waits.add(woken), 500);
        let runs = VcpuReading { at: 1_600, ran: 240, ended_waits: 500, sleeps: 9, ..RUNS };
        assert_eq!(waits.add(runs), 500);
    }

    #[test]
    fn halted_vcpu_does_not_wait() {
        let mut waits = Waits::default();
        assert_eq!(waits.add(RUNS), 40);
        let halted = VcpuReading { sleeps: 8, is_asleep: true, ..RUNS };
        assert_eq!(waits.add(VcpuReading { at: 2_000, ..halted }), 40);
        assert_eq!(waits.add(VcpuReading { at: 3_000, ..halted }), 40);
        // Woken at an unknown moment: not before the wait has ended is it known how long it was
        let woken = VcpuReading { at: 4_000, sleeps: 8, ..RUNS };
        assert_eq!(waits.add(woken), 40);
        assert_eq!(waits.add(VcpuReading { at: 4_100, ..woken }), 140);
        assert_eq!(waits.add(VcpuReading { at: 4_200, ended_waits: 240, ran: 130, ..woken }), 240);
    }

    #[test]
    fn vcpu_that_blocked_in_between_waited_for_what_the_kernel_counts() {
        let mut waits = Waits::default();
        waits.add(RUNS);
        assert_eq!(waits.add(VcpuReading { at: 9_000, ran: 200, ended_waits: 60, sleeps: 9, ..RUNS }), 60);
    }
}
