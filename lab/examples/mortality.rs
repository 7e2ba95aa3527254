//! Mortality: how long each command lives on after SIGTERM, and after its `--timeout`.
//!
//! Each command is ended at random moments of its first second, with its standard output unread,
//! or `/dev/null`. The moments come from a fixed seed. Three are tried at once, so the host is
//! loaded:
//!
//! ```text
//! cargo build --release && cargo run --release --example mortality [MOMENTS]
//! ```
//!
//! Bar: each command ends within 1.2 s of the signal or the deadline.

use std::fmt::Display;
use std::io::{self, PipeReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use host::stdio;
use lab::table::Table;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Moments for each command, unless the first argument says otherwise.
const MOMENTS: usize = 100;

/// The latest moment (ms).
const LATEST_MS: u64 = 1_000;

/// Commands that are tried at once: the host is loaded.
const AT_ONCE: usize = 3;

/// A command that lives for so long afterwards is killed, and counts as this.
const LIMIT: Duration = Duration::from_secs(10);

/// Commands with a guest and a `--timeout`, then those without.
const WITH_TIMEOUT: &[&str] = &[
    "vmm --vcpus 2 --payload PAYLOAD",
    "vmm-lab run --vcpus 4 --duration-ms 60000",
    "vmm-lab run --vcpus 4 --duration-ms 60000 --policy rr:slice=3ms --mechanism class",
    "vmm-lab run --vcpus 4 --duration-ms 60000 --policy rr:slice=3ms --mechanism deschedule",
    "vmm-lab run --guests 6 --job reset --policy rr",
];
const WITHOUT: &[&str] = &[
    "vmm-lab",
    "vmm-lab bench preempted",
    "vmm-lab bench checks",
    "vmm-lab bench locks",
    "vmm-lab bench policies",
    "vmm-lab bench sched",
    "vmm-lab bench accounting",
    "vmm-lab bench startup",
    "vmm-lab bench switch",
    "vmm-lab accuracy",
    "vmm-lab conformance",
    "vmm-lab doctor",
    "vmm-lab policies",
    "vmm-lab write-payload /dev/stdout",
];

/// How a command is ended.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Signal,
    Timeout,
}

impl End {
    fn status(self) -> i32 {
        if self == Self::Signal { 130 } else { 4 }
    }
}

/// The ends of one command.
#[derive(Default)]
struct Ends {
    /// Commands that had ended before the moment.
    early: usize,
    /// Time from the moment to the end.
    after: Vec<Duration>,
    /// Ends with a status other than the documented one, and the last such status.
    other: usize,
    last_other: Option<i32>,
}

fn main() -> Result<()> {
    let moments = std::env::args().nth(1).map_or(Ok(MOMENTS), |text| text.parse())?;
    let binaries = binaries()?;
    let folder = tempfile::tempdir()?;
    let payload = folder.path().join("guest.bin");
    let wrote = Command::new(binaries.join("vmm-lab")).arg("write-payload").arg(&payload).status()?;
    if !wrote.success() {
        return Err(format!("Cannot write the payload: {wrote}").into());
    }
    let header = ["command", "ended", "early", "as documented", "other status", "median s", "slowest s"];
    let mut table = Table::new(&header, 1);
    let commands = WITH_TIMEOUT.iter().map(|command| (*command, true));
    let commands: Vec<_> = commands.chain(WITHOUT.iter().map(|command| (*command, false))).collect();
    for several in commands.chunks(AT_ONCE) {
        let rows: Vec<_> = thread::scope(|scope| {
            let run = |(command, has_timeout): (&'static str, bool)| {
                let (binaries, payload) = (&binaries, &payload);
                scope.spawn(move || measure(command, has_timeout, moments, binaries, payload))
            };
            let threads: Vec<_> = several.iter().copied().map(run).collect();
            threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        for (row, (command, _)) in rows.into_iter().zip(several) {
            table.row(row.map_err(|_| format!("{command}: the measurement panicked"))??.row(command));
        }
        stdio::eprintln(format_args!("{several:?}: done"));
    }
    stdio::print(format_args!(
        "{table}\nEnds after the signal, or after the deadline of --timeout; half of them with a standard\n\
         output that is full and not read. Bar: 1.2 s.\n"
    ))?;
    Ok(())
}

/// Ends `command` at random moments.
fn measure(
    command: &str,
    has_timeout: bool,
    moments: usize,
    binaries: &Path,
    payload: &Path,
) -> io::Result<Ends> {
    let mut ends = Ends::default();
    let mut random = Rng::with_seed(1);
    let line = command.replace("PAYLOAD", &payload.display().to_string());
    for number in 0..moments {
        let end = if has_timeout && number % 4 >= 2 { End::Timeout } else { End::Signal };
        let moment = Duration::from_millis(random.u64(1..LATEST_MS));
        ends.add(binaries, &line, end, moment, number % 2 == 0)?;
    }
    Ok(ends)
}

/// Returns the folder of the binaries, beside that of this example.
fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).ok_or("an example lies in a folder of the binaries'")?.to_owned())
}

impl Ends {
    /// Runs `line`, and ends it at `moment` of its life.
    fn add(
        &mut self,
        binaries: &Path,
        line: &str,
        end: End,
        moment: Duration,
        is_stalled: bool,
    ) -> io::Result<()> {
        let mut words = line.split(' ');
        let binary = binaries.join(words.next().unwrap_or_default());
        let mut command = Command::new(&binary);
        command.args(words).stdin(Stdio::null()).stderr(Stdio::null());
        if end == End::Timeout {
            command.arg("--timeout").arg(moment.as_secs_f64().to_string());
        }
        let unread = is_stalled.then(full_pipe).transpose()?;
        let (stdout, _unread) = match unread {
            Some((reader, stdout)) => (stdout, Some(reader)),
            None => (Stdio::null(), None),
        };
        let began = Instant::now();
        let missing = |error| format!("Cannot start {}: {error} (cargo build --release)", binary.display());
        let mut child = command.stdout(stdout).spawn().map_err(|error| io::Error::other(missing(error)))?;
        let status = wait(&mut child, began + moment)?;
        if status.is_some() && end == End::Signal {
            self.early += 1;
            return Ok(());
        }
        if end == End::Signal {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        }
        let status = match status {
            Some(status) => status,
            None => wait(&mut child, began + moment + LIMIT)?.map_or_else(|| reap(&mut child), Ok)?,
        };
        let after = began.elapsed().saturating_sub(moment);
        if end == End::Timeout && status != end.status() && after.is_zero() {
            self.early += 1;
            return Ok(());
        }
        self.after.push(after);
        if status != end.status() {
            self.other += 1;
            self.last_other = Some(status);
        }
        Ok(())
    }

    fn row(mut self, command: &str) -> Vec<String> {
        self.after.sort();
        let seconds = |time: Option<&Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.2}", time.as_secs_f64()))
        };
        let other = |status: i32| format!("{} x, {status}", self.other);
        let shown = |value: &dyn Display| value.to_string();
        vec![
            command.replace("--duration-ms 60000 ", "").replace(" --payload PAYLOAD", ""),
            shown(&self.after.len()),
            shown(&self.early),
            shown(&(self.after.len() - self.other)),
            self.last_other.map_or_else(|| "-".to_owned(), other),
            seconds(self.after.get(self.after.len() / 2)),
            seconds(self.after.last()),
        ]
    }
}

/// Waits for `child` until `at`. Returns its status, or minus the signal that ended it.
fn wait(child: &mut Child, at: Instant) -> io::Result<Option<i32>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))));
        }
        if Instant::now() >= at {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Kills a command that did not end.
fn reap(child: &mut Child) -> io::Result<i32> {
    child.kill()?;
    Ok(-child.wait()?.signal().unwrap_or(0))
}

/// Returns a pipe that is full: its reader, which reads nothing, and its writer.
fn full_pipe() -> io::Result<(PipeReader, Stdio)> {
    let (reader, mut writer) = io::pipe()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    while writer.write(&[0; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer.into()))
}
