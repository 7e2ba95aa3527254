//! Termination: how a signal or the deadline of `--timeout` ends the process.
//!
//! [`run`] makes the main thread the process's event loop, and runs the command on a thread of its
//! own. The main thread receives SIGINT, SIGTERM and SIGHUP, and keeps the deadline. Once either
//! comes, termination is requested, and stays requested. Every wait of the command watches
//! [`fd`], or is a [`wait`]; so the command ends by itself, with what it has measured. A command
//! that does not end within [`GRACE`] is stuck in a system call, such as a write to a pipe that is
//! not read. The main thread then ends the process.
//!
//! SIGTSTP stops the process with its terminal restored, and SIGCONT makes it raw again. SIGTTIN is
//! blocked: a read from the background fails, and stops no thread.
//!
//! A signal that the process ignored when it started, as under nohup(1), stays ignored.
//!
//! A program that never calls [`run`] handles signals itself: nothing is ever requested.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::signals::{self, borrow};
use crate::{error_chain, helper, stdio, sync, terminal};

/// Time for the command to end by itself, after termination was requested.
pub const GRACE: Duration = Duration::from_secs(1);

/// Exit status after an error of the host.
const FAILED: u8 = 1;

/// Exit status after a panic of the command.
const PANICKED: u8 = 101;

/// Stack size of the command's thread (bytes), that of a main thread.
const STACK_BYTES: usize = 8 << 20;

/// Signals that end the process.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Signals of job control that the main thread handles.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// Why the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// SIGINT, SIGTERM or SIGHUP came.
    Interrupted,
    /// The deadline passed.
    TimedOut,
}

impl Cause {
    /// Returns the exit status of the process.
    pub fn status(self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::TimedOut => 4,
        }
    }
}

/// The cause of a request: 0 for none, or the exit status of the cause.
static REQUESTED: AtomicU8 = AtomicU8::new(0);

/// Set once by [`run`].
static PROCESS: OnceLock<Process> = OnceLock::new();

/// What the main thread shares with the other threads.
struct Process {
    /// Readable once termination is requested. It is never read.
    requested: EventFd,
    /// Wakes the main thread.
    wake: EventFd,
    began: Instant,
    deadline: Mutex<Option<Instant>>,
}

/// Returns the cause, once termination is requested.
pub fn requested() -> Option<Cause> {
    [Cause::Interrupted, Cause::TimedOut]
        .into_iter()
        .find(|cause| cause.status() == REQUESTED.load(Ordering::Acquire))
}

/// Returns a descriptor that is readable once termination is requested, and stays so. It is for
/// poll(2) and epoll(7), never for reading. `None` in a program that did not call [`run`].
pub fn fd() -> Option<BorrowedFd<'static>> {
    PROCESS.get().map(|process| borrow(&process.requested))
}

/// Sleeps for `time`, or until termination is requested; returns the cause then.
pub fn wait(time: Duration) -> Option<Cause> {
    let Some(fd) = fd() else {
        thread::sleep(time);
        return None;
    };
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // It fails only when a signal comes, and no handler is installed.
        let _ = ppoll(&mut [PollFd::new(fd, PollFlags::POLLIN)], Some(TimeSpec::from(left)), None);
        if requested().is_some() || left.is_zero() {
            return requested();
        }
    }
}

/// Sets the deadline of the process, `after` its start. Replaces an earlier one. Has no effect in a
/// program that did not call [`run`].
pub fn set_deadline(after: Duration) {
    if let Some(process) = PROCESS.get() {
        *sync::lock(&process.deadline) = process.began.checked_add(after);
        process.wake();
    }
}

/// Runs `command` on a thread of its own, and returns its exit status, or that of the [`Cause`] if
/// it does not end in time. The main thread calls it, once, before it starts any other thread.
/// `began` is the start of the process.
pub fn run(began: Instant, command: impl FnOnce() -> u8 + Send + 'static) -> ExitCode {
    let status = supervise(began, command).unwrap_or_else(|error| {
        let why = error_chain::one_line(&error);
        stdio::eprintln(format_args!("Cannot prepare the process for signals: {why}"));
        FAILED
    });
    ExitCode::from(status)
}

fn supervise(began: Instant, command: impl FnOnce() -> u8 + Send + 'static) -> io::Result<u8> {
    let signals = block_signals()?;
    let _helper = helper::register();
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let process = Process { requested: event()?, wake: event()?, began, deadline: Mutex::new(None) };
    let process = PROCESS.get_or_init(|| process);
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Over(Arc::clone(&is_over));
    let thread = thread::Builder::new().name("command".to_owned()).stack_size(STACK_BYTES);
    let command = thread.spawn(move || {
        let _over = over;
        command()
    })?;
    process.wait(&signals, &is_over)?;
    Ok(command.join().unwrap_or(PANICKED))
}

/// Blocks the signals of the event loop in the main thread, and so in threads that it creates.
/// Returns their descriptor.
fn block_signals() -> io::Result<SignalFd> {
    let all = ENDING.into_iter().chain(JOB_CONTROL);
    let handled: SigSet = all.filter(|signal| !signals::is_ignored(*signal)).collect();
    let mut blocked = handled;
    // A write beyond the limit on file sizes then fails with EFBIG (setrlimit(2)).
    blocked.add(Signal::SIGXFSZ);
    blocked.add(Signal::SIGTTIN);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None)?;
    Ok(SignalFd::with_flags(&handled, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Stops the process as SIGTSTP does by default, with its terminal restored. Returns when the
/// process continues.
fn stop() -> io::Result<()> {
    terminal::suspend();
    raise(Signal::SIGTSTP)?;
    let unblocked = SigSet::from_iter([Signal::SIGTSTP]);
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&unblocked), None)?;
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&unblocked), None)?;
    terminal::resume();
    Ok(())
}

impl Process {
    /// Waits until the command is over. Ends the process if it is not in time.
    fn wait(&self, signals: &SignalFd, is_over: &AtomicBool) -> io::Result<()> {
        let mut kill_at = None;
        while !is_over.load(Ordering::Acquire) {
            let until = if kill_at.is_some() { kill_at } else { *sync::lock(&self.deadline) };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(borrow(&self.wake), PollFlags::POLLIN),
            ];
            match ppoll(&mut fds, left.map(TimeSpec::from), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let _: io::Result<u64> = self.wake.read();
            while let Ok(Some(signal)) = signals.read_signal() {
                match Signal::try_from(signal.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGTSTP) => stop()?,
                    Ok(Signal::SIGCONT) => terminal::resume(),
                    _ => self.request(Cause::Interrupted),
                }
            }
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                self.request(Cause::TimedOut);
            }
            let Some(cause) = requested() else { continue };
            let kill_at = *kill_at.get_or_insert(now + GRACE);
            if kill_at <= now && !is_over.load(Ordering::Acquire) {
                terminal::restore();
                process::exit(cause.status().into());
            }
        }
        Ok(())
    }

    /// Requests termination. The first cause stays.
    fn request(&self, cause: Cause) {
        let set = REQUESTED.compare_exchange(0, cause.status(), Ordering::AcqRel, Ordering::Acquire);
        if set.is_ok() {
            // The counter does not overflow by a single write.
            let _ = self.requested.write(1);
        }
    }

    fn wake(&self) {
        // It fails only if the counter is full: the main thread is about to wake.
        let _ = self.wake.write(1);
    }
}

/// Reports the end of the command when it is dropped, also by a panic.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        if let Some(process) = PROCESS.get() {
            process.wake();
        }
    }
}
