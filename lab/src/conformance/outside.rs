//! Outside: what the monitor judges, which sees the vCPUs' threads, and can stop them.
//!
//! Two vCPUs spin on one CPU, so that each waits half of the time. The monitor stops them, looks, lets others use the CPU
//! meanwhile, looks again, and lets them go on; it saves their steal time and restores it into another guest; and it
//! watches the records' memory when all is over.

use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use protocol::kvm::{Registration, StealTime};
use protocol::payload::conformance::Assertion;
use protocol::payload::params::{Job, Workload};

use super::{ConformanceError, Plan, Verdicts};
use crate::experiment::ExperimentError;
use crate::guest::{LabConfig, LabGuest, RunError};
use host::cpu_hog::{Burst, CpuHog, HogLoad};
use host::cpus::Cpus;
use host::thread::Class;
use steal_time::host_vm::HostVm;
use steal_time::publisher::record::{GuestRecord, RECORD_SIZE};
use steal_time::publisher::{MsrOwner, PublisherKind};
use steal_time::saved::SavedStealTime;
use vmm::supervise::Outcome;
use vmm::timings::Timings;
use vmm::vcpu::command::VcpuSnapshot;

const VCPUS: usize = 2;

/// How long the vCPUs run between two looks: many time slices, so that one more or less does not matter.
const STRETCH: Duration = Duration::from_millis(400);

/// How long the machine stands still, and how long is watched after its end.
const STANDSTILL: Duration = Duration::from_millis(60);

/// How long a guest may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// What two accounts of the same time may differ by: a time slice at each end, in which one of them was not up to date.
const SLACK_NS: u64 = 8_000_000;

/// Judges `publisher` from outside.
pub(super) fn judge(
    plan: &Plan,
    publisher: PublisherKind,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    let cpus = plan.cpus.first(1);
    let guest = LabGuest::start(&config(publisher, &cpus, ""), io::sink(), Timings::since(Instant::now()))?;
    wait_for_window(&guest)?;
    let memory = guest.vm().host_vm();

    thread::sleep(STRETCH);
    let before = stand_still(&guest, &cpus, publisher, verdicts)?;
    thread::sleep(STRETCH);
    let after = stand_still(&guest, &cpus, publisher, verdicts)?;
    compare(&before, &after, publisher, verdicts);

    let saved = save(&guest)?;
    end(guest)?;
    watch_after_the_end(&memory, &saved, &cpus, verdicts)?;
    restore(&saved, publisher, &cpus, verdicts)
}

/// Our payload, spinning for longer than anybody will look.
fn config(publisher: PublisherKind, cpus: &Cpus, words: &str) -> LabConfig {
    let workload = Workload { job: Job::Watch, warmup_ms: 10, duration_ms: 60_000, ..Workload::DEFAULT };
    let timeout = PATIENCE + Duration::from_secs(60);
    LabConfig::embedded(VCPUS, cpus.clone(), publisher, format!("{workload} {words}"), timeout)
}

fn wait_for_window(guest: &LabGuest) -> Result<(), ConformanceError> {
    let has_begun = guest.wait_for_window(PATIENCE);
    if has_begun { Ok(()) } else { Err(ConformanceError::Outside("its guest did not begin")) }
}

/// What was seen at a standstill, and when it ended.
struct Standstill {
    looks: Vec<VcpuSnapshot>,
    ended: Instant,
}

/// Stops the guest for a while, in which others use its CPU, and judges what must hold meanwhile.
fn stand_still(
    guest: &LabGuest,
    cpus: &Cpus,
    publisher: PublisherKind,
    verdicts: &mut Verdicts,
) -> Result<Standstill, ConformanceError> {
    let vm = guest.vm();
    let Ok(paused) = vm.pause() else { return Err(ConformanceError::Outside("its guest is paused already")) };
    let looks = vm.snapshot(&paused);
    let before: Vec<_> = looks.iter().map(|look| look.record).collect();
    burn(cpus, STANDSTILL)?;
    let again = vm.snapshot(&paused);
    vm.resume(paused);
    let ended = Instant::now();

    let after: Vec<_> = again.iter().map(|look| look.record).collect();
    let all_there = before.len() == VCPUS && before.iter().all(Option::is_some);
    let changed =
        || format!("a record changed while the machine was paused: {before:02x?}, then {after:02x?}");
    verdicts.judge(Assertion::PausedIsUntouched, all_there && before == after, changed);
    for look in &again {
        let Some(record) = look.record.map(Seen::of) else { continue };
        let set = || format!("byte of a paused vCPU is {}", record.byte);
        verdicts.judge(Assertion::BlockedIsNotPreempted, record.byte == 0, set);
        judge_delay(look, record, publisher, verdicts);
        judge_writer(look, publisher, verdicts);
    }
    Ok(Standstill { looks, ended })
}

/// The words of a record.
#[derive(Clone, Copy, Debug)]
struct Seen {
    steal_ns: u64,
    byte: u8,
}

impl Seen {
    fn of(record: [u8; RECORD_SIZE]) -> Self {
        let steal = record.first_chunk().copied().unwrap_or_default();
        Self { steal_ns: u64::from_le_bytes(steal), byte: record[offset_of!(StealTime, preempted)] }
    }
}

/// What two accounts of `time_ns` may differ by at a standstill. KVM brings steal up to date when it enters the guest: what
/// the thread has waited for last is missing, and nobody knows how long that was.
fn slack_ns(publisher: PublisherKind, time_ns: u64) -> u64 {
    if publisher.msr_owner() == MsrOwner::Kernel {
        (4 * SLACK_NS).max(time_ns / 4)
    } else {
        SLACK_NS.max(time_ns / 100)
    }
}

/// The run delay that the guest is to pay for. KVM makes it pay for what the thread waited while it rested, too.
fn delay_ns(look: &VcpuSnapshot, publisher: PublisherKind) -> u64 {
    let discarded_ns = if publisher.msr_owner() == MsrOwner::Kernel { 0 } else { look.discarded_ns };
    look.account.run_delay_ns.saturating_sub(discarded_ns)
}

/// Steal is the run delay of the thread, which began with steal at 0.
fn judge_delay(look: &VcpuSnapshot, record: Seen, publisher: PublisherKind, verdicts: &mut Verdicts) {
    let delay = delay_ns(look, publisher);
    let why = || {
        format!("steal of vCPU {} is {} ns, run delay of its thread {delay} ns", look.vcpu, record.steal_ns)
    };
    let slack = slack_ns(publisher, delay);
    verdicts.judge(Assertion::StealIsRunDelay, record.steal_ns.abs_diff(delay) <= slack, why);
}

fn judge_writer(look: &VcpuSnapshot, publisher: PublisherKind, verdicts: &mut Verdicts) {
    if publisher.msr_owner() == MsrOwner::Kernel {
        verdicts.pass_over(Assertion::OneWriter, "KVM itself is the writer");
        return;
    }
    match look.kernel_msr {
        None => verdicts.pass_over(Assertion::OneWriter, "KVM does not tell its own copy"),
        Some(msr) => verdicts.judge(Assertion::OneWriter, msr == 0, || format!("KVM has {msr:#x}")),
    }
}

/// What was added between two standstills.
fn compare(before: &Standstill, after: &Standstill, publisher: PublisherKind, verdicts: &mut Verdicts) {
    for (first, second) in before.looks.iter().zip(&after.looks) {
        let (Some(old), Some(new)) = (first.record.map(Seen::of), second.record.map(Seen::of)) else {
            continue;
        };
        let back =
            || format!("steal of vCPU {} went from {} to {} ns", first.vcpu, old.steal_ns, new.steal_ns);
        verdicts.judge(Assertion::StealNeverBack, new.steal_ns >= old.steal_ns, back);

        let wall = second.since.saturating_duration_since(before.ended);
        let wall_ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        let added = new.steal_ns.saturating_sub(old.steal_ns);
        let account = second.account.since(first.account);
        let delay = delay_ns(second, publisher).saturating_sub(delay_ns(first, publisher));
        let differ = || format!("steal of vCPU {} grew by {added} ns, run delay by {delay} ns", first.vcpu);
        verdicts.judge(
            Assertion::StealIsRunDelay,
            added.abs_diff(delay) <= slack_ns(publisher, delay),
            differ,
        );

        // It neither slept nor did anybody else wait for it: what it did not run it waited.
        let sum = added + account.run_ns;
        let why = || {
            format!(
                "steal of vCPU {} grew by {added} ns and it ran {} ns, in {wall_ns} ns",
                first.vcpu, account.run_ns
            )
        };
        let slack = slack_ns(publisher, wall_ns).max(wall_ns / 20);
        verdicts.judge(Assertion::SharedCpuAddsUp, sum.abs_diff(wall_ns) <= slack, why);
        let shares = || format!("vCPU {} waited {added} of {wall_ns} ns beside one other", first.vcpu);
        verdicts.judge(Assertion::SharedCpuAddsUp, added >= wall_ns / 3, shares);
        // The standstill before was much longer than the slack, and nobody has paid for it.
        verdicts.judge(Assertion::MonitorAddsNothing, sum <= wall_ns + slack, why);
    }
}

fn save(guest: &LabGuest) -> Result<SavedStealTime, ConformanceError> {
    let vm = guest.vm();
    let Ok(paused) = vm.pause() else { return Err(ConformanceError::Outside("its guest is paused already")) };
    let saved = vm.save_steal_time(&paused);
    vm.resume(paused);
    Ok(saved?)
}

fn end(guest: LabGuest) -> Result<(), ConformanceError> {
    guest.close();
    match guest.wait()?.monitor.outcome {
        Outcome::Reset => Ok(()),
        Outcome::Interrupted => Err(ExperimentError::Interrupted.into()),
        _ => Err(ConformanceError::Outside("its guest did not end well")),
    }
}

/// The guest is gone, its memory is still here.
fn watch_after_the_end(
    memory: &Arc<dyn HostVm>,
    saved: &SavedStealTime,
    cpus: &Cpus,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    let records: Vec<_> = saved
        .vcpus
        .iter()
        .filter_map(|vcpu| match Registration::from_msr(vcpu.msr) {
            Ok(Registration::At { gpa }) => GuestRecord::at(memory, gpa),
            _ => None,
        })
        .collect();
    let bytes = || records.iter().map(|record| record.bytes()).collect::<Vec<_>>();
    let before = bytes();
    burn(cpus, STANDSTILL)?;
    let is_untouched = records.len() == VCPUS && bytes() == before;
    let why = || "a record was written after the machine's end".to_owned();
    verdicts.judge(Assertion::NothingAfterTheEnd, is_untouched, why);
    Ok(())
}

/// Restores what was saved into a guest that has not run yet, and that registers nothing itself.
fn restore(
    saved: &SavedStealTime,
    publisher: PublisherKind,
    cpus: &Cpus,
    verdicts: &mut Verdicts,
) -> Result<(), ConformanceError> {
    let config = config(publisher, cpus, "steal=off");
    let (guest, paused) = LabGuest::start_paused(&config, io::sink(), Timings::since(Instant::now()))?;
    let vm = guest.vm();
    vm.restore_steal_time(&paused, saved)?;
    for (look, was) in vm.snapshot(&paused).iter().zip(&saved.vcpus) {
        let msr = || format!("MSR of vCPU {} is {:x?} and was {:#x}", look.vcpu, look.msr, was.msr);
        verdicts.judge(Assertion::SurvivesRestore, look.msr == Some(was.msr), msr);
        judge_restored(look, was.steal_ns, verdicts);
        let byte = look.record.map(|record| Seen::of(record).byte);
        let why = || format!("byte of restored vCPU {} is {byte:?} before its first entry", look.vcpu);
        verdicts.judge(Assertion::SurvivesRestore, byte == Some(0), why);
    }
    vm.resume(paused);
    wait_for_window(&guest)?;
    thread::sleep(STRETCH);
    let Ok(paused) = vm.pause() else { return Err(ConformanceError::Outside("its guest is paused already")) };
    for (look, was) in vm.snapshot(&paused).iter().zip(&saved.vcpus) {
        // Half of the time it has waited since.
        judge_restored(look, was.steal_ns + 1, verdicts);
        judge_writer(look, publisher, verdicts);
    }
    vm.resume(paused);
    end(guest)
}

fn judge_restored(look: &VcpuSnapshot, least_ns: u64, verdicts: &mut Verdicts) {
    let Some(record) = look.record.map(Seen::of) else {
        return verdicts.refute(Assertion::SurvivesRestore, format!("vCPU {} has no record", look.vcpu));
    };
    let why = || format!("restored vCPU {} has {record:?}, and steal was {least_ns} ns", look.vcpu);
    verdicts.judge(Assertion::SurvivesRestore, record.steal_ns >= least_ns, why);
    let back =
        || format!("steal of restored vCPU {} is {} ns and was {least_ns} ns", look.vcpu, record.steal_ns);
    verdicts.judge(Assertion::StealNeverBack, record.steal_ns >= least_ns, back);
}

/// Loads `cpus` for `time`, so that other threads there are preempted.
fn burn(cpus: &Cpus, time: Duration) -> Result<(), ConformanceError> {
    // Bursts without a pause, short enough for the hog to end on time.
    let burst = Burst { busy: Duration::from_millis(1), idle: Duration::ZERO, repeat: 1 };
    let load = HogLoad { bursts: vec![burst], jitter: false, class: Class::Fair };
    let cpu_hog = CpuHog::start(&load, [cpus.clone()]).map_err(RunError::CpuHog)?;
    thread::sleep(time);
    drop(cpu_hog);
    Ok(())
}
