//! Foreign payloads: guests that were not made for this monitor, and how they end.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../support/monitor.rs"]
mod support;
mod vcpu;

use std::io::Read;
use std::process::Stdio;

use support::elf::{Segment, executable};
use support::{Ended, Fixture, end_of, has, kill, needs, start, vmm, wait_for};

/// GPA at which test code is loaded and entered, in long mode at CPL 0.
const ENTRY_GPA: u64 = 0x10_0000;

/// `mov $status, %al; out %al, $0xf4`.
const EXIT_WITH_AL: [u8; 2] = [0xe6, 0xf4];

/// Runs machine code as an ELF file without notes.
fn run_code(code: &[u8], args: &[&str]) -> Option<Ended> {
    if !has::kvm() {
        return None;
    }
    let payload = Fixture::file("code.elf", &executable(ENTRY_GPA, &[Segment::of(ENTRY_GPA, code)]));
    let all = ["--vcpus", "1", "--publisher", "off", "--quiet", "--payload", payload.arg()];
    Some(end_of(&mut vmm(all.iter().chain(args))))
}

/// The exit status of machine code.
fn status_of(code: &[u8]) -> Option<i32> {
    run_code(code, &[])?.status
}

#[test]
fn foreign_pvh_kernel_starts_its_second_cpu_and_resets() {
    needs!(kvm);
    let kernel = Fixture::assembled("foreign.S");
    for publisher in ["off", "auto"] {
        let args = ["--vcpus", "2", "--quiet", "--publisher", publisher, "--payload", kernel.arg()];
        let ended = end_of(&mut vmm(args));
        assert_eq!(ended.stdout, "foreign: boot CPU runs\nforeign: second CPU ran\n", "{ended:?}");
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
fn elf_without_notes_is_entered_in_long_mode() {
    // %al gets the top bit of %rax: 1 only if registers have 64 bits
    let code = [
        &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80][..], // movabs $1 << 63, %rax
        &[0x48, 0xc1, 0xe8, 63],                      // shr $63, %rax
        &EXIT_WITH_AL,
    ];
    if let Some(status) = status_of(&code.concat()) {
        assert_eq!(status, 1);
    }
}

#[test]
fn flat_binary_is_loaded_at_1_mib() {
    needs!(kvm);
    // lea 0(%rip), %rax; shr $16, %eax: 0x100007 becomes 0x10.
    let code = [&[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc1, 0xe8, 16][..], &EXIT_WITH_AL].concat();
    let flat = Fixture::file("flat.bin", &code);
    let ended = end_of(&mut vmm([
        "--vcpus",
        "1",
        "--publisher",
        "off",
        "--quiet",
        "--flat",
        "--payload",
        flat.arg(),
    ]));
    assert_eq!(ended.status, Some(0x10), "{ended:?}");
}

#[test]
fn string_output_sends_every_byte_to_the_same_port() {
    // lea text(%rip), %rsi; mov $4, %ecx; mov $0x3f8, %dx; rep outsb; mov $0xfe, %al; out %al,
    // $0x64; text
    let code = [
        &[0x48, 0x8d, 0x35, 15, 0, 0, 0][..],
        &[0xb9, 4, 0, 0, 0],
        &[0x66, 0xba, 0xf8, 0x03],
        &[0xf3, 0x6e],
        &[0xb0, 0xfe, 0xe6, 0x64],
        b"abc\n",
    ];
    if let Some(ended) = run_code(&code.concat(), &[]) {
        assert_eq!((ended.stdout.as_str(), ended.status), ("abc\n", Some(0)), "{ended:?}");
    }
}

#[test]
fn exit_port_gives_the_exit_status_by_byte_and_by_wide_writes() {
    if let Some(status) = status_of(&[&[0xb0, 42][..], &EXIT_WITH_AL].concat()) {
        assert_eq!(status, 42);
        // mov $42, %eax; out %eax, $0xf4
        assert_eq!(status_of(&[0xb8, 42, 0, 0, 0, 0xe7, 0xf4]), Some(42));
    }
}

#[test]
fn unclaimed_ports_and_addresses_read_all_ones_and_ignore_writes() {
    // in $0x70, %al
    if let Some(status) = status_of(&[&[0xe4, 0x70][..], &EXIT_WITH_AL].concat()) {
        assert_eq!(status, 0xff);
        // mov $0xd0000000, %eax; movb $5, (%rax); mov (%rax), %al
        let code = [&[0xb8, 0, 0, 0, 0xd0, 0xc6, 0x00, 5, 0x8a, 0x00][..], &EXIT_WITH_AL].concat();
        assert_eq!(status_of(&code), Some(0xff));
        // mov $5, %al; out %al, $0x70; in $0x70, %al
        assert_eq!(status_of(&[&[0xb0, 5, 0xe6, 0x70, 0xe4, 0x70][..], &EXIT_WITH_AL].concat()), Some(0xff));
    }
}

#[test]
fn triple_fault_ends_with_its_registers_and_status_3() {
    // ud2, without an IDT
    if let Some(ended) = run_code(&[0x0f, 0x0b], &[]) {
        assert_eq!(ended.status, Some(3), "{ended:?}");
        assert!(ended.stderr.contains("vCPU 0: triple fault"), "{ended:?}");
        assert!(ended.stderr.contains("rip 0000000000100000"), "{ended:?}");
    }
}

#[test]
fn access_to_the_msr_faults_without_a_publisher() {
    // mov $0x4b564d03, %ecx; rdmsr: #GP, and without an IDT a triple fault
    if let Some(ended) = run_code(&[0xb9, 0x03, 0x4d, 0x56, 0x4b, 0x0f, 0x32, 0xb0, 0, 0xe6, 0xf4], &[]) {
        assert_eq!(ended.status, Some(3), "{ended:?}");
    }
}

#[test]
fn endless_guest_is_ended_by_the_timeout() {
    // jmp .
    if let Some(ended) = run_code(&[0xeb, 0xfe], &["--timeout", "0.2"]) {
        assert_eq!(ended.status, Some(4), "{ended:?}");
        // hlt with interrupts off: nothing wakes it
        assert_eq!(run_code(&[0xf4], &["--timeout", "0.2"]).and_then(|ended| ended.status), Some(4));
    }
}

#[test]
fn ctrl_c_ends_the_run_and_is_reported() {
    needs!(kvm);
    // Sends a byte, then spins: mov $0x3f8, %dx; mov $'!', %al; out %al, %dx; jmp .
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xeb, 0xfe];
    let payload = Fixture::file("code.elf", &executable(ENTRY_GPA, &[Segment::of(ENTRY_GPA, &code)]));
    for signal in ["INT", "TERM"] {
        let mut child = start(vmm(["--vcpus", "3", "--payload", payload.arg()]).stdout(Stdio::piped()));
        let mut stdout = child.take_stdout().unwrap();
        let mut first = [0];
        stdout.read_exact(&mut first).unwrap();
        kill(child.id(), signal);
        assert_eq!(wait_for(child), Some(130));
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert!(rest.starts_with("3 vCPUs, publisher ") && rest.ends_with(": interrupted\n"), "{rest}");
    }
}

#[test]
fn guest_whose_console_reader_is_gone_runs_on() {
    needs!(kvm);
    // Sends a thousand bytes to the closed pipe, then exits with 7
    let code = [
        &[0x66, 0xba, 0xf8, 0x03, 0xb9, 0xe8, 0x03, 0, 0][..], // mov $0x3f8, %dx; mov $1000, %ecx
        &[0xb0, b'x', 0xee, 0xff, 0xc9, 0x75, 0xfb], // mov $'x', %al; 1: out %al, %dx; dec %ecx; jnz 1b - 2
        &[0xb0, 7],
        &EXIT_WITH_AL,
    ];
    let payload =
        Fixture::file("code.elf", &executable(ENTRY_GPA, &[Segment::of(ENTRY_GPA, &code.concat())]));
    let args = ["--vcpus", "1", "--publisher", "off", "--quiet", "--payload", payload.arg()];
    let mut child = start(vmm(args).stdout(Stdio::piped()));
    drop(child.take_stdout());
    assert_eq!(wait_for(child), Some(7));
}
