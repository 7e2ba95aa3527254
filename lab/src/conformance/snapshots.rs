//! Judgements on snapshots of paused vCPUs: their records beside the statistics of their threads.

use std::mem::offset_of;
use std::time::Duration;

use protocol::kvm::{MSR_ENABLE, StealTime};
use protocol::payload::conformance::Assertion;

use super::Verdicts;
use steal_time::publisher::record::RECORD_SIZE;
use steal_time::publisher::{MsrOwner, PublisherKind};
use vmm::vcpu::command::VcpuSnapshot;

/// How far two measures of the same time may differ (ns): a time slice at each end, during which
/// one of them was not up to date.
const SLACK_NS: u64 = 8_000_000;

/// The fields of a record that are judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordFields {
    pub(super) steal_ns: u64,
    pub(super) preempted: u8,
}

impl RecordFields {
    pub(super) fn of(record: [u8; RECORD_SIZE]) -> Self {
        let steal = record.first_chunk().copied().unwrap_or_default();
        Self { steal_ns: u64::from_le_bytes(steal), preempted: record[offset_of!(StealTime, preempted)] }
    }
}

/// How far two measures of `time_ns` may differ between snapshots (ns). KVM updates steal at the
/// next entry: the last wait of the thread is missing, and its length is unknown.
fn slack_ns(publisher: PublisherKind, time_ns: u64) -> u64 {
    if publisher.msr_owner() == MsrOwner::Kernel {
        (4 * SLACK_NS).max(time_ns / 4)
    } else {
        SLACK_NS.max(time_ns / 100)
    }
}

/// Why assertions about run delay are not judged.
pub(super) const RUN_DELAY_IS_UNKNOWN: &str = "the host does not report the run delay of vCPU threads";

/// The run delay that counts as steal (ns). For KVM that includes what accrued while paused. `None`
/// if the host does not report it.
fn run_delay_ns(vcpu: &VcpuSnapshot, publisher: PublisherKind) -> Option<u64> {
    let discarded_ns = if publisher.msr_owner() == MsrOwner::Kernel { 0 } else { vcpu.discarded_ns };
    Some(vcpu.account?.run_delay_ns.saturating_sub(discarded_ns))
}

/// Judges one vCPU that has run since steal was 0, and that other tasks kept from its CPU while it
/// was paused.
pub(super) fn judge_paused(vcpu: &VcpuSnapshot, publisher: PublisherKind, verdicts: &mut Verdicts) {
    let Some(record) = vcpu.record.map(RecordFields::of) else { return };
    let why = || format!("preempted of a paused vCPU is {}", record.preempted);
    verdicts.judge(Assertion::BlockedIsNotPreempted, record.preempted == 0, why);

    judge_writer(vcpu, publisher, verdicts);
    let Some(delay_ns) = run_delay_ns(vcpu, publisher) else {
        return verdicts.skip(Assertion::StealIsRunDelay, RUN_DELAY_IS_UNKNOWN);
    };
    let why = || {
        format!(
            "steal of vCPU {} is {} ns, run delay of its thread {delay_ns} ns",
            vcpu.vcpu, record.steal_ns
        )
    };
    let slack_ns = slack_ns(publisher, delay_ns);
    verdicts.judge(Assertion::StealIsRunDelay, record.steal_ns.abs_diff(delay_ns) <= slack_ns, why);
}

/// Judges that KVM's own copy of the MSR registers no record, unless KVM is the publisher.
pub(super) fn judge_writer(vcpu: &VcpuSnapshot, publisher: PublisherKind, verdicts: &mut Verdicts) {
    if publisher.msr_owner() == MsrOwner::Kernel {
        verdicts.skip(Assertion::OneWriter, "KVM itself is the writer");
        return;
    }
    match vcpu.kernel_msr {
        None => verdicts.skip(Assertion::OneWriter, "KVM does not return its own copy of the MSR"),
        Some(msr) => {
            verdicts.judge(Assertion::OneWriter, msr & MSR_ENABLE == 0, || format!("KVM has {msr:#x}"));
        }
    }
}

/// Judges what was added to a vCPU's steal in `wall`, the time between two snapshots.
pub(super) fn judge_growth(
    before: &VcpuSnapshot,
    after: &VcpuSnapshot,
    wall: Duration,
    publisher: PublisherKind,
    verdicts: &mut Verdicts,
) {
    let (Some(old), Some(new)) = (before.record.map(RecordFields::of), after.record.map(RecordFields::of))
    else {
        return;
    };
    let vcpu = before.vcpu;
    let why = || format!("steal of vCPU {vcpu} went from {} to {} ns", old.steal_ns, new.steal_ns);
    verdicts.judge(Assertion::StealNeverBack, new.steal_ns >= old.steal_ns, why);

    let added_ns = new.steal_ns.saturating_sub(old.steal_ns);
    let run_delays = run_delay_ns(before, publisher).zip(run_delay_ns(after, publisher));
    let (Some((delay_before, delay_after)), Some(ran)) = (run_delays, after.account.zip(before.account))
    else {
        for assertion in
            [Assertion::StealIsRunDelay, Assertion::SharedCpuAddsUp, Assertion::MonitorAddsNothing]
        {
            verdicts.skip(assertion, RUN_DELAY_IS_UNKNOWN);
        }
        return;
    };
    let delay_ns = delay_after.saturating_sub(delay_before);
    let why = || format!("steal of vCPU {vcpu} grew by {added_ns} ns, run delay by {delay_ns} ns");
    let slack = slack_ns(publisher, delay_ns);
    verdicts.judge(Assertion::StealIsRunDelay, added_ns.abs_diff(delay_ns) <= slack, why);

    // The vCPU never slept: it either ran, or waited for its CPU.
    let wall_ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
    let run_ns = ran.0.since(ran.1).run_ns;
    let why =
        || format!("steal of vCPU {vcpu} grew by {added_ns} ns and it ran for {run_ns} ns, in {wall_ns} ns");
    let slack = slack_ns(publisher, wall_ns).max(wall_ns / 20);
    let sum_ns = added_ns + run_ns;
    verdicts.judge(Assertion::SharedCpuAddsUp, sum_ns.abs_diff(wall_ns) <= slack, why);
    let share = || format!("vCPU {vcpu} waited for {added_ns} of {wall_ns} ns, beside one other vCPU");
    verdicts.judge(Assertion::SharedCpuAddsUp, added_ns >= wall_ns / 3, share);
    // The pause before was much longer than the slack: counted as steal, it would exceed this
    // bound.
    verdicts.judge(Assertion::MonitorAddsNothing, sum_ns <= wall_ns + slack, why);
}

/// Judges that a restored vCPU has at least `least_ns` of steal.
pub(super) fn judge_restored(vcpu: &VcpuSnapshot, least_ns: u64, verdicts: &mut Verdicts) {
    let id = vcpu.vcpu;
    let Some(record) = vcpu.record.map(RecordFields::of) else {
        return verdicts.refute(Assertion::SurvivesRestore, format!("vCPU {id} has no record"));
    };
    let why = || format!("steal of restored vCPU {id} is {} ns, and was {least_ns} ns", record.steal_ns);
    verdicts.judge(Assertion::SurvivesRestore, record.steal_ns >= least_ns, why);
    verdicts.judge(Assertion::StealNeverBack, record.steal_ns >= least_ns, why);
}
