//! Conformance: what a guest may rely on, judged from inside.
//!
//! A scene sets up what an assertion is about and tries it, as often as it can. What it saw hold it counts
//! ([`hold`], [`expect`]), what it saw broken it notes with its place in these sources. How many vCPUs and CPUs a scene
//! plays on is the monitor's choice.

mod absent;
mod msr;

use core::panic::Location;

use protocol::VcpuId;
use protocol::conformance::Assertion;
use protocol::words::{Scene, Workload};

use super::{report, sleep_for_ever};
use crate::Machine;
use crate::metal::entry::REPORT;
use crate::metal::ports;

/// Plays the scene, and ends the run.
pub(super) fn run(machine: Machine, workload: Workload) -> ! {
    let is_boot = machine.vcpu.id == VcpuId::BOOT;
    match workload.scene {
        Scene::Absent if is_boot => absent::run(),
        Scene::Msr if is_boot => msr::run(machine),
        Scene::Absent | Scene::Msr => sleep_for_ever(),
    }
    report::tell(machine, workload);
    ports::reset()
}

/// `assertion` held `times` times.
fn hold(assertion: Assertion, times: u64) {
    REPORT.header.findings.hold(assertion, times);
}

/// `assertion` holds once more if `holds`; if not, it is broken, and the caller's line says where.
#[track_caller]
fn expect(assertion: Assertion, holds: bool) {
    if holds {
        hold(assertion, 1);
    } else {
        REPORT.header.findings.refute(assertion, Location::caller().line());
    }
}
