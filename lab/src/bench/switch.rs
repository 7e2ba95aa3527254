//! The price of a switch: what the BPF program takes of each, for vCPU threads and for strangers.
//!
//! Two threads share a CPU and yield it to each other, as often as they can, in several settings: without any program; with
//! one that does nothing; with ours, as strangers; with ours, as vCPUs whose records it writes; and both with the classic
//! one. The settings take turns, so that each round compares what it measured in the same moment.
//!
//! Two figures, since neither is enough. The kernel's run statistics say how long the program itself takes, net of the
//! empty one; wall time says what a switch takes with everything around it, the tracepoint and the caches, too.

use std::fmt::{self, Display};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;
use serde::Serialize;

use super::{Bench, BenchError, median};
use crate::cli::{BenchArgs, usable_cpus};
use crate::table::{Table, figure};
use host::cpus::Cpus;
use host::facts::HostFacts;
use host::stats::{ThreadStats, own_run_delay_ns};
use host::thread::own_tid;
use steal_time::bpf::{EmptyProgram, Program, RecordAddr, RunStats, RunTime};

const THREADS: usize = 2;
const ROUNDS: usize = 15;
const LENGTH: Duration = Duration::from_millis(60);

/// What is attached to the switch while it is measured. Each is a bench of criterion's, too (`cargo bench`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// No program.
    Nothing,
    /// One that does nothing.
    Empty,
    /// Ours, which does not know the threads.
    Strangers,
    /// Ours, which takes them for vCPUs and writes their records.
    Vcpus,
    /// The classic program, which does not know the threads.
    ClassicStrangers,
    /// The classic program, which takes them for vCPUs and writes their bytes.
    ClassicVcpus,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Empty,
        Self::Strangers,
        Self::Vcpus,
        Self::ClassicStrangers,
        Self::ClassicVcpus,
    ];

    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no program",
            Self::Empty => "empty program",
            Self::Strangers => "ours, strangers",
            Self::Vcpus => "ours, vCPUs",
            Self::ClassicStrangers => "classic, strangers",
            Self::ClassicVcpus => "classic, vCPUs",
        }
    }

    /// How long `count` switches take on `cpu`, going by as many as it does in some hundredths of a second.
    ///
    /// # Errors
    /// [`BenchError`], most likely that BPF is not allowed.
    pub fn time_of(self, count: u64, cpu: &Cpus) -> Result<Duration, BenchError> {
        let (wall_ns, _) = measure(self, cpu)?;
        Ok(Duration::from_secs_f64(wall_ns * count as f64 / 1e9))
    }
}

/// What was measured in one setting, by round.
#[derive(Debug, Serialize)]
struct Row {
    setting: Setting,
    /// Of a switch, all in all (ns).
    wall_ns: Vec<f64>,
    /// Of a run of the program, with statistics kept (ns).
    program_ns: Vec<f64>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct SwitchBench {
    host: HostFacts,
    rows: Vec<Row>,
}

pub(super) fn run(args: &BenchArgs) -> Result<SwitchBench, BenchError> {
    let cpu = last_of(usable_cpus(args.cpus.as_ref())?);
    let row = |setting| Row { setting, wall_ns: Vec::new(), program_ns: Vec::new() };
    let mut rows: Vec<_> = Setting::ALL.map(row).into();
    // One round that does not count warms the caches.
    for round in 0..=ROUNDS {
        for row in &mut rows {
            let (wall_ns, _) = measure(row.setting, &cpu)?;
            let stats = RunStats::enable()?;
            let (_, program_ns) = measure(row.setting, &cpu)?;
            drop(stats);
            if round > 0 {
                row.wall_ns.push(wall_ns);
                row.program_ns.extend(program_ns);
            }
        }
    }
    Ok(SwitchBench { host: HostFacts::probe(), rows })
}

/// The last CPU: the first has the interrupts.
pub fn last_of(cpus: Cpus) -> Cpus {
    cpus.without(&cpus.first(cpus.count().saturating_sub(1))).unwrap_or(cpus)
}

/// Nanoseconds of a switch, and of a run of the program, if statistics are kept.
fn measure(setting: Setting, cpu: &Cpus) -> Result<(f64, Option<f64>), BenchError> {
    Ok(match setting {
        Setting::Nothing => (yield_to_each_other(cpu, None)?, None),
        Setting::Empty => {
            let program = EmptyProgram::load()?;
            timed(|| yield_to_each_other(cpu, None), || Ok(program.time()?))?
        }
        Setting::Strangers | Setting::Vcpus | Setting::ClassicStrangers | Setting::ClassicVcpus => {
            let is_classic = matches!(setting, Setting::ClassicStrangers | Setting::ClassicVcpus);
            let load = if is_classic { Program::load_classic } else { Program::load };
            let program = load(THREADS, THREADS)?;
            let vcpus = matches!(setting, Setting::Vcpus | Setting::ClassicVcpus).then_some(&program);
            timed(|| yield_to_each_other(cpu, vcpus), || Ok(program.switch_time()?))?
        }
    })
}

fn timed(
    yields: impl FnOnce() -> Result<f64, BenchError>,
    time: impl Fn() -> Result<RunTime, BenchError>,
) -> Result<(f64, Option<f64>), BenchError> {
    let before = time()?;
    let wall_ns = yields()?;
    Ok((wall_ns, time()?.mean_ns_since(before)))
}

/// Two threads on `cpu` yield to each other, as vCPUs of `program` if there is one: nanoseconds a switch.
fn yield_to_each_other(cpu: &Cpus, program: Option<&Program>) -> Result<f64, BenchError> {
    let (ready, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let spin = |index: usize| -> Result<(u64, Duration), BenchError> {
        // Whatever happens, the other one must not wait for this one.
        let prepared = cpu.pin_this_thread();
        let vcpu = VcpuId::new(index).filter(|_| prepared.is_ok());
        let attached = match (program, vcpu) {
            (Some(program), Some(vcpu)) => program.attach_current_thread(vcpu).map(Some),
            _ => Ok(None),
        };
        if let Ok(Some(vcpu)) = &attached {
            let _ = vcpu.account(own_run_delay_ns().unwrap_or(0));
            vcpu.publish(RecordAddr::new(index, 0));
        }
        ready.fetch_add(1, Ordering::SeqCst);
        while ready.load(Ordering::SeqCst) < THREADS {
            thread::yield_now();
        }
        let account = || ThreadStats::read(own_tid()).map_err(host);
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
            thread.join().unwrap_or_else(|_| Err(host(io::Error::other("a thread has panicked"))))
        })
    });
    let (mut switches, mut longest) = (0, Duration::ZERO);
    for end in ends {
        let (timeslices, took) = end?;
        switches += timeslices;
        longest = longest.max(took);
    }
    Ok(longest.as_nanos() as f64 / switches.max(1) as f64)
}

fn host(source: io::Error) -> BenchError {
    BenchError::Account(source)
}

impl SwitchBench {
    /// The median over the rounds of what `row` takes more than `than`.
    fn more(row: &[f64], than: &[f64]) -> Option<f64> {
        median(row.iter().zip(than).map(|(row, than)| row - than))
    }
}

impl Bench for SwitchBench {}

impl Display for SwitchBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(
            f,
            "Two threads yield one CPU to each other; {} (KVM on {}, Linux {}); ns a switch, median of {ROUNDS} rounds\n",
            host.processor, host.kvm_backend, host.kernel
        )?;
        let mut table = Table::new(
            &["attached", "program", "net of empty", "switch", "more than without", "than empty"],
            1,
        );
        let [nothing, empty, ..] = self.rows.as_slice() else { return Ok(()) };
        for row in &self.rows {
            let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
            let has_program = row.setting != Setting::Nothing;
            table.row([
                row.setting.name().to_owned(),
                cell(median(row.program_ns.iter().copied())),
                cell(Self::more(&row.program_ns, &empty.program_ns)),
                cell(median(row.wall_ns.iter().copied())),
                cell(Self::more(&row.wall_ns, &nothing.wall_ns).filter(|_| has_program)),
                cell(Self::more(&row.wall_ns, &empty.wall_ns).filter(|_| has_program)),
            ]);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "program: on sched_switch, by the kernel's run statistics; between two vCPUs one leaves and one arrives in each \
             run. switch: wall time, without statistics. It contains a second run of ours, which looks whether a switch-in \
             was overlooked, whenever the FPU registers are loaded. Bars: 200 ns for vCPUs, 50 for strangers, of the program, \
             net of empty."
        )
    }
}
