//! Termination: signals and `--timeout` end the monitor at any moment.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::guest::LabGuest;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{pipe2, write};
use steal_time::publisher::PublisherKind;
use vmm::timings::Timings;

use crate::support::elf::{Segment, executable};
use crate::support::{Fixture, alone, guest, kill, needs, start, vmm_lab, vmm_run, wait_for};

/// A pipe that is full: what is written to it blocks. The reader's end keeps it open.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
    while write(&writer, &[b'.'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// A guest that resets at once.
fn resetting() -> Fixture {
    // mov $0xfe, %al; out %al, $0x64
    let code = [0xb0, 0xfe, 0xe6, 0x64];
    Fixture::file("reset.elf", &executable(0x10_0000, &[Segment::of(0x10_0000, &code)]))
}

/// A guest that sends a byte and spins.
fn spinning() -> Fixture {
    // mov $0x3f8, %dx; mov $'!', %al; out %al, %dx; jmp .
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xeb, 0xfe];
    Fixture::file("spin.elf", &executable(0x10_0000, &[Segment::of(0x10_0000, &code)]))
}

#[test]
fn signal_and_timeout_end_a_monitor_that_prints_its_result_to_a_full_pipe() {
    needs!(kvm);
    let payload = resetting();
    for (ending, status) in [("TERM", 130), ("timeout", 4)] {
        let (_reader, writer) = full_pipe();
        let mut command =
            vmm_run(["--vcpus", "1", "--publisher", "off", "--timings", "--payload", payload.arg()]);
        command.stdout(writer).stderr(Stdio::null());
        if ending == "timeout" {
            command.args(["--timeout", "1"]);
        }
        let running = start(&mut command);
        drop(command);
        if ending != "timeout" {
            // The guest ends much earlier
            thread::sleep(Duration::from_millis(700));
            kill(running.id(), ending);
        }
        assert_eq!(wait_for(running), Some(status), "{ending}");
    }
}

#[test]
fn signal_ends_commands_that_print_to_a_full_pipe() {
    for args in [&["policies"][..], &["--help"], &["run", "--help"], &["--version"]] {
        let (_reader, writer) = full_pipe();
        let mut command = vmm_lab(args);
        let running = start(command.stdout(writer));
        drop(command);
        thread::sleep(Duration::from_millis(200));
        kill(running.id(), "TERM");
        assert_eq!(wait_for(running), Some(130), "{args:?}");
    }
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    needs!(kvm);
    let payload = spinning();
    let run = vmm_run(["--vcpus", "1", "--publisher", "off", "--timeout", "2", "--payload", payload.arg()]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP INT TSTP; exec \"$0\" \"$@\""]).arg(run.get_program());
    command.args(run.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = start(&mut command);
    let mut stdout = running.take_stdout().expect("it is piped");
    stdout.read_exact(&mut [0]).unwrap();
    for signal in ["HUP", "INT", "TSTP"] {
        kill(running.id(), signal);
    }
    assert_eq!(wait_for(running), Some(4), "it runs until its timeout");
}

#[test]
fn signals_of_a_program_that_runs_a_guest_are_blocked_until_the_guest_has_ended() {
    needs!(kvm);
    let ending = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let blocked = || ending.map(|signal| SigSet::thread_get_mask().unwrap().contains(signal));
    assert_eq!(blocked(), [false; 3]);
    let config = guest(1, PublisherKind::Off, "job=idle duration_ms=20");
    let start = || LabGuest::start(&config, io::sink(), Timings::since(Instant::now())).unwrap();
    alone(|| {
        let (first, second) = (start(), start());
        first.wait().unwrap();
        assert_eq!(blocked(), [true; 3]);
        second.wait().unwrap();
    });
    assert_eq!(blocked(), [false; 3]);
}

#[test]
fn timeout_counts_from_the_start_of_the_process_and_covers_all_guests() {
    needs!(kvm);
    let options = ["--guests", "4", "--publisher", "off", "--job", "idle", "--duration-ms", "60000"];
    let mut command = vmm_run(options);
    let running = start(command.args(["--timeout", "1"]).stdout(Stdio::null()));
    assert_eq!(wait_for(running), Some(4));
}

#[test]
fn second_guest_of_an_interrupted_process_ends_at_once() {
    needs!(kvm);
    // The guests end one after the other. Each would run for a minute
    let options = ["--guests", "3", "--publisher", "off", "--job", "idle", "--duration-ms", "60000"];
    let mut running = start(vmm_run(options).stdout(Stdio::piped()));
    thread::sleep(Duration::from_millis(700));
    kill(running.id(), "INT");
    let mut printed = String::new();
    running.take_stdout().expect("it is piped").read_to_string(&mut printed).unwrap();
    assert_eq!(wait_for(running), Some(130));
    assert!(printed.contains("interrupted"), "{printed}");
}
