//! The console's output: what a guest prints reaches a reader, and a reader that does not read
//! holds nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use protocol::VcpuId;
use vmm::guest::{Guest, GuestConfig, PayloadSource};
use vmm::hooks::NoHooks;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

use crate::support::elf::{Segment, executable};
use crate::support::{Fixture, LIMIT, alone, guest, kill, needs, start, vmm_run, wait_for};
use steal_time::publisher::PublisherKind;

/// GPA of the code.
const CODE: u64 = 0x10_0000;

/// GPA of the text that it prints.
const TEXT: u64 = 0x20_0000;

/// More than a pipe and the console's buffer hold (bytes).
const LENGTH: usize = 300 << 10;

/// Text in which each byte depends on its place.
fn text() -> Vec<u8> {
    (0..LENGTH).map(|place| (place ^ (place >> 8) ^ (place >> 16)).to_le_bytes()[0]).collect()
}

/// A guest that prints [`text`] on COM1 and resets.
fn printer() -> Fixture {
    let length = u32::try_from(LENGTH).unwrap().to_le_bytes();
    let text_gpa = u32::try_from(TEXT).unwrap().to_le_bytes();
    let code = [
        &[0xbe][..], // mov $TEXT, %esi
        &text_gpa,
        &[0xb9], // mov $LENGTH, %ecx
        &length,
        &[0x66, 0xba, 0xf8, 0x03], // mov $0x3f8, %dx
        &[0xf3, 0x6e],             // rep outsb
        &[0xb0, 0xfe, 0xe6, 0x64], // mov $0xfe, %al; out %al, $0x64
    ];
    let segments = [Segment::of(CODE, &code.concat()), Segment::of(TEXT, &text())];
    Fixture::file("printer.elf", &executable(CODE, &segments))
}

/// A guest that prints without end.
fn endless_printer() -> Fixture {
    // mov $0x3f8, %dx; mov $'!', %al; 1: out %al, %dx; jmp 1b
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xeb, 0xfd];
    Fixture::file("endless.elf", &executable(CODE, &[Segment::of(CODE, &code)]))
}

fn monitor(vcpus: &str, payload: &Fixture) -> Command {
    vmm_run(["--vcpus", vcpus, "--memory", "4", "--publisher", "off", "--quiet", "--payload", payload.arg()])
}

/// A pipe of one page for standard output: the reader's end and the monitor's.
fn stdout_pipe() -> (File, OwnedFd) {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (File::from(reader), writer)
}

#[test]
fn monitor_whose_stdout_is_not_read_ends_by_signal_and_timeout_and_counts_what_is_lost() {
    needs!(kvm);
    let payload = endless_printer();
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("run.json");
    for (ending, status) in [("TERM", 130), ("INT", 130), ("HUP", 130), ("timeout", 4)] {
        let (mut reader, writer) = stdout_pipe();
        let mut command = monitor("1", &payload);
        command.args(["--json", json.to_str().unwrap()]).stdout(writer).stderr(Stdio::piped());
        if ending == "timeout" {
            command.args(["--timeout", "2"]);
        }
        let mut running = start(&mut command);
        drop(command);
        // A byte is there. After it nothing is read
        let mut first = [0];
        reader.read_exact(&mut first).unwrap();
        if ending != "timeout" {
            // Longer than a reader may take no byte until vCPUs wait no longer
            thread::sleep(Duration::from_millis(1500));
            kill(running.id(), ending);
        }
        let mut stderr = running.take_stderr().expect("it is piped");
        assert_eq!(wait_for(running), Some(status), "{ending}");
        let mut lines = String::new();
        stderr.read_to_string(&mut lines).unwrap();
        assert!(
            lines.contains("bytes of the guest's console are lost: it was not read"),
            "{ending}: {lines:?}"
        );
        assert_eq!(lines.lines().count(), 1, "{lines:?}");
        let document: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let lost = document["console_lost"].as_u64().unwrap();
        assert!(lines.starts_with(&format!("{lost} bytes")), "{lines:?} {lost}");
        std::fs::remove_file(&json).unwrap();
    }
}

#[test]
fn monitor_under_a_real_time_policy_whose_stdout_is_not_read_ends_by_signal() {
    needs!(kvm);
    let payload = endless_printer();
    let (mut reader, writer) = stdout_pipe();
    let mut command = monitor("4", &payload);
    command.stdout(writer);
    let policy = ["--policy", "rr", "--mechanism", "class"];
    let mut running = start(command.args(policy).stderr(Stdio::null()));
    drop(command);
    let mut first = [0];
    reader.read_exact(&mut first).unwrap();
    // The pipe and the buffer are full then
    thread::sleep(Duration::from_millis(1500));
    kill(running.id(), "TERM");
    let _ = running.take_stdout();
    assert_eq!(wait_for(running), Some(130));
}

/// Reads all of `reader`, `chunk` bytes at a time, with a pause before each of the first `pauses`.
fn read_slowly(mut reader: File, chunk: usize, pauses: usize, pause: Duration) -> Vec<u8> {
    let (mut all, mut bytes) = (Vec::new(), vec![0; chunk]);
    for _ in 0..pauses {
        thread::sleep(pause);
        let count = reader.read(&mut bytes).unwrap();
        all.extend_from_slice(&bytes[..count]);
    }
    reader.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn nonblocking_stdout_loses_no_byte_while_its_reader_reads() {
    needs!(kvm);
    let payload = printer();
    let (reader, writer) = stdout_pipe();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut command = monitor("1", &payload);
    let running = start(command.stdout(writer));
    drop(command);
    let reading = thread::spawn(move || read_slowly(reader, 4096, 5, Duration::from_millis(200)));
    assert_eq!(wait_for(running), Some(0));
    assert!(reading.join().unwrap() == text(), "bytes are missing, or changed");
}

#[test]
fn slow_reader_throttles_the_guest_and_loses_no_byte() {
    needs!(kvm);
    let payload = printer();
    let (reader, writer) = stdout_pipe();
    let mut command = monitor("1", &payload);
    let running = start(command.stdout(writer));
    drop(command);
    // A page of a pipe becomes free after 4096 bytes: longer than a stalled reader is waited for
    let reading = thread::spawn(move || read_slowly(reader, 64, 40, Duration::from_millis(60)));
    assert_eq!(wait_for(running), Some(0));
    assert!(reading.join().unwrap() == text(), "bytes are missing, or changed");
}

/// A sink that blocks until it is released.
struct Blocked {
    release: mpsc::Receiver<()>,
    written: mpsc::Sender<Vec<u8>>,
}

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The sender is dropped to release it
        let _ = self.release.recv();
        let _ = self.written.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn vcpu_that_waits_for_the_console_can_be_paused_stopped_and_descheduled() {
    needs!(kvm);
    let payload = printer();
    let config = guest(1, PublisherKind::Monitor, "").guest;
    let config = GuestConfig {
        payload: PayloadSource::File { path: payload.path.clone(), flat: false },
        timeout: Some(LIMIT),
        ..config
    };
    let ((release, released), (sender, written)) = (mpsc::channel(), mpsc::channel());
    let sink = Blocked { release: released, written: sender };
    let outcome = alone(|| {
        let guest = Guest::start(&config, std::sync::Arc::new(NoHooks), sink, Timings::since(Instant::now()))
            .unwrap();
        for _ in 0..20 {
            let paused = guest.vm().pause().unwrap();
            thread::sleep(Duration::from_millis(10));
            guest.vm().resume(paused);
            guest.vm().control().stop_all(|_| ());
            assert!(guest.vm().deschedule(VcpuId::BOOT));
            guest.vm().schedule(VcpuId::BOOT);
        }
        drop(release);
        guest.wait().unwrap()
    });
    assert!(matches!(outcome.outcome, Outcome::Reset), "{:?}", outcome.outcome);
    let all: Vec<u8> = written.iter().flatten().collect();
    assert_eq!(all.len() as u64 + outcome.console_loss.bytes, LENGTH as u64);
}
