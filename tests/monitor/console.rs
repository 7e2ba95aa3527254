//! The console: input reaches a foreign guest, and a terminal is restored.

#![expect(unsafe_code, reason = "a child takes its controlling terminal before it executes the monitor")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Exclusive, Fixture, LIMIT, Running, end_of, kill, needs, start, vmm_run, wait_for};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

fn echo(fixture: &Fixture) -> Command {
    vmm_run(["--vcpus", "1", "--memory", "4", "--publisher", "off", "--quiet", "--payload", fixture.arg()])
}

#[test]
fn piped_bytes_reach_the_guest_in_order_whatever_their_number() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    let mut text: Vec<u8> =
        (0..3000_u32).map(|place| b"abcdefghij\r\n\x03\x01 "[place as usize % 15]).collect();
    text.push(b'q');
    let expected = [b">", &text[..]].concat();

    let exclusive = Exclusive::take();
    let mut monitor = echo(&fixture);
    monitor.args(["--timeout", "30"]);
    let mut child = monitor.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = {
        let text = text.clone();
        thread::spawn(move || stdin.write_all(&text))
    };
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().expect("the monitor reads all of it");
    assert_eq!((output.status.code(), &output.stdout), (Some(0), &expected));

    drop(exclusive);

    // The same from a plain file, which epoll refuses
    let file = Fixture::file("typed", &text);
    let ended = end_of(echo(&fixture).stdin(File::open(&file.path).unwrap()));
    assert_eq!((ended.status, ended.stdout.as_bytes()), (Some(0), &expected[..]));
}

#[test]
fn end_of_standard_input_does_not_end_the_guest() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    let ended = end_of(echo(&fixture).args(["--timeout", "0.3"]).stdin(Stdio::null()));
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(4), ">"));
}

/// Makes standard input the controlling terminal of the calling process, in a new session.
fn take_terminal() -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: TIOCSCTTY takes an integer and touches no memory.
    match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A monitor in the foreground of its own terminal.
struct OnTerminal {
    running: Running,
    /// The user's side.
    keyboard: File,
    /// The monitor's side.
    terminal: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    fn start(command: &mut Command) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let before = tcgetattr(pty.slave.as_fd()).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec the closure makes two system calls. It allocates nothing
        // and takes no lock.
        unsafe { command.pre_exec(take_terminal) };
        let running = start(command);
        Self { running, keyboard: File::from(pty.master), terminal: pty.slave, before }
    }

    /// Reads until `text` arrives.
    fn wait_for(&mut self, text: &str) {
        let (began, mut seen) = (Instant::now(), Vec::new());
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut chunk = [0; 256];
            let count = self.keyboard.read(&mut chunk).expect("the terminal is there");
            seen.extend_from_slice(&chunk[..count]);
            assert!(began.elapsed() < LIMIT, "{:?}", String::from_utf8_lossy(&seen));
        }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal is there");
    }

    fn is_raw(&self) -> bool {
        let now = tcgetattr(self.terminal.as_fd()).unwrap();
        !now.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits until the monitor ends and asserts that the terminal is restored.
    fn end(self) -> Option<i32> {
        let status = wait_for(self.running);
        assert_eq!(tcgetattr(self.terminal.as_fd()).unwrap(), self.before);
        status
    }
}

#[test]
fn terminal_of_a_foreign_guest_is_raw_and_restored_however_the_run_ends() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    for (ending, status) in [("q", 0), ("\x01x", 130), ("TERM", 130), ("INT", 130), ("timeout", 4)] {
        let mut command = echo(&fixture);
        if ending == "timeout" {
            command.args(["--timeout", "1"]);
        }
        let mut monitor = OnTerminal::start(&mut command);
        monitor.wait_for(">");
        assert!(monitor.is_raw(), "{ending:?}");
        // The guest gets Ctrl-C, and the second of two escapes
        monitor.type_keys(b"\x03a\x01\x01b");
        monitor.wait_for("\x03a\x01b");
        match ending {
            "TERM" | "INT" => kill(monitor.running.id(), ending),
            "timeout" => {}
            keys => monitor.type_keys(keys.as_bytes()),
        }
        assert_eq!(monitor.end(), Some(status), "{ending:?}");
    }
}

#[test]
fn escape_is_printed_and_an_early_end_restores_the_terminal() {
    needs!(kvm);
    let fixture = Fixture::assembled("echo.S");
    let mut command =
        vmm_run(["--vcpus", "1", "--memory", "4", "--publisher", "off", "--payload", fixture.arg()]);
    let mut monitor = OnTerminal::start(&mut command);
    monitor.wait_for("Ctrl-A x");
    monitor.type_keys(b"\x01x");
    assert_eq!(monitor.end(), Some(130));
}

#[test]
fn terminal_of_the_embedded_payload_stays_cooked() {
    needs!(kvm);
    let options = ["--vcpus", "2", "--publisher", "off", "--job", "idle", "--duration-ms", "60000"];
    let mut monitor = OnTerminal::start(&mut vmm_run(options));
    thread::sleep(Duration::from_millis(300));
    assert!(!monitor.is_raw());
    // So the terminal turns Ctrl-C into SIGINT
    monitor.type_keys(b"\x03");
    assert_eq!(monitor.end(), Some(130));
}
