//! The two ends of a measurement, and what was counted between them by everybody who counts switches.

use protocol::VcpuId;
use protocol::kvm::Registration;
use serde::Serialize;

use super::error::{AccuracyError, host};
use crate::fault_injection::FaultCounts;
use crate::guest::LabGuest;
use host::perf::{Switch, SwitchKind, SwitchLog};
use host::stats::ThreadStats;
use steal_time::publisher::Counts;
use steal_time::publisher::record::GuestRecord;
use vmm::hooks::Descheduled;
use vmm::vcpu::command::VcpuSnapshot;

/// One end of a measurement, taken while the vCPU is at rest.
pub(super) struct End {
    pub(super) look: VcpuSnapshot,
    account: ThreadStats,
    pub(super) descheduled: Vec<Descheduled>,
    faults: Option<FaultCounts>,
    steal_ns: u64,
    /// What perf has recorded since the log was opened, or since the end before.
    pub(super) switches: Vec<Switch>,
}

impl End {
    pub(super) fn take(guest: &LabGuest, tid: libc::pid_t, log: &SwitchLog) -> Result<Self, AccuracyError> {
        let paused = guest.vm().pause().map_err(|_| AccuracyError::Idle("was paused by somebody else"))?;
        let look = guest.vm().snapshot(&paused).into_iter().next();
        let look = look.ok_or(AccuracyError::Idle("has ended"));
        let mut switches = Vec::new();
        let counted = ThreadStats::read_asleep(tid, || {
            log.drain(|switch| switches.push(switch));
            guest.vm().publisher().counts_at_rest(VcpuId::BOOT)
        });
        let (descheduled, faults) = (guest.descheduled(VcpuId::BOOT), guest.fault_counts(VcpuId::BOOT));
        guest.vm().resume(paused);
        let mut look = look?;
        let (account, program) = counted
            .map_err(host("read the account of a vCPU's thread"))?
            .ok_or(AccuracyError::Idle("would not rest"))?;
        // What the thread says was true a moment before it fell asleep.
        if let (Some(counts), Some(program)) = (&mut look.counts, program) {
            counts.program = program;
        }
        let steal = look.record.as_ref().and_then(|record| record.first_chunk());
        let steal_ns = steal.copied().map_or(0, u64::from_le_bytes);
        Ok(Self { look, account, descheduled, faults, steal_ns, switches })
    }

    pub(super) fn record(&self, guest: &LabGuest) -> Result<GuestRecord, AccuracyError> {
        match self.look.msr.map(Registration::from_msr) {
            Some(Ok(Registration::At { gpa })) => guest.vm().record(gpa),
            _ => None,
        }
        .ok_or(AccuracyError::Idle("has no record"))
    }
}

/// What was counted of the boot vCPU's thread between two ends.
#[derive(Debug, Serialize)]
pub struct Tally {
    /// Why this is not to be believed: the oracle has lost something. Empty where it has not.
    pub doubts: Vec<String>,
    /// Preemptions, by perf.
    pub outs: u64,
    /// Switch-ins, by perf.
    pub ins: u64,
    /// What the publisher counted in the same time; `None` where nobody counts.
    pub counted: Option<Counts>,
    /// The faults that were injected in the same time; `None` if none were.
    pub faults: Option<FaultCounts>,
    /// Growth of steal in the record (ns).
    pub steal_ns: u64,
    /// What it should have been: run delay and time held (ns).
    pub lost_ns: u64,
}

impl Tally {
    /// Between `before` and `after`; perf has lost `lost` records.
    ///
    /// Three counts of the same switches must agree: perf's records, what the scheduler counts in `status`, and in
    /// `schedstat`.
    pub(super) fn between(before: &End, after: &End, lost: u64) -> Self {
        let count = |kind| after.switches.iter().filter(|switch| switch.kind == kind).count() as u64;
        let (outs, ins, sleeps) =
            (count(SwitchKind::Preempted), count(SwitchKind::In), count(SwitchKind::Blocked));
        let grown = after.account.since(before.account);
        let mut doubts = Vec::new();
        let mut doubt = |is_doubtful: bool, why: String| doubts.extend(is_doubtful.then_some(why));
        doubt(lost > 0, format!("perf lost {lost} records"));
        let counted = grown.voluntary_switches + grown.involuntary_switches;
        doubt(outs + sleeps != counted, format!("perf saw {} switches out, status {counted}", outs + sleeps));
        doubt(ins != grown.timeslices, format!("perf saw {ins} switches in, schedstat {}", grown.timeslices));

        let held: u64 = after.descheduled.iter().map(|held| held.descheduled_ns).sum();
        let held_before: u64 = before.descheduled.iter().map(|held| held.descheduled_ns).sum();
        let run_delay = after.look.account.since(before.look.account).run_delay_ns;
        let forgotten = after.look.discarded_ns.saturating_sub(before.look.discarded_ns);
        Self {
            doubts,
            outs,
            ins,
            counted: after.look.counts.map(|counts| counts.since(before.look.counts.unwrap_or_default())),
            faults: after.faults.map(|faults| faults.since(before.faults.unwrap_or_default())),
            steal_ns: after.steal_ns.saturating_sub(before.steal_ns),
            lost_ns: (run_delay + held).saturating_sub(held_before + forgotten),
        }
    }
}
