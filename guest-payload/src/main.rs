//! The payload: a guest for the metal, whose vCPUs do one job and report.
//!
//! Reading order: [`metal`], how a vCPU comes to run Rust; then [`start`] here, what it finds out and joins; then
//! [`jobs`].

#![no_std]
#![no_main]

mod jobs;
mod metal;

use core::sync::atomic::Ordering;

use guest_payload::steal_time::record_of;
use metal::calls;
use metal::entry::REPORT;
use metal::ports::{self, print_line};
use metal::start_info::StartInfo;
use metal::vcpu::Vcpu;
use metal::{clock, lapic, smp};
use protocol::steal_time::{
    CPUID_FEATURES, CPUID_SIGNATURE, FEATURE_STEAL_TIME, MSR_STEAL_TIME, Registration,
};
use protocol::words::{self, Boot, Start, Workload};
use protocol::{MAX_VCPUS, VcpuId};

/// The exit status of a payload that was asked for what it does not know.
const STATUS_USAGE: u8 = 2;

/// What a vCPU knows once it has come up.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// This vCPU, and the clock's rate.
    vcpu: Vcpu,
    /// How many vCPUs there are.
    vcpus: usize,
    /// The first address that is surely not RAM.
    end_of_memory: u64,
    /// The end of the RAM that is surely there.
    end_of_ram: u64,
    /// Where the start info lies.
    start_info: u64,
}

/// Where each vCPU comes up at CPL 3, on its own stack.
extern "C" fn start(vcpu: u64, start_info: u64, first_instruction: u64) -> ! {
    let Some(id) = usize::try_from(vcpu).ok().and_then(VcpuId::new) else { ports::exit(STATUS_USAGE) };
    lapic::enable();
    if smp::is_second_life_of(id) {
        jobs::live_again();
    }
    REPORT.vcpus[id.index()].first_instruction.store(first_instruction, Ordering::Relaxed);
    let Some(info) = StartInfo::at(start_info) else { refuse(id, format_args!("there is no start info")) };
    let Some(line) = info.command_line() else { refuse(id, format_args!("the command line is no text")) };
    let (workload, boot) = words::parse(line).unwrap_or_else(|error| refuse(id, format_args!("{error}")));
    let (vcpus, khz) = join(id, start_info, boot);
    if khz == 0 {
        refuse(id, format_args!("no PIT tells the rate of the time stamp counter (say tsc_khz=)"));
    }
    let end_of_memory = info.end_of_memory().unwrap_or(u64::MAX);
    let end_of_ram = info.end_of_ram().unwrap_or(0);
    let vcpus = vcpus.min(MAX_VCPUS);
    let machine = Machine { vcpu: Vcpu { id, khz }, vcpus, end_of_memory, end_of_ram, start_info };
    if id.index() >= machine.vcpus {
        // One more than we were told of.
        jobs::sleep_for_ever();
    }
    if id == VcpuId::BOOT {
        REPORT.header.tsc_khz.store(khz, Ordering::Relaxed);
    }
    jobs::run(machine, workload)
}

/// How many vCPUs there are, and the clock's rate (kHz). The boot vCPU starts the others, if nobody else has.
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

/// Ends the run because of something that we were told. Every vCPU may see it; the boot vCPU says it.
fn refuse(id: VcpuId, why: core::fmt::Arguments<'_>) -> ! {
    if id == VcpuId::BOOT {
        print_line!("{why}");
        ports::exit(STATUS_USAGE)
    }
    jobs::sleep_for_ever()
}

/// Whether CPUID shows KVM's signature and the steal-time feature.
fn has_steal_time() -> bool {
    let signature = calls::cpuid(CPUID_SIGNATURE);
    let words = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes);
    words.as_flattened() == b"KVMKVMKVM\0\0\0"
        && signature.eax >= CPUID_FEATURES
        && calls::cpuid(CPUID_FEATURES).eax & FEATURE_STEAL_TIME != 0
}

/// Registers this vCPU's record, if it is wanted and can be had.
fn register(machine: Machine, workload: Workload) {
    if workload.register && has_steal_time() {
        let gpa = core::ptr::from_ref(record_of(machine.vcpu.id)).addr() as u64;
        let registered = calls::write_msr(MSR_STEAL_TIME, Registration::At { gpa }.to_msr());
        assert!(registered.is_ok(), "the steal-time MSR takes a record's address");
    }
}
