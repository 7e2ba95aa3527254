//! The payload: a bare-metal guest whose vCPUs do one job and report.
//!
//! Reading order: [`metal`], how a vCPU comes to run Rust; [`start`], how it learns its parameters;
//! then [`jobs`]. The jobs of the lab lie in `lab/jobs/`.

#![no_std]
#![no_main]

mod jobs;
#[path = "lab/jobs/mod.rs"]
mod lab;
mod machine;
mod metal;

use core::sync::atomic::Ordering;

use machine::Machine;
use metal::entry::REPORT;
use metal::ports::{self, print_line};
use metal::start_info::StartInfo;
use metal::vcpu::Vcpu;
use metal::{calls, clock, lapic, smp};
use protocol::payload::params::{self, Boot, Start};
use protocol::{MAX_VCPUS, VcpuId};

/// Exit status for parameters that the payload does not know.
const STATUS_USAGE: u8 = 2;

/// Entry of each vCPU at CPL 3, on its own stack. See [`metal::entry`].
extern "C" fn start(vcpu: u64, start_info: u64, first_instruction: u64) -> ! {
    let Some(id) = usize::try_from(vcpu).ok().and_then(VcpuId::new) else { ports::exit(STATUS_USAGE) };
    lapic::enable();
    if smp::is_restart_of(id) {
        lab::continue_after_restart();
    }
    REPORT.vcpus[id.index()].first_instruction.store(first_instruction, Ordering::Relaxed);
    let Some(info) = StartInfo::at(start_info) else { refuse(id, format_args!("No PVH start info")) };
    let Some(line) = info.command_line() else { refuse(id, format_args!("Command line is not UTF-8")) };
    let (workload, boot) = params::parse(line).unwrap_or_else(|error| refuse(id, format_args!("{error}")));
    let (vcpus, khz) = join(id, start_info, boot);
    if khz == 0 {
        refuse(id, format_args!("Unknown TSC rate: this machine has no PIT (give tsc_khz=)"));
    }
    let end_of_memory = info.end_of_memory().unwrap_or(u64::MAX);
    let end_of_ram = info.end_of_ram().unwrap_or(0);
    let vcpus = vcpus.min(MAX_VCPUS);
    let machine = Machine { vcpu: Vcpu { id, khz }, vcpus, end_of_memory, end_of_ram, start_info };
    if id.index() >= machine.vcpus {
        // The command line counts fewer vCPUs than there are.
        calls::halt_forever();
    }
    if id == VcpuId::BOOT {
        REPORT.header.tsc_khz.store(khz, Ordering::Relaxed);
    }
    jobs::run(machine, workload)
}

/// Returns the number of vCPUs and the rate of the clock (kHz). The boot vCPU starts the others,
/// unless the monitor has started them.
fn join(id: VcpuId, start_info: u64, boot: Boot) -> (usize, u32) {
    match boot.start {
        Start::Direct => (boot.vcpus.unwrap_or(1).into(), boot.tsc_khz.unwrap_or_else(clock::measure_khz)),
        Start::Sipi if id == VcpuId::BOOT => {
            let khz = boot.tsc_khz.unwrap_or_else(clock::measure_khz);
            (smp::start_others(start_info, boot.vcpus, khz), khz)
        }
        Start::Sipi => smp::answer(),
    }
}

/// Ends the run because of a bad parameter. All vCPUs find the error; the boot vCPU prints it.
fn refuse(id: VcpuId, why: core::fmt::Arguments<'_>) -> ! {
    if id == VcpuId::BOOT {
        print_line!("{why}");
        ports::exit(STATUS_USAGE)
    }
    calls::halt_forever()
}
