//! Counts of one measurement: what perf, the scheduler and the publisher counted between two
//! snapshots, which are taken while the vCPU is paused.

use std::ops::Range;

use protocol::VcpuId;
use protocol::kvm::Registration;
use serde::Serialize;

use crate::error::Error;
use crate::fault_injection::FaultCounts;
use crate::guest::LabGuest;
use host::disturbance::{Disturbance, Verdict};
use host::perf::{Switch, SwitchKind, SwitchLog};
use host::stats::ThreadStats;
use steal_time::publisher::Counts;
use steal_time::publisher::record::GuestRecord;
use vmm::hooks::Descheduled;
use vmm::vcpu::command::VcpuSnapshot;

/// All counters at one end of a measurement.
pub(super) struct Snapshot {
    pub(super) vcpu: VcpuSnapshot,
    thread: ThreadStats,
    pub(super) descheduled: Vec<Descheduled>,
    faults: Option<FaultCounts>,
    steal_ns: u64,
    /// The thread's run delay at the pause (ns).
    run_delay_ns: u64,
    /// Perf's records since the snapshot before, or since the log was opened.
    pub(super) switches: Vec<Switch>,
}

impl Snapshot {
    /// Pauses the guest, reads the counters of its boot vCPU, and resumes it. `tid` is the vCPU's
    /// thread, and `log` records its switches.
    pub(super) fn take(guest: &LabGuest, tid: libc::pid_t, log: &SwitchLog) -> Result<Self, Error> {
        let paused = guest.vm().pause().map_err(|_| Error::test_guest("was already paused"))?;
        let vcpu = guest.vm().snapshot(&paused).into_iter().next();
        let vcpu = vcpu.ok_or_else(|| Error::test_guest("has ended"));
        let mut switches = Vec::new();
        let counted = ThreadStats::read_asleep(tid, || {
            log.drain(|switch| switches.push(switch));
            guest.vm().publisher().counts_at_rest(VcpuId::BOOT)
        });
        let (descheduled, faults) = (guest.descheduled(VcpuId::BOOT), guest.fault_counts(VcpuId::BOOT));
        guest.vm().resume(paused);
        let mut vcpu = vcpu?;
        let (thread, program) = counted
            .map_err(Error::host("read the scheduler's statistics of a vCPU thread"))?
            .ok_or_else(|| Error::test_guest("did not come to rest when it was paused"))?;
        // The snapshot was taken by the thread itself, before its last switch-out.
        if let (Some(counts), Some(program)) = (&mut vcpu.counts, program) {
            counts.program = program;
        }
        let account = vcpu.account.ok_or_else(|| Error::test_guest("has no scheduler's statistics"))?;
        let steal = vcpu.record.as_ref().and_then(|record| record.first_chunk());
        let steal_ns = steal.copied().map_or(0, u64::from_le_bytes);
        let run_delay_ns = account.run_delay_ns;
        Ok(Self { vcpu, thread, descheduled, faults, steal_ns, run_delay_ns, switches })
    }

    /// The steal-time record that the vCPU has registered.
    pub(super) fn record(&self, guest: &LabGuest) -> Result<GuestRecord, Error> {
        match self.vcpu.msr.map(Registration::from_msr) {
            Some(Ok(Registration::At { gpa })) => guest.vm().record(gpa),
            _ => None,
        }
        .ok_or_else(|| Error::test_guest("has not registered a steal-time record"))
    }

    fn descheduled_ns(&self) -> u64 {
        self.descheduled.iter().map(|interval| interval.descheduled_ns).sum()
    }
}

/// What was counted between two snapshots.
#[derive(Debug, Default, Serialize)]
pub struct ObservedCounts {
    /// Disagreements between independent counts of the same switches: perf has lost records. Empty
    /// if the counts below can be trusted.
    pub inconsistencies: Vec<String>,
    /// Preemptions of the vCPU thread, by perf.
    pub sched_out: u64,
    /// Switch-ins of the vCPU thread, by perf.
    pub sched_in: u64,
    /// The publisher's own counts; `None` if it keeps none.
    pub counted: Option<Counts>,
    /// Injected faults; `None` if none were requested.
    pub faults: Option<FaultCounts>,
    /// Growth of `steal` in the record (ns).
    pub steal_ns: u64,
    /// What `steal` should have grown by (ns): run delay of the thread, and time descheduled.
    pub lost_ns: u64,
}

impl ObservedCounts {
    /// Returns the verdict on figures with these counts, from whose measurement others took CPU time.
    pub(super) fn verdict(&self, disturbance: Disturbance) -> Verdict {
        if self.inconsistencies.is_empty() { disturbance.verdict() } else { Verdict::Unknown }
    }

    /// Expects `switches` to lie about the time `sampled` (ns), so that samples can be judged by
    /// them. Otherwise the two were stamped by different clocks.
    pub(super) fn expect_within(&mut self, switches: &[Switch], sampled: Range<u64>) {
        if !switches.is_empty() && !switches.iter().any(|switch| sampled.contains(&switch.at_ns)) {
            let what = "perf's clock is not that of the samples: no switch lies in their time";
            self.inconsistencies.push(what.to_owned());
        }
    }

    /// Counts between `before` and `after`. Perf reports `lost` lost records.
    ///
    /// Three counts of the same switches must agree: perf's records, and the scheduler's statistics
    /// in `status` and in `schedstat`.
    pub(super) fn between(before: &Snapshot, after: &Snapshot, lost: u64) -> Self {
        let count = |kind| after.switches.iter().filter(|switch| switch.kind == kind).count() as u64;
        let (sched_out, sched_in) = (count(SwitchKind::Preempted), count(SwitchKind::In));
        let out = sched_out + count(SwitchKind::Blocked);
        let thread = after.thread.since(before.thread);
        let status_out = thread.voluntary_switches + thread.involuntary_switches;
        let mut inconsistencies = Vec::new();
        let mut expect =
            |holds: bool, otherwise: String| inconsistencies.extend((!holds).then_some(otherwise));
        expect(lost == 0, format!("perf lost {lost} records"));
        expect(out == status_out, format!("perf saw {out} switches out, status {status_out}"));
        expect(
            sched_in == thread.timeslices,
            format!("perf saw {sched_in} switches in, schedstat {}", thread.timeslices),
        );

        let run_delay_ns = after.run_delay_ns.saturating_sub(before.run_delay_ns);
        let discarded_ns = after.vcpu.discarded_ns.saturating_sub(before.vcpu.discarded_ns);
        let lost_ns = run_delay_ns + after.descheduled_ns();
        Self {
            inconsistencies,
            sched_out,
            sched_in,
            counted: after.vcpu.counts.map(|counts| counts.since(before.vcpu.counts.unwrap_or_default())),
            faults: after.faults.map(|faults| faults.since(before.faults.unwrap_or_default())),
            steal_ns: after.steal_ns.saturating_sub(before.steal_ns),
            lost_ns: lost_ns.saturating_sub(before.descheduled_ns() + discarded_ns),
        }
    }
}
