//! Prints the figures on COM1, for a run without a monitor that reads them from memory.

use core::sync::atomic::{AtomicU64, Ordering};

use protocol::payload::conformance::{Assertion, Finding};
use protocol::payload::params::{Check, Job, Workload};
use protocol::payload::report::VcpuReport;

use crate::machine::Machine;
use crate::metal::entry::REPORT;
use crate::metal::ports::print_line;

/// Prints the report, unless a monitor reads it.
pub(crate) fn print(machine: Machine, workload: Workload) {
    if REPORT.header.has_reader.load(Ordering::Relaxed) != 0 {
        return;
    }
    print_line!("{} vCPUs, {workload}", machine.vcpus);
    match workload.job {
        Job::Contend => print_locks(machine, workload),
        Job::Checks => print_checks(machine),
        Job::Watch => print_samples(machine),
        Job::Conformance => print_findings(),
        _ => {}
    }
}

fn print_locks(machine: Machine, workload: Workload) {
    let acquisitions = sum(machine, |vcpu| &vcpu.acquisitions);
    let a_second = acquisitions.saturating_mul(1000).checked_div(workload.duration_ms.into()).unwrap_or(0);
    let longest = vcpus(machine).map(|vcpu| vcpu.longest_wait.load(Ordering::Relaxed)).max().unwrap_or(0);
    let us = longest.saturating_mul(1000).checked_div(machine.vcpu.khz.into()).unwrap_or(0);
    print_line!("{a_second} acquisitions/s, longest wait {us} us");
    let halts = sum(machine, |vcpu| &vcpu.halts);
    let kicks = sum(machine, |vcpu| &vcpu.kicks);
    let seen = sum(machine, |vcpu| &vcpu.preempted_seen);
    print_line!("{halts} halts, {kicks} kicks, preempted seen {seen} times");
    let holders = sum(machine, |vcpu| &vcpu.holder_preemptions);
    let next = sum(machine, |vcpu| &vcpu.next_preemptions);
    let (steals, early) = (sum(machine, |vcpu| &vcpu.steals), sum(machine, |vcpu| &vcpu.early_waits));
    print_line!("preempted {holders} holders, {next} next in line; {steals} steals, {early} early waits");
}

/// In picoseconds: the payload prints no fractions.
fn print_checks(machine: Machine) {
    let ps = |cost: &AtomicU64| {
        let cost = cost.load(Ordering::Relaxed).saturating_mul(1_000_000);
        cost.checked_div(machine.vcpu.khz.into()).unwrap_or(0)
    };
    let forms = Check::ALL.iter().map(|form| form.name()).chain(["none"]);
    for (form, cost) in forms.zip(&REPORT.header.checks) {
        print_line!(
            "{form:8} {} ps a call, {} in a chain, {} an iteration, {} folded",
            ps(&cost.call),
            ps(&cost.chain),
            ps(&cost.spin),
            ps(&cost.folded)
        );
    }
}

fn print_samples(machine: Machine) {
    let (own, own_set) = (sum(machine, |vcpu| &vcpu.own_samples), sum(machine, |vcpu| &vcpu.own_set));
    let (other, other_set) = (sum(machine, |vcpu| &vcpu.other_samples), sum(machine, |vcpu| &vcpu.other_set));
    print_line!("own preempted set in {own_set} of {own} samples, others' in {other_set} of {other}");
}

/// Prints a line for each assertion. The host parses these lines if the payload runs under QEMU.
fn print_findings() {
    for assertion in Assertion::ALL {
        let number = assertion.number();
        match REPORT.header.findings.of(*assertion) {
            None => {}
            Some(Finding::Held(times)) => print_line!("assertion {number} {assertion}: held {times}"),
            Some(Finding::Broken(line)) => print_line!("assertion {number} {assertion}: BROKEN {line}"),
        }
    }
}

fn vcpus(machine: Machine) -> impl Iterator<Item = &'static VcpuReport> {
    REPORT.vcpus.iter().take(machine.vcpus)
}

fn sum(machine: Machine, field: fn(&VcpuReport) -> &AtomicU64) -> u64 {
    vcpus(machine).map(|vcpu| field(vcpu).load(Ordering::Relaxed)).fold(0, u64::saturating_add)
}
