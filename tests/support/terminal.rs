//! Processes on a terminal of their own.

#![expect(unsafe_code, reason = "a child takes its controlling terminal before it executes the program")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::tcgetpgrp;

use super::{LIMIT, Running, start, wait_for};

/// Makes standard input the controlling terminal of the calling process, in a new session.
fn take_terminal() -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: TIOCSCTTY takes an integer and touches no memory.
    match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process in the foreground of its own terminal, as the leader of a session.
pub(crate) struct OnTerminal {
    running: Running,
    /// The user's side.
    keyboard: File,
    /// The process's side.
    terminal: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    /// Starts `command` with the terminal as its standard streams.
    pub(crate) fn start(command: &mut Command) -> Self {
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

    /// Reads until `text` arrives, and returns what was read.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let (began, mut seen) = (Instant::now(), Vec::new());
        loop {
            let read = String::from_utf8_lossy(&seen);
            if read.contains(text) {
                return read.into_owned();
            }
            assert!(began.elapsed() < LIMIT, "{read:?}");
            let mut fds = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(500_u16)).expect("a terminal can be polled") == 0 {
                continue;
            }
            let mut chunk = [0; 256];
            let count = self.keyboard.read(&mut chunk).expect("the terminal is there");
            seen.extend_from_slice(&chunk[..count]);
        }
    }

    /// Types `keys`.
    pub(crate) fn type_keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal is there");
    }

    /// The process ID of the leader.
    pub(crate) fn id(&self) -> u32 {
        self.running.id()
    }

    /// The process group in the foreground.
    pub(crate) fn foreground(&self) -> u32 {
        let group = tcgetpgrp(self.keyboard.as_fd()).expect("the terminal has a session");
        group.as_raw().cast_unsigned()
    }

    /// Waits until the terminal is raw, or is not.
    pub(crate) fn wait_until_raw(&self, is_raw: bool) {
        let began = Instant::now();
        while self.is_raw() != is_raw {
            assert!(began.elapsed() < LIMIT, "the terminal's mode stays");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns whether the terminal is raw.
    pub(crate) fn is_raw(&self) -> bool {
        let now = tcgetattr(self.terminal.as_fd()).unwrap();
        !now.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits until the process ends, and asserts that the terminal is restored.
    pub(crate) fn end(self) -> Option<i32> {
        let status = wait_for(self.running);
        assert_eq!(tcgetattr(self.terminal.as_fd()).unwrap(), self.before);
        status
    }
}
