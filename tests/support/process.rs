//! Processes of tests. While one runs, no other test of the same test binary uses the CPUs.

use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Exclusive, LIMIT};

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status; `None` if a signal ended it.
    pub(crate) status: Option<i32>,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

/// Runs `command` to its end.
///
/// # Panics
/// If it does not end within [`LIMIT`].
pub(crate) fn end_of(command: &mut Command) -> Ended {
    let _exclusive = Exclusive::take();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let pid = child.id();
    let waiting = thread::spawn(move || child.wait_with_output());
    let began = Instant::now();
    while !waiting.is_finished() {
        if began.elapsed() > LIMIT {
            kill(pid, "KILL");
            panic!("{command:?} did not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let Output { status, stdout, stderr } =
        waiting.join().expect("the waiting thread ends").expect("the process can be waited for");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Sends a signal by its name.
pub(crate) fn kill(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(sent.expect("kill is installed").success());
}

/// A process that runs. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    _exclusive: Exclusive,
}

impl Running {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if that is piped and was not taken before.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, if that is piped and was not taken before.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `command`.
pub(crate) fn start(command: &mut Command) -> Running {
    let exclusive = Exclusive::take();
    Running { child: command.spawn().expect("the command starts"), _exclusive: exclusive }
}

/// Waits until a process ends and returns its exit status; `None` if a signal ended it.
///
/// # Panics
/// If it does not end within [`LIMIT`].
pub(crate) fn wait_for(mut running: Running) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = running.child.try_wait().expect("the process can be waited for") {
            return status.code();
        }
        assert!(began.elapsed() < LIMIT, "the process did not end");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a process has used `time` of CPU.
///
/// # Panics
/// If it has not within [`LIMIT`], or has ended.
pub(crate) fn wait_for_cpu_time(running: &Running, time: Duration) {
    let began = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.id())).expect("it runs");
        // The name ends at the last parenthesis. Then come the state, ten more fields, utime and
        // stime in ticks of 10 ms
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        if Duration::from_millis(10 * ticks) >= time {
            return;
        }
        assert!(began.elapsed() < LIMIT, "the process uses no CPU time");
        thread::sleep(Duration::from_millis(2));
    }
}
