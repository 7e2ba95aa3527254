//! `bench switch`: what the BPF program costs a context switch, of vCPU threads and of other tasks.
//!
//! Two threads share a CPU and yield it to each other in several settings: without a program, with
//! an empty one, and with each of ours, where the threads are vCPUs or other tasks. Each setting
//! runs once per round, so that a round compares what was measured at nearly the same time.
//!
//! Two figures are needed. The kernel's run statistics give the program's own time, net of an empty
//! program. Wall time adds what surrounds the program: the tracepoint and cache misses.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;
use serde::Serialize;

use super::{BenchArgs, BenchReport, INTERRUPTED, TAKEN};
use crate::error::Error;
use crate::render::HostLine;
use crate::results::statistics::ratio;
use crate::runner::{Measurement, RETRIES, Rounds, Runner};
use crate::table::{Table, figure, or_dash, taken};
use host::cpus::Cpus;
use host::disturbance::{Disturbance, Watch};
use host::facts::HostFacts;
use host::stats::{ThreadStats, own_run_delay_ns};
use host::thread::own_tid;
use steal_time::bpf::{EmptyProgram, Program, RecordAddr, RunStats, RunTime};

const THREADS: usize = 2;
const ROUNDS: u16 = 15;
const LENGTH: Duration = Duration::from_millis(60);

/// The program at the switch, and what it takes the threads for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// No program.
    Nothing,
    /// An empty program.
    Empty,
    /// Ours; the threads are not attached.
    OtherTasks,
    /// Ours; the threads are vCPUs, whose records it writes.
    Vcpus,
    /// The classic program; the threads are not attached.
    ClassicOtherTasks,
    /// The classic program; the threads are vCPUs, whose bytes it writes.
    ClassicVcpus,
}

impl Setting {
    /// All settings.
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Empty,
        Self::OtherTasks,
        Self::Vcpus,
        Self::ClassicOtherTasks,
        Self::ClassicVcpus,
    ];

    /// Name of the setting in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no program",
            Self::Empty => "empty program",
            Self::OtherTasks => "ours, other tasks",
            Self::Vcpus => "ours, vCPUs",
            Self::ClassicOtherTasks => "classic, other tasks",
            Self::ClassicVcpus => "classic, vCPUs",
        }
    }

    /// Time of `count` switches on `cpu`, extrapolated from 60 ms of switches.
    ///
    /// # Errors
    /// [`Error`], most likely because BPF is not permitted.
    pub fn time_of(self, count: u64, cpu: &Cpus) -> Result<Duration, Error> {
        let (wall_ns, _) = measure(self, cpu)?;
        let time = Duration::try_from_secs_f64(wall_ns * count as f64 / 1e9);
        time.map_err(|_| Error::failed(self, "the threads did not switch"))
    }
}

impl Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One setting in one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    /// Wall time per switch (ns).
    pub(super) wall_ns: f64,
    /// Mean time of a run of the program (ns), measured apart, while the kernel keeps statistics.
    pub(super) program_ns: Option<f64>,
    /// The CPU time that others took.
    pub(super) disturbance: Disturbance,
}

impl Measurement for Sample {
    fn disturbance(&self) -> Disturbance {
        self.disturbance
    }
}

/// Results of all rounds.
#[derive(Debug, Serialize)]
pub struct SwitchBench {
    pub(super) host: HostFacts,
    #[serde(flatten)]
    pub(super) rounds: Rounds<Setting, Sample>,
}

pub(super) fn run(args: &BenchArgs) -> Result<SwitchBench, Error> {
    let cpu = last_of(args.usable_cpus()?);
    let runner = Runner { rounds: ROUNDS, warmup_rounds: 1, retries: RETRIES, quiet: args.quiet };
    let rounds = runner.measure(&Setting::ALL, |setting| {
        let watch = Watch::start(cpu.clone());
        let (wall_ns, _) = measure(*setting, &cpu)?;
        let _stats = RunStats::enable()?;
        let (_, program_ns) = measure(*setting, &cpu)?;
        Ok(Sample { wall_ns, program_ns, disturbance: watch.disturbance() })
    })?;
    Ok(SwitchBench { host: HostFacts::probe(), rounds })
}

/// The last CPU of `cpus`: the first one serves most interrupts.
pub fn last_of(cpus: Cpus) -> Cpus {
    cpus.without(&cpus.first(cpus.count().saturating_sub(1))).unwrap_or(cpus)
}

/// Measures the wall time per switch and, if statistics are kept, per run of the program (ns).
fn measure(setting: Setting, cpu: &Cpus) -> Result<(f64, Option<f64>), Error> {
    Ok(match setting {
        Setting::Nothing => (yield_to_each_other(cpu, None)?, None),
        Setting::Empty => {
            let program = EmptyProgram::load()?;
            timed(|| yield_to_each_other(cpu, None), || Ok(program.time()?))?
        }
        Setting::OtherTasks | Setting::Vcpus | Setting::ClassicOtherTasks | Setting::ClassicVcpus => {
            let is_classic = matches!(setting, Setting::ClassicOtherTasks | Setting::ClassicVcpus);
            let load = if is_classic { Program::load_classic } else { Program::load };
            let program = load(THREADS, THREADS)?;
            let vcpus = matches!(setting, Setting::Vcpus | Setting::ClassicVcpus).then_some(&program);
            timed(|| yield_to_each_other(cpu, vcpus), || Ok(program.switch_time()?))?
        }
    })
}

fn timed(
    yields: impl FnOnce() -> Result<f64, Error>,
    time: impl Fn() -> Result<RunTime, Error>,
) -> Result<(f64, Option<f64>), Error> {
    let before = time()?;
    let wall_ns = yields()?;
    Ok((wall_ns, time()?.mean_ns_since(before)))
}

/// Lets two threads on `cpu` yield to each other, attached to `program` if there is one. Returns
/// the time per switch (ns).
fn yield_to_each_other(cpu: &Cpus, program: Option<&Program>) -> Result<f64, Error> {
    let (ready, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let spin = |index: usize| -> Result<(u64, Duration), Error> {
        // An error is returned after the loop: the other thread waits for this one to be ready.
        let prepared = cpu.pin_this_thread();
        let vcpu = VcpuId::new(index).filter(|_| prepared.is_ok());
        let attached = match (program, vcpu) {
            (Some(program), Some(vcpu)) => program.attach_current_thread(vcpu).map(Some),
            _ => Ok(None),
        };
        if let Ok(Some(vcpu)) = &attached {
            // Only what a switch costs is measured here: the steal in this record means nothing.
            let _ = vcpu.account(own_run_delay_ns().unwrap_or(0));
            vcpu.publish(RecordAddr::new(index, 0));
        }
        ready.fetch_add(1, Ordering::SeqCst);
        while ready.load(Ordering::SeqCst) < THREADS {
            thread::yield_now();
        }
        let account = || ThreadStats::read(own_tid()).map_err(unreadable);
        let (began, before) = (Instant::now(), account()?);
        while !is_over.load(Ordering::Relaxed) {
            for _ in 0..64 {
                thread::yield_now();
            }
            if began.elapsed() > LENGTH {
                is_over.store(true, Ordering::Relaxed);
            }
        }
        let (took, after) = (began.elapsed(), account()?);
        prepared?;
        attached?;
        Ok((after.since(before).timeslices, took))
    };
    let ends = thread::scope(|scope| {
        let spin = &spin;
        [0, 1].map(|index| scope.spawn(move || spin(index))).map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::failed("a switch", "a thread has panicked")))
        })
    });
    let (mut switches, mut longest) = (0, Duration::ZERO);
    for end in ends {
        let (timeslices, took) = end?;
        switches += timeslices;
        longest = longest.max(took);
    }
    Ok(ratio(longest.as_nanos() as f64, switches as f64))
}

#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn unreadable(error: std::io::Error) -> Error {
    Error::failed("the switches of a thread", format_args!("{error} (is /proc mounted?)"))
}

impl BenchReport for SwitchBench {
    fn was_interrupted(&self) -> bool {
        self.rounds.interrupted
    }
}

impl Display for SwitchBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.was_interrupted() {
            writeln!(f, "{INTERRUPTED}\n")?;
        }
        writeln!(
            f,
            "Two threads yield one CPU to each other; {};\nns a switch, median of {} rounds\n",
            HostLine(&self.host),
            self.rounds.count(),
        )?;
        let header = ["attached", "program", "net of empty", "switch", "over none", "over empty", "taken"];
        let mut table = Table::new(&header, 1);
        let wall = |sample: &Sample| Some(sample.wall_ns);
        for setting in Setting::ALL {
            let over = |base| {
                let over = |sample: &Sample, base: &Sample| Some(sample.wall_ns - base.wall_ns);
                self.rounds.median_with(&setting, &base, over).filter(|_| setting != Setting::Nothing)
            };
            let net = |sample: &Sample, base: &Sample| Some(sample.program_ns? - base.program_ns?);
            let cells = [
                self.rounds.median(&setting, |sample| sample.program_ns),
                self.rounds.median_with(&setting, &Setting::Empty, net),
                self.rounds.median(&setting, wall),
                over(Setting::Nothing),
                over(Setting::Empty),
            ];
            let cells = cells.map(|value| or_dash(value, figure));
            let taken = taken(self.rounds.disturbance(&setting));
            table.row([setting.name().to_owned()].into_iter().chain(cells).chain([taken]));
        }
        writeln!(f, "{table}")?;
        write!(
            f,
            "program: its own time at sched_switch, by the kernel's run statistics. Between two vCPUs each run\n\
             handles one that leaves and one that arrives. switch: wall time without statistics. It includes a\n\
             second run of ours, which looks for a missed switch-in when the FPU registers are loaded.\n\
             Bars, net of empty: 200 ns for vCPUs, 50 ns for other tasks.\n{TAKEN}"
        )
    }
}
