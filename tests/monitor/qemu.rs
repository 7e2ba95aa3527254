//! The embedded payload under QEMU: the same file and parameters, another monitor.

use std::process::Command;

use crate::support::{Ended, Fixture, end_of, has, shared};

const QEMU: &str = "qemu-system-x86_64";

/// The exit status of QEMU after the payload writes `status` to `isa-debug-exit`.
fn debug_exit(status: i32) -> i32 {
    2 * status + 1
}

/// The accelerators of QEMU that this host has, as options.
fn accelerators() -> Vec<&'static [&'static str]> {
    let mut accelerators: Vec<&[&str]> = Vec::new();
    if has::program(QEMU) {
        accelerators.push(&["-accel", "tcg", "-cpu", "max"]);
        if has::kvm() {
            accelerators.push(&["-enable-kvm", "-cpu", "host,-arch-capabilities"]);
        }
    }
    accelerators
}

/// Runs the payload with these parameters.
fn boot(accelerator: &[&str], vcpus: usize, params: &str) -> Ended {
    let payload = Fixture::file("guest.bin", lab::payload::BYTES);
    let smp = vcpus.to_string();
    let machine =
        ["-M", "q35", "-smp", &smp, "-m", "64", "-nodefaults", "-display", "none", "-serial", "stdio"];
    let end = ["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
    let kernel = ["-kernel", payload.arg(), "-append", params];
    let mut qemu = Command::new(QEMU);
    qemu.args(accelerator).args(machine).args(end).args(kernel).stdin(std::process::Stdio::null());
    shared(|| end_of(&mut qemu))
}

#[test]
fn payload_counts_its_vcpus_and_contends_for_each_lock() {
    for accelerator in accelerators() {
        for (vcpus, lock) in [(1, "tas"), (2, "ticket"), (4, "mutex")] {
            let params = format!("lock={lock} wait=threshold duration_ms=100 warmup_ms=20");
            let ended = boot(accelerator, vcpus, &params);
            assert_eq!(ended.status, Some(0), "{accelerator:?} {ended:?}");
            assert!(ended.stdout.contains(&format!("{vcpus} vCPUs, job=contend lock={lock}")), "{ended:?}");
            assert!(ended.stdout.contains("acquisitions/s"), "{ended:?}");
        }
    }
}

#[test]
fn payload_with_vcpus_and_tsc_khz_given_measures_neither() {
    for accelerator in accelerators() {
        let ended = boot(accelerator, 2, "job=watch vcpus=2 tsc_khz=2000000 duration_ms=50");
        assert_eq!(ended.status, Some(0), "{accelerator:?} {ended:?}");
        assert!(ended.stdout.contains("own preempted set in 0 of"), "{ended:?}");
    }
}

#[test]
fn in_kernel_record_under_qemu_keeps_the_msr_assertions() {
    for accelerator in accelerators().into_iter().filter(|accelerator| accelerator.contains(&"-enable-kvm")) {
        let ended = boot(accelerator, 2, "job=conformance scene=msr");
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(
            ended.stdout.contains("feature-offered: held") && !ended.stdout.contains("BROKEN"),
            "{ended:?}"
        );
    }
}

#[test]
fn idle_and_reset_end_by_the_i8042_reset() {
    for accelerator in accelerators() {
        for params in ["job=reset", "job=idle duration_ms=30 warmup_ms=5"] {
            assert_eq!(boot(accelerator, 2, params).status, Some(0), "{accelerator:?} {params}");
        }
    }
}

#[test]
fn panic_exception_and_unknown_parameter_are_reported_on_com1_and_by_the_exit_port() {
    for accelerator in accelerators() {
        for (params, status, text) in [
            ("job=panic", 3, "vCPU 0: panicked at"),
            ("job=fault", 3, "vCPU 0: exception 6 (undefined instruction) at rip 0x4"),
            ("lock=spin", 2, "Parameter lock=spin: the value must be one of tas, virt, ticket"),
        ] {
            let ended = boot(accelerator, 2, params);
            assert_eq!(ended.status, Some(debug_exit(status)), "{accelerator:?} {ended:?}");
            assert!(ended.stdout.contains(text), "{ended:?}");
        }
    }
}
