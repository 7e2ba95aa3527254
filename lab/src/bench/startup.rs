//! Start-up: from nothing to the end of a guest that resets at once, beside QEMU with the same payload, and beside a
//! process that does nothing: below that nobody can be.
//!
//! Each program is run as a whole process, in turn, one of each a round. Wall time is from before the process is
//! made until it has been waited for; memory is its peak resident size. What only we can tell, the time to the first
//! guest instruction, comes from our own clock and the guest's.

use std::fmt::{self, Display};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tempfile::TempDir;

use super::{Bench, BenchError, median};
use crate::cli::StartupArgs;
use crate::payload;
use crate::table::{Table, figure};
use host::child;
use host::facts::HostFacts;

/// One program that is measured.
struct Contender {
    name: &'static str,
    command: Vec<String>,
    /// Whether it writes our results document.
    ours: bool,
    wall: Vec<Duration>,
    peak_kib: Vec<u64>,
    to_main: Vec<Duration>,
    to_first_instruction: Vec<Duration>,
}

/// What came of it.
pub(super) struct StartupBench {
    host: HostFacts,
    contenders: Vec<Contender>,
    rounds: u16,
    vcpus: usize,
    missing: Option<String>,
}

pub(super) fn run(args: &StartupArgs) -> Result<StartupBench, BenchError> {
    let folder = tempfile::tempdir().map_err(|error| failed("a temporary folder", &error))?;
    let payload = folder.path().join("guest.bin");
    fs::write(&payload, payload::BYTES).map_err(|error| failed("the payload", &error))?;
    let mut contenders = contenders(&folder, &payload.display().to_string(), args.vcpus)?;
    let qemu = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let missing =
        qemu.err().map(|error| format!("{QEMU} is not here ({error}): install qemu-system-x86 to compare"));
    if missing.is_some() {
        contenders.retain(|contender| contender.command.first().is_none_or(|program| program != QEMU));
    }
    // One round that does not count fills the caches.
    for round in 0..=args.rounds {
        for contender in &mut contenders {
            contender.measure(&folder, round > 0)?;
        }
    }
    Ok(StartupBench { host: HostFacts::probe(), contenders, rounds: args.rounds, vcpus: args.vcpus, missing })
}

const NOTHING: &str = "/bin/true";
const QEMU: &str = "qemu-system-x86_64";

fn contenders(folder: &TempDir, payload: &str, vcpus: usize) -> Result<Vec<Contender>, BenchError> {
    let me = std::env::current_exe().map_err(|error| failed("the path of this program", &error))?;
    let me = me.display().to_string();
    let json = folder.path().join("run.json").display().to_string();
    let ours = |name, publisher: &str| {
        let vcpus = vcpus.to_string();
        let args =
            ["run", "--vcpus", &vcpus, "--payload", payload, "--job", "reset", "--publisher", publisher];
        let rest = ["--memory", "64", "--quiet", "--json", &json];
        let command = [me.as_str()].into_iter().chain(args).chain(rest).map(str::to_owned).collect();
        Contender::new(name, command, true)
    };
    let qemu = |name, machine: &str| {
        let smp = vcpus.to_string();
        let words = format!("job=reset vcpus={vcpus} tsc_khz=1000000");
        let args =
            [QEMU, "-M", machine, "-enable-kvm", "-cpu", "host,-arch-capabilities", "-smp", &smp, "-m", "64"];
        let rest = ["-nodefaults", "-display", "none", "-no-reboot", "-kernel", payload, "-append", &words];
        Contender::new(name, args.into_iter().chain(rest).map(str::to_owned).collect(), false)
    };
    Ok(vec![
        Contender::new(NOTHING, vec![NOTHING.to_owned()], false),
        ours("vmm, publisher off", "off"),
        ours("vmm, publisher bpf", "bpf"),
        qemu("QEMU -M microvm", "microvm"),
        qemu("QEMU -M pc", "pc"),
    ])
}

impl Contender {
    fn new(name: &'static str, command: Vec<String>, ours: bool) -> Self {
        Self {
            name,
            command,
            ours,
            wall: Vec::new(),
            peak_kib: Vec::new(),
            to_main: Vec::new(),
            to_first_instruction: Vec::new(),
        }
    }

    /// Runs it once; the figures count if `counts`.
    fn measure(&mut self, folder: &TempDir, counts: bool) -> Result<(), BenchError> {
        let wrong = |how: String| BenchError::Process { command: self.command.join(" "), how };
        let Some((program, args)) = self.command.split_first() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (began, began_monotonic) = (Instant::now(), monotonic());
        let child = command.spawn().map_err(|error| wrong(error.to_string()))?;
        let ended = child::wait(&child).map_err(|error| wrong(error.to_string()))?;
        let wall = began.elapsed();
        if !ended.status.success() {
            return Err(wrong(format!("it ended with {}", ended.status)));
        }
        if !counts {
            return Ok(());
        }
        if self.ours {
            let text = fs::read(folder.path().join("run.json")).map_err(|error| wrong(error.to_string()))?;
            let document: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
            let main = document["began_monotonic_ns"].as_u64().map(Duration::from_nanos).unwrap_or_default();
            let to_main = main.saturating_sub(began_monotonic);
            self.to_main.push(to_main);
            self.to_first_instruction.extend(first_instruction(&document).map(|at| to_main + at));
        }
        self.wall.push(wall);
        self.peak_kib.push(ended.peak_rss_kib);
        Ok(())
    }
}

/// From the results document: `main` to the first guest instruction.
fn first_instruction(document: &Value) -> Option<Duration> {
    let marks = document["timings"].as_array()?;
    let mark = marks.iter().find(|mark| mark["what"] == "first guest instruction")?;
    mark["at_ns"].as_u64().map(Duration::from_nanos)
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

fn failed(what: &str, error: &std::io::Error) -> BenchError {
    BenchError::Process { command: what.to_owned(), how: error.to_string() }
}

impl Bench for StartupBench {}

impl Display for StartupBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.vcpus == 1 { "" } else { "s" };
        writeln!(
            f,
            "{} (KVM on {}, Linux {}); a guest of {} vCPU{plural} and 64 MiB that resets at once; medians of {} rounds, \
             least in brackets\n",
            self.host.processor, self.host.kvm_backend, self.host.kernel, self.vcpus, self.rounds
        )?;
        let header = ["", "wall ms", "peak MiB", "exec to main ms", "to first instruction ms"];
        let mut table = Table::new(&header, 1);
        for contender in &self.contenders {
            table.row([
                contender.name.to_owned(),
                milliseconds(&contender.wall),
                median(contender.peak_kib.iter().map(|kib| *kib as f64 / 1024.0))
                    .map(figure)
                    .unwrap_or_default(),
                milliseconds(&contender.to_main),
                milliseconds(&contender.to_first_instruction),
            ]);
        }
        write!(f, "{table}")?;
        match &self.missing {
            Some(missing) => writeln!(f, "{missing}"),
            None => Ok(()),
        }
    }
}

fn milliseconds(durations: &[Duration]) -> String {
    let values = || durations.iter().map(|duration| duration.as_secs_f64() * 1e3);
    match (median(values()), values().reduce(f64::min)) {
        (Some(median), Some(least)) => format!("{} ({})", figure(median), figure(least)),
        _ => "-".to_owned(),
    }
}
