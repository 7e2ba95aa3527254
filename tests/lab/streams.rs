//! Standard streams that cannot be written: they cost neither the exit status nor a panic.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::unistd::pipe2;

use crate::support::elf::{Segment, executable};
use crate::support::{Fixture, end_of, needs, start, vmm_lab, vmm_run, wait_for};

/// GPA of the code of guests.
const CODE: u64 = 0x10_0000;

/// Ways in which a stream cannot be written.
#[derive(Clone, Copy, Debug)]
enum Broken {
    /// A full disk.
    Full,
    /// A pipe whose reader has closed it.
    ClosedPipe,
    /// A terminal that has hung up.
    HungUp,
    /// A descriptor open for reading only.
    ReadOnly,
}

impl Broken {
    const ALL: [Self; 4] = [Self::Full, Self::ClosedPipe, Self::HungUp, Self::ReadOnly];

    fn stream(self) -> Stdio {
        match self {
            Self::Full => full_disk(),
            Self::ClosedPipe => pipe2(OFlag::O_CLOEXEC).expect("a pipe").1.into(),
            Self::HungUp => openpty(None, None).expect("a pseudo-terminal").slave.into(),
            Self::ReadOnly => File::open("/dev/null").unwrap().into(),
        }
    }
}

/// A stream on a full disk.
fn full_disk() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("Linux has it").into()
}

fn code(bytes: &[u8]) -> Fixture {
    Fixture::file("code.elf", &executable(CODE, &[Segment::of(CODE, bytes)]))
}

/// The status of `command`, whose standard error is `broken`.
fn status(mut command: Command, broken: Broken) -> Option<i32> {
    wait_for(start(command.stdout(Stdio::null()).stderr(broken.stream())))
}

#[test]
fn errors_keep_their_status_when_standard_error_cannot_be_written() {
    for broken in Broken::ALL {
        assert_eq!(status(vmm_lab(["--bogus"]), broken), Some(2), "{broken:?}");
        assert_eq!(status(vmm_run(["--vcpus", "0"]), broken), Some(2), "{broken:?}");
        assert_eq!(status(vmm_run(["--payload", "/nowhere"]), broken), Some(1), "{broken:?}");
    }
}

#[test]
fn guests_keep_their_status_when_standard_error_cannot_be_written() {
    needs!(kvm);
    // ud2, without an IDT; mov $7, %al; out %al, $0xf4
    let (crashing, exiting) = (code(&[0x0f, 0x0b]), code(&[0xb0, 7, 0xe6, 0xf4]));
    let run = |payload: &Fixture| vmm_run(["--publisher", "off", "--timings", "--payload", payload.arg()]);
    for broken in Broken::ALL {
        assert_eq!(status(run(&crashing), broken), Some(3), "{broken:?}");
        assert_eq!(status(run(&exiting), broken), Some(7), "{broken:?}");
    }
}

#[test]
fn guest_keeps_its_status_when_neither_stream_can_be_written() {
    needs!(kvm);
    // mov $0x3f8, %dx; mov $'x', %al; out %al, %dx; mov $7, %al; out %al, $0xf4
    let printing = code(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xb0, 7, 0xe6, 0xf4]);
    for broken in Broken::ALL {
        let mut command = vmm_run(["--publisher", "off", "--quiet", "--payload", printing.arg()]);
        let running = start(command.stdout(broken.stream()).stderr(broken.stream()));
        assert_eq!(wait_for(running), Some(7), "{broken:?}");
    }
}

#[test]
fn closed_streams_cost_no_status() {
    needs!(kvm);
    let exiting = code(&[0xb0, 7, 0xe6, 0xf4]);
    let guest = vmm_run(["--publisher", "off", "--timings", "--payload", exiting.arg()]);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"]).arg(guest.get_program()).args(guest.get_args());
    assert_eq!(wait_for(start(command.stdin(Stdio::null()))), Some(7));
}

#[test]
fn console_on_a_full_disk_is_reported_as_lost() {
    needs!(kvm);
    let printing = code(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xb0, 7, 0xe6, 0xf4]);
    let mut command = vmm_run(["--publisher", "off", "--quiet", "--payload", printing.arg()]);
    let running = start(command.stdout(full_disk()).stderr(Stdio::piped()));
    let (status, stderr) = finished(running);
    assert_eq!(status, Some(7));
    assert!(stderr.starts_with("1 bytes of the guest's console are lost: "), "{stderr:?}");
    assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
}

/// The status of a process, and what it wrote to its piped standard error.
fn finished(mut running: crate::support::Running) -> (Option<i32>, String) {
    let stderr = running.take_stderr().expect("it is piped");
    let status = wait_for(running);
    (status, std::io::read_to_string(stderr).expect("text"))
}

#[test]
fn help_and_version_on_a_full_disk_are_errors_that_are_reported() {
    for args in [&["--help"][..], &["-h"], &["--version"], &["run", "--help"], &["policies"]] {
        let mut command = vmm_lab(args);
        let (status, stderr) = finished(start(command.stdout(full_disk()).stderr(Stdio::piped())));
        assert_eq!(status, Some(1), "{args:?}");
        assert!(stderr.starts_with("Cannot print"), "{args:?}: {stderr:?}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr:?}");
    }
    let printed = end_of(&mut vmm_lab(["--help"]));
    assert_eq!((printed.status, printed.stderr.as_str()), (Some(0), ""));
    assert!(printed.stdout.contains("Usage:"), "{printed:?}");
}

#[test]
fn progress_on_a_broken_standard_error_costs_no_status() {
    needs!(kvm);
    let bench = "bench locks --lock tas --wait spin --overcommit 1 --publisher off --rounds 1 --retries 0";
    let bench: Vec<_> = bench.split(' ').chain(["--duration-ms", "50"]).collect();
    for broken in Broken::ALL {
        assert_eq!(status(vmm_lab(&bench), broken), Some(0), "{broken:?}");
    }
    assert_eq!(status(vmm_lab(["conformance", "--publishers", "off"]), Broken::Full), Some(0));
    // A terminal that hangs up while the bar is drawn
    let pty = openpty(None, None).expect("a pseudo-terminal");
    let mut command = vmm_lab(&bench);
    command.stdout(Stdio::null()).stderr(pty.slave.try_clone().unwrap());
    let running = start(&mut command);
    drop((command, pty.slave));
    nix::unistd::read(pty.master.as_fd(), &mut [0; 16]).expect("the bar is drawn");
    drop(pty.master);
    assert_eq!(wait_for(running), Some(0));
}

#[test]
fn limit_on_file_sizes_is_an_error_that_is_reported() {
    needs!(kvm);
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("run.json");
    let exiting = code(&[0xb0, 7, 0xe6, 0xf4]);
    let guest = vmm_run([
        "--publisher",
        "off",
        "--quiet",
        "--payload",
        exiting.arg(),
        "--json",
        json.to_str().expect("a plain path"),
    ]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\""]).arg(guest.get_program());
    command.args(guest.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (status, stderr) = finished(start(&mut command));
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("File too large"), "{stderr}");
}
