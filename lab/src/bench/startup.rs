//! `bench startup`: time from exec to exit of a guest that resets at once.
//!
//! QEMU with the same payload, and a process that does nothing, are measured beside it. Each
//! program runs as a whole process, once per round. Wall time is from before the process is created
//! until it has been waited for. Memory is the peak resident set size. The time to the first guest
//! instruction comes from the clocks of `vmm-lab` and of its guest.

use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::{BenchReport, INTERRUPTED, TAKEN};
use crate::error::Error;
use crate::options::parse;
use crate::payload;
use crate::publisher;
use crate::render::HostLine;
use crate::results::statistics::median;
use crate::runner::{Measurement, RETRIES, Rounds, Runner};
use crate::table::{Table, figure, or_dash, taken};
use host::child;
use host::cpus::Cpus;
use host::disturbance::{Disturbance, Watch};
use host::facts::HostFacts;
use vmm::cli::usable_cpus;

/// `vmm-lab bench startup`.
#[derive(Debug, Args)]
pub struct StartupArgs {
    /// Number of rounds, of which the median is shown
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = parse::rounds())]
    pub rounds: u16,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: usize,
}

/// One program that is measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) command: Vec<String>,
    /// Whether it writes the results document of `vmm-lab`.
    pub(super) is_ours: bool,
}

impl Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// One run of a program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) wall: Duration,
    pub(super) peak_kib: u64,
    /// From exec to `main`.
    pub(super) to_main: Option<Duration>,
    /// From exec to the first guest instruction.
    pub(super) to_first_instruction: Option<Duration>,
    /// The CPU time that others took.
    pub(super) disturbance: Disturbance,
}

impl Measurement for Sample {
    fn disturbance(&self) -> Disturbance {
        self.disturbance
    }
}

/// Results of all rounds.
pub(super) struct StartupBench {
    pub(super) host: HostFacts,
    pub(super) contenders: Vec<Contender>,
    pub(super) rounds: Rounds<Contender, Sample>,
    pub(super) vcpus: usize,
    /// Programs that are not compared, and why.
    pub(super) missing: Vec<String>,
}

const NOTHING: &str = "/bin/true";
const WITH_BPF: &str = "vmm, publisher bpf";
const QEMU: &str = "qemu-system-x86_64";

pub(super) fn run(args: &StartupArgs) -> Result<StartupBench, Error> {
    let folder = tempfile::tempdir().map_err(|error| Error::failed("a temporary folder", error))?;
    let payload = folder.path().join("guest.bin");
    fs::write(&payload, payload::BYTES).map_err(|error| Error::failed("the payload", error))?;
    let json = folder.path().join("run.json");
    let mut contenders = contenders(&json, &payload.display().to_string(), args.vcpus)?;
    let qemu = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let mut missing = Vec::new();
    if let Err(error) = qemu {
        missing.push(format!("{QEMU} does not start ({error}): install qemu-system-x86 to compare"));
        contenders.retain(|contender| contender.command.first().is_none_or(|program| program != QEMU));
    }
    if let Some(why) = publisher::announce_refused_bpf() {
        missing.push(format!("{WITH_BPF} is not measured: {why}"));
        contenders.retain(|contender| contender.name != WITH_BPF);
    }
    let runner = Runner { rounds: args.rounds, warmup_rounds: 1, retries: RETRIES, quiet: true };
    let cpus = usable_cpus(None)?;
    let rounds = runner.measure(&contenders, |contender| contender.measure(&json, &cpus))?;
    Ok(StartupBench { host: HostFacts::probe(), contenders, rounds, vcpus: args.vcpus, missing })
}

fn contenders(json: &Path, payload: &str, vcpus: usize) -> Result<Vec<Contender>, Error> {
    let me = std::env::current_exe().map_err(|error| Error::failed("this program", error))?;
    let (me, json, vcpus) = (me.display().to_string(), json.display().to_string(), vcpus.to_string());
    let ours = |name, publisher: &str| {
        let args =
            ["run", "--vcpus", &vcpus, "--payload", payload, "--job", "reset", "--publisher", publisher];
        let rest = ["--memory", "64", "--quiet", "--json", &json];
        let command = [me.as_str()].into_iter().chain(args).chain(rest).map(str::to_owned).collect();
        Contender { name, command, is_ours: true }
    };
    let qemu = |name, machine: &str| {
        let params = format!("job=reset vcpus={vcpus} tsc_khz=1000000");
        let cpu = "host,-arch-capabilities";
        let args = [QEMU, "-M", machine, "-enable-kvm", "-cpu", cpu, "-smp", &vcpus, "-m", "64"];
        let rest = ["-nodefaults", "-display", "none", "-no-reboot", "-kernel", payload, "-append", &params];
        let command = args.into_iter().chain(rest).map(str::to_owned).collect();
        Contender { name, command, is_ours: false }
    };
    Ok(vec![
        Contender { name: NOTHING, command: vec![NOTHING.to_owned()], is_ours: false },
        ours("vmm, publisher off", "off"),
        ours(WITH_BPF, "bpf"),
        qemu("QEMU -M microvm", "microvm"),
        qemu("QEMU -M pc", "pc"),
    ])
}

impl Contender {
    /// Runs the program once on `cpus`. If it is ours, its results document is `json`.
    fn measure(&self, json: &Path, cpus: &Cpus) -> Result<Sample, Error> {
        let failed = |how: io::Error| Error::failed(self.command.join(" "), how);
        let (program, args) =
            self.command.split_first().ok_or_else(|| failed(io::Error::other("no command")))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let watch = Watch::start(cpus.clone());
        let (began, began_monotonic) = (Instant::now(), monotonic());
        let mut child = command.spawn().map_err(failed)?;
        let ended = child::wait(&mut child).map_err(failed)?;
        let wall = began.elapsed();
        if !ended.status.success() {
            return Err(failed(io::Error::other(format!("it ended with {}", ended.status))));
        }
        let mut sample = Sample {
            wall,
            peak_kib: ended.peak_rss_kib,
            to_main: None,
            to_first_instruction: None,
            disturbance: watch.disturbance(),
        };
        if self.is_ours {
            let document: Value = serde_json::from_slice(&fs::read(json).map_err(failed)?)
                .map_err(|error| failed(error.into()))?;
            let main = document["began_monotonic_ns"].as_u64().map(Duration::from_nanos).unwrap_or_default();
            let to_main = main.saturating_sub(began_monotonic);
            sample.to_main = Some(to_main);
            sample.to_first_instruction = first_instruction(&document).map(|at| to_main + at);
        }
        Ok(sample)
    }
}

/// The time from `main` to the first guest instruction, from the results document.
fn first_instruction(document: &Value) -> Option<Duration> {
    let marks = document["timings"].as_array()?;
    let mark = marks.iter().find(|mark| mark["what"] == "first guest instruction")?;
    mark["at_ns"].as_u64().map(Duration::from_nanos)
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

impl StartupBench {
    /// Median and minimum of a time, in ms.
    fn milliseconds(&self, contender: &Contender, pick: fn(&Sample) -> Option<Duration>) -> String {
        let counted = self.rounds.counted(contender).into_iter();
        let times: Vec<_> = counted.filter_map(pick).map(|time| time.as_secs_f64() * 1e3).collect();
        match (median(times.iter().copied()), times.iter().copied().reduce(f64::min)) {
            (Some(median), Some(min)) => format!("{} ({})", figure(median), figure(min)),
            _ => "-".to_owned(),
        }
    }
}

impl BenchReport for StartupBench {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }
}

impl Display for StartupBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.was_interrupted() {
            writeln!(f, "{INTERRUPTED}\n")?;
        }
        writeln!(
            f,
            "{};\na guest of {} vCPU{} and 64 MiB that resets at once; medians of {} rounds, minimum in brackets\n",
            HostLine(&self.host),
            self.vcpus,
            if self.vcpus == 1 { "" } else { "s" },
            self.rounds.count(),
        )?;
        let header =
            ["program", "wall ms", "peak MiB", "exec to main ms", "to first instruction ms", "taken"];
        let mut table = Table::new(&header, 1);
        for contender in &self.contenders {
            let peak_mib = self.rounds.median(contender, |sample| Some(sample.peak_kib as f64 / 1024.0));
            table.row([
                contender.name.to_owned(),
                self.milliseconds(contender, |sample| Some(sample.wall)),
                or_dash(peak_mib, figure),
                self.milliseconds(contender, |sample| sample.to_main),
                self.milliseconds(contender, |sample| sample.to_first_instruction),
                taken(self.rounds.disturbance(contender)),
            ]);
        }
        write!(f, "{table}\n{TAKEN}")?;
        self.missing.iter().try_for_each(|missing| writeln!(f, "{missing}"))
    }
}
