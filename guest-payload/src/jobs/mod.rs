//! Jobs: what the vCPUs do once they are up.
//!
//! [`frame`] is common to all jobs: start together, measure one window, finish together. The core
//! has one job, [`contend`]: vCPUs that take and release a contended lock. All other jobs belong to
//! the lab.

pub(crate) mod contend;
pub(crate) mod frame;
pub(crate) mod report;
mod section;

use protocol::VcpuId;
use protocol::payload::params::{Job, Workload};

use crate::lab::{checks, conformance, idle, locks, mixed, watch};
use crate::machine::{self, Machine};
use crate::metal::{calls, hints, ports};
use frame::Part;

/// Runs the job of `workload` on this vCPU, and ends the run.
pub(crate) fn run(machine: Machine, workload: Workload) -> ! {
    let is_boot = machine.vcpu.id == VcpuId::BOOT;
    match workload.job {
        Job::Reset if is_boot => ports::reset(),
        #[expect(clippy::panic, reason = "the job tests how a panic is reported")]
        Job::Panic if is_boot => panic!("as requested"),
        Job::Fault if is_boot => undefined_instruction(),
        Job::Conformance => conformance::run(machine, workload),
        Job::Reset | Job::Panic | Job::Fault => calls::halt_forever(),
        Job::Contend | Job::Checks | Job::Watch | Job::Mixed | Job::Idle => {}
    }
    machine::register_record(machine, workload);
    hints::enable(workload, machine.vcpu.khz);
    let part = Part::join(machine, workload);
    match workload.job {
        Job::Checks => checks::run(part),
        Job::Watch => watch::run(part),
        Job::Mixed => mixed::run(part),
        Job::Idle => idle::run(part),
        _ => {
            locks::run(part);
            part.finish(contend::verify)
        }
    }
    part.finish(|_| {})
}

#[expect(unsafe_code, reason = "the job tests how an exception is reported")]
fn undefined_instruction() -> ! {
    // SAFETY: the instruction raises #UD, which ends the run.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
