//! Outside: the monitor judges assertions that a guest cannot. It sees the vCPU threads, and can
//! pause them.
//!
//! Two vCPUs spin on one CPU, so that each waits for half of the time. The monitor
//!
//! 1. pauses them twice, and takes snapshots while another thread uses their CPU;
//! 2. saves their steal time, ends the guest, and watches the memory of its records;
//! 3. restores the steal time into another guest.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::kvm::Registration;
use protocol::payload::conformance::Assertion;
use protocol::payload::params::{Job, Workload};

use super::snapshots::{RecordFields, judge_growth, judge_paused, judge_restored, judge_writer};
use super::{Plan, Verdicts};
use crate::error::{Error, pause};
use crate::guest::{LabConfig, LabGuest};
use host::cpu_hog::{Burst, CpuHog, HogLoad};
use host::cpus::Cpus;
use host::thread::Class;
use steal_time::host_vm::HostVm;
use steal_time::publisher::PublisherKind;
use steal_time::publisher::record::GuestRecord;
use steal_time::saved::SavedStealTime;
use vmm::supervise::Outcome;
use vmm::timings::Timings;
use vmm::vcpu::command::VcpuSnapshot;
use vmm::vm::Paused;

const VCPUS: usize = 2;

/// How long the vCPUs run between two snapshots: many time slices, so that one more or less does
/// not matter.
const RUNNING: Duration = Duration::from_millis(400);

/// How long the vCPUs are paused, and how long the records are watched after the end.
const PAUSED: Duration = Duration::from_millis(60);

/// The longest time that a guest may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Judges `publisher` from outside.
pub(super) fn judge(plan: &Plan, publisher: PublisherKind, verdicts: &mut Verdicts) -> Result<(), Error> {
    let cpus = plan.cpus.first(1);
    let guest = LabGuest::start(&config(publisher, &cpus, ""), io::sink(), Timings::since(Instant::now()))?
        .with_open_window(PATIENCE)?;
    let memory = guest.vm().host_vm();

    pause(RUNNING)?;
    let (before, resumed) = pause_for_a_while(&guest, &cpus, publisher, verdicts)?;
    pause(RUNNING)?;
    let (after, _) = pause_for_a_while(&guest, &cpus, publisher, verdicts)?;
    for (before, after) in before.iter().zip(&after) {
        let wall = after.since.saturating_duration_since(resumed);
        judge_growth(before, after, wall, publisher, verdicts);
    }

    let paused = pause_guest(&guest)?;
    let saved = guest.vm().save_steal_time(&paused);
    guest.vm().resume(paused);
    let saved = saved?;
    end(guest)?;
    watch_after_the_end(&memory, &saved, &cpus, verdicts)?;
    restore(&saved, publisher, &cpus, verdicts)
}

/// A guest with the embedded payload, which spins for longer than all judgements take.
fn config(publisher: PublisherKind, cpus: &Cpus, options: &str) -> LabConfig {
    let workload = Workload { job: Job::Watch, warmup_ms: 10, duration_ms: 60_000, ..Workload::DEFAULT };
    let timeout = PATIENCE + Duration::from_secs(60);
    LabConfig::embedded(VCPUS, cpus.clone(), publisher, format!("{workload} {options}"), timeout)
}

fn pause_guest(guest: &LabGuest) -> Result<Paused, Error> {
    guest.vm().pause().map_err(|_| Error::test_guest("was already paused"))
}

/// Pauses the guest for a while, uses its CPU meanwhile, and judges what must hold while paused.
/// Returns the snapshots from the beginning of the pause, and its end.
fn pause_for_a_while(
    guest: &LabGuest,
    cpus: &Cpus,
    publisher: PublisherKind,
    verdicts: &mut Verdicts,
) -> Result<(Vec<VcpuSnapshot>, Instant), Error> {
    let vm = guest.vm();
    let paused = pause_guest(guest)?;
    let first = vm.snapshot(&paused);
    load(cpus, PAUSED)?;
    let second = vm.snapshot(&paused);
    vm.resume(paused);
    let resumed = Instant::now();

    let records = |vcpus: &[VcpuSnapshot]| vcpus.iter().map(|vcpu| vcpu.record).collect::<Vec<_>>();
    let (before, after) = (records(&first), records(&second));
    let have_records = before.len() == VCPUS && before.iter().all(Option::is_some);
    let why = || format!("a record changed while the guest was paused: {before:02x?}, then {after:02x?}");
    verdicts.judge(Assertion::PausedIsUntouched, have_records && before == after, why);
    for vcpu in &second {
        judge_paused(vcpu, publisher, verdicts);
    }
    Ok((first, resumed))
}

fn end(guest: LabGuest) -> Result<(), Error> {
    guest.close();
    match guest.wait()?.monitor.outcome {
        Outcome::Reset => Ok(()),
        Outcome::Interrupted => Err(Error::Interrupted),
        _ => Err(Error::test_guest("did not end by its own reset")),
    }
}

/// Judges that no record is written after the guest has ended. Its memory is still mapped.
fn watch_after_the_end(
    memory: &Arc<dyn HostVm>,
    saved: &SavedStealTime,
    cpus: &Cpus,
    verdicts: &mut Verdicts,
) -> Result<(), Error> {
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
    load(cpus, PAUSED)?;
    let is_untouched = records.len() == VCPUS && bytes() == before;
    let why = || "a record was written after the guest's end".to_owned();
    verdicts.judge(Assertion::NothingAfterTheEnd, is_untouched, why);
    Ok(())
}

/// Restores `saved` into a guest that has not run yet and that registers no records itself, and
/// judges it before and after it has run.
fn restore(
    saved: &SavedStealTime,
    publisher: PublisherKind,
    cpus: &Cpus,
    verdicts: &mut Verdicts,
) -> Result<(), Error> {
    let config = config(publisher, cpus, "steal=off");
    let (guest, paused) = LabGuest::start_paused(&config, io::sink(), Timings::since(Instant::now()))?;
    let vm = guest.vm();
    vm.restore_steal_time(&paused, saved)?;
    for (vcpu, was) in vm.snapshot(&paused).iter().zip(&saved.vcpus) {
        let id = vcpu.vcpu;
        let why = || format!("MSR of vCPU {id} is {:x?} and was {:#x}", vcpu.msr, was.msr);
        verdicts.judge(Assertion::SurvivesRestore, vcpu.msr == Some(was.msr), why);
        judge_restored(vcpu, was.steal_ns, verdicts);
        let preempted = vcpu.record.map(|record| RecordFields::of(record).preempted);
        let why = || format!("preempted of restored vCPU {id} is {preempted:?} before its first entry");
        verdicts.judge(Assertion::SurvivesRestore, preempted == Some(0), why);
    }
    vm.resume(paused);
    let guest = guest.with_open_window(PATIENCE)?;
    let vm = guest.vm();
    pause(RUNNING)?;
    let paused = pause_guest(&guest)?;
    for (vcpu, was) in vm.snapshot(&paused).iter().zip(&saved.vcpus) {
        // Since then it has waited for half of the time: steal has grown.
        judge_restored(vcpu, was.steal_ns + 1, verdicts);
        judge_writer(vcpu, publisher, verdicts);
    }
    vm.resume(paused);
    end(guest)
}

/// Loads `cpus` for `time`, so that other threads that want them are preempted.
fn load(cpus: &Cpus, time: Duration) -> Result<(), Error> {
    // Bursts without a pause, short enough for the hog to end on time.
    let burst = Burst { busy: Duration::from_millis(1), idle: Duration::ZERO, repeat: 1 };
    let load = HogLoad { bursts: vec![burst], jitter: false, class: Class::Fair };
    let cpu_hog =
        CpuHog::start(&load, [cpus.clone()]).map_err(Error::host("start the thread of the CPU hog"))?;
    let paused = pause(time);
    drop(cpu_hog);
    paused
}
