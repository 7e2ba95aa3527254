//! Conformance: what a guest may rely on, judged from inside.
//!
//! A scene sets up what an assertion is about and tries it, as often as it can. What it saw hold it counts
//! ([`judge`], [`expect`]), what it saw broken it notes with its place in these sources. How many vCPUs and CPUs a scene
//! plays on is the monitor's choice.

mod absent;
mod block;
mod check;
pub(super) mod init;
mod msr;
mod roam;
mod spin;

use core::panic::Location;

use guest_payload::steal_time::Record;
use protocol::VcpuId;
use protocol::conformance::Assertion;
use protocol::words::{Scene, Workload};

use super::{Part, arrive, finish, report, sleep_for_ever};
use crate::Machine;
use crate::metal::entry::REPORT;
use crate::metal::{lapic, ports};

/// Plays the scene, and ends the run.
pub(super) fn run(machine: Machine, workload: Workload) -> ! {
    match workload.scene {
        Scene::Absent | Scene::Msr | Scene::Check | Scene::Init => alone(machine, workload),
        Scene::Roam | Scene::Spin | Scene::Block => together(machine, workload),
    }
}

/// A scene that the boot vCPU directs, with no record but those that the scene asks for.
fn alone(machine: Machine, workload: Workload) -> ! {
    match workload.scene {
        Scene::Init if machine.vcpu.id == init::other() => init::first_life(),
        _ if machine.vcpu.id != VcpuId::BOOT => sleep_for_ever(),
        Scene::Init => init::run(machine),
        Scene::Absent => absent::run(),
        Scene::Check => check::run(),
        _ => msr::run(machine),
    }
    report::tell(machine, workload);
    ports::reset()
}

/// A scene of all vCPUs, with a record for each.
fn together(machine: Machine, workload: Workload) -> ! {
    if workload.scene == Scene::Roam {
        roam::prepare(machine.vcpu.id.index());
    } else {
        spin::prepare(machine.vcpu.id);
        crate::register(machine, workload);
    }
    let part = Part::new(machine, workload, arrive(machine, workload));
    match workload.scene {
        Scene::Roam => roam::run(part),
        Scene::Block => block::run(part),
        _ => spin::run(part),
    }
    finish(part)
}

/// A nap, in ticks of the local APIC's timer: a fifth of a millisecond.
const NAP: u32 = 200_000;

/// Sleeps and wakes a few times, so that the host has a reason to write this vCPU's record.
fn nap() {
    for _ in 0..4 {
        lapic::nap(NAP);
    }
}

/// Whether the host writes `record` meanwhile.
fn is_written_in_a_nap(record: &Record) -> bool {
    let before = record.version();
    nap();
    record.version() != before
}

/// `assertion` was seen `times` times, and it held if `holds`. If not, it is broken, and the caller's line says where.
#[track_caller]
fn judge(assertion: Assertion, times: u64, holds: bool) {
    if holds {
        REPORT.header.findings.hold(assertion, times);
    } else {
        REPORT.header.findings.refute(assertion, Location::caller().line());
    }
}

/// `assertion` was tried once more.
#[track_caller]
fn expect(assertion: Assertion, holds: bool) {
    judge(assertion, 1, holds);
}
