//! Conformance: judges from inside what a guest may rely on.
//!
//! A scene sets up the situation of some assertions and tries them as often as it can. It counts
//! each observation ([`verdict::judge`], [`verdict::expect`]); a broken assertion is recorded with
//! its source line. The monitor chooses how many vCPUs and CPUs a scene gets.

mod absent;
mod block;
mod check;
pub(super) mod init;
mod io_apic;
mod msr;
mod roam;
mod spin;
mod verdict;

use io_apic::Source;
use protocol::VcpuId;
use protocol::payload::params::{Scene, Workload};

use crate::jobs::frame::Part;
use crate::jobs::report;
use crate::machine::{self, Machine};
use crate::metal::{calls, ports};

/// Plays the scene of `workload`, and ends the run.
pub(crate) fn run(machine: Machine, workload: Workload) -> ! {
    match workload.scene {
        Scene::Absent | Scene::Msr | Scene::Check | Scene::Init | Scene::InitByPit | Scene::InitByCom1 => {
            run_alone(machine, workload)
        }
        Scene::Roam | Scene::Spin | Scene::Block => run_together(machine, workload),
    }
}

/// Runs a scene that the boot vCPU directs. The scene registers its own records.
fn run_alone(machine: Machine, workload: Workload) -> ! {
    match workload.scene {
        Scene::Init | Scene::InitByPit | Scene::InitByCom1 if machine.vcpu.id == init::other() => {
            init::before_restart()
        }
        _ if machine.vcpu.id != VcpuId::BOOT => calls::halt_forever(),
        Scene::Init => init::run(machine, None),
        Scene::InitByPit => init::run(machine, Some(Source::Pit)),
        Scene::InitByCom1 => init::run(machine, Some(Source::Com1)),
        Scene::Absent => absent::run(),
        Scene::Check => check::run(),
        _ => msr::run(machine),
    }
    report::print(machine, workload);
    ports::reset()
}

/// Runs a scene of all vCPUs, each with a record.
fn run_together(machine: Machine, workload: Workload) -> ! {
    if workload.scene == Scene::Roam {
        roam::prepare(machine.vcpu.id.index());
    } else {
        spin::prepare(machine.vcpu.id);
        machine::register_record(machine, workload);
    }
    let part = Part::join(machine, workload);
    match workload.scene {
        Scene::Roam => roam::run(part),
        Scene::Block => block::run(part),
        _ => spin::run(part),
    }
    part.finish(|_| {})
}
