//! Termination: how a signal or the deadline of `--timeout` ends the process.
//!
//! [`run`] starts a thread that receives SIGINT, SIGTERM and SIGHUP and keeps the deadline, from
//! the start of the process to its end. Once either comes, termination is requested, and stays
//! requested. Every wait of the command watches [`fd`], or is a [`wait`]; so the command ends by
//! itself, with what it has measured. A command that does not end within [`GRACE`] is stuck in a
//! system call, such as a write to a pipe that is not read. The thread then ends the process.
//!
//! The command keeps the main thread: starting it on another one delays it by 0.2 ms.
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
use std::sync::{Mutex, OnceLock};
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

/// Stack size of the thread (bytes).
const STACK_BYTES: usize = 64 << 10;

/// Signals that end the process.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Signals of job control.
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

/// Whether results were not printed because of the request.
static IS_CUT_SHORT: AtomicBool = AtomicBool::new(false);

/// Set once by [`run`].
static PROCESS: OnceLock<Process> = OnceLock::new();

/// What the thread of [`run`] shares with the others.
struct Process {
    /// Readable once termination is requested. It is never read.
    requested: EventFd,
    /// Wakes the thread.
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

/// Returns whether termination is requested, for a caller that gives up printing then. The exit
/// status is that of the cause then, whatever the command returns.
pub(crate) fn cuts_short() -> bool {
    let is_requested = requested().is_some();
    IS_CUT_SHORT.fetch_or(is_requested, Ordering::Relaxed);
    is_requested
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

/// Runs `command`, and returns its exit status. If it does not end in time, or cannot print its
/// results any more, the process ends with the status of the [`Cause`]. The main thread calls it,
/// once, before it starts any other thread. `began` is the start of the process.
pub fn run(began: Instant, command: impl FnOnce() -> u8) -> ExitCode {
    match start(began) {
        Ok(()) => {
            let status = command();
            let cause = requested().filter(|_| IS_CUT_SHORT.load(Ordering::Relaxed));
            ExitCode::from(cause.map_or(status, Cause::status))
        }
        Err(error) => {
            let why = error_chain::one_line(&error);
            stdio::eprintln(format_args!("Cannot prepare the process for signals: {why}"));
            ExitCode::from(FAILED)
        }
    }
}

fn start(began: Instant) -> io::Result<()> {
    let signals = block_signals()?;
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let process = Process { requested: event()?, wake: event()?, began, deadline: Mutex::new(None) };
    let process = PROCESS.get_or_init(|| process);
    let thread = thread::Builder::new().name("termination".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || process.watch(&signals))?;
    Ok(())
}

/// Blocks the signals in the main thread, and so in threads that it creates. Returns the descriptor
/// of those that are handled.
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
fn stop() {
    terminal::suspend();
    // None of these calls fails for a valid signal.
    let _ = raise(Signal::SIGTSTP);
    let unblocked = SigSet::from_iter([Signal::SIGTSTP]);
    let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&unblocked), None);
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&unblocked), None);
    terminal::resume();
}

impl Process {
    /// Waits for signals and the deadline until the process ends, and ends it if it is not in time.
    fn watch(&self, signals: &SignalFd) {
        let _helper = helper::register();
        let mut end_at = None;
        loop {
            let until = end_at.or_else(|| *sync::lock(&self.deadline));
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(borrow(&self.wake), PollFlags::POLLIN),
            ];
            // It fails with EINTR only, when the process was stopped.
            let _ = ppoll(&mut fds, left.map(TimeSpec::from), None);
            let _: io::Result<u64> = self.wake.read();
            while let Ok(Some(signal)) = signals.read_signal() {
                match Signal::try_from(signal.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGTSTP) => stop(),
                    Ok(Signal::SIGCONT) => terminal::resume(),
                    _ => self.request(Cause::Interrupted),
                }
            }
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                self.request(Cause::TimedOut);
            }
            let Some(cause) = requested() else { continue };
            if *end_at.get_or_insert(now + GRACE) <= now {
                terminal::restore();
                process::exit(cause.status().into());
            }
        }
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
        // It fails only if the counter is full: the thread is about to wake.
        let _ = self.wake.write(1);
    }
}
