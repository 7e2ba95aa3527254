//! The built-in demonstration: a lock that stops wasting CPU because the host told it the truth.
//!
//! Two locks, three ways to wait, two publishers, as many vCPUs as CPUs and four times as many. What is kept of the
//! throughput at four times as many is the figure of interest: the work is the same, and the CPUs are.

use std::fmt::{self, Display};
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::payload::params::{Check, Lock, Wait, Workload};
use serde::Serialize;

use crate::error::{Error, interrupted_status};
use crate::experiment::{Experiment, ExperimentError, Point, WaitMode, lock_of};
use crate::guest::LabGuestError;
use crate::output::OutputFile;
use crate::print::print;
use crate::render::lock_cells;
use crate::results::{RunResult, SCHEMA};
use crate::table::Table;
use host::cpus::Cpus;
use host::facts::HostFacts;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm::cli::{choice, usable_cpus};
use vmm::cpuid::Supported;
use vmm::guest::GuestError;
use vmm::vm::machine::{self, MachineError};

/// vCPUs for each CPU: what is compared with, and what is compared.
const OVERCOMMITS: [usize; 2] = [1, 4];
const LOCKS: [Lock; 2] = [Lock::Tas, Lock::Mutex];
const WAITS: [WaitMode; 3] =
    [WaitMode::new(Wait::Spin), WaitMode::new(Wait::Threshold), WaitMode::new(Wait::Preempted)];

/// Together with start and end of a guest, 24 points take about 15 s.
const WARMUP_MS: u32 = 100;
const WINDOW_MS: u32 = 480;

/// Options of the demonstration.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Host CPUs that the vCPU threads may use, as in 0,2-3 [default: all that this process may use]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Publisher of the steal-time records: auto, bpf, perf, monitor, kernel or off
    #[arg(long, value_name = "PUBLISHER", default_value = "auto", value_parser = choice)]
    pub publisher: PublisherChoice,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print nothing
    #[arg(long)]
    pub quiet: bool,
}

/// Runs the demonstration, prints and writes its results, and returns the exit status.
///
/// # Errors
/// [`Error`].
pub fn command(args: &DemoArgs) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let demo = run(HostFacts::probe(), usable_cpus(args.cpus.as_ref())?, args.publisher, args.quiet)?;
    if let Some(json) = json {
        json.write(&demo)?;
    }
    if !args.quiet {
        print(&demo)?;
    }
    Ok(interrupted_status(demo.interrupted))
}

/// A demonstration that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Demo {
    schema: u32,
    runs: Vec<(Point, RunResult)>,
    /// Whether the user ended it before the last point.
    pub interrupted: bool,
}

/// Makes the demonstration on `cpus`, comparing KVM's own publisher, where it has one, with the one chosen.
///
/// # Errors
/// The first point's that could not be measured.
pub fn run(
    host: HostFacts,
    cpus: Cpus,
    choice: PublisherChoice,
    quiet: bool,
) -> Result<Demo, ExperimentError> {
    let kernel_can = kernel_has_steal_time().map_err(|error| LabGuestError::from(GuestError::from(error)))?;
    let chosen = choice.begin_loading(1).finish().settle(kernel_can);
    let chosen = chosen.map_err(|error| LabGuestError::from(GuestError::from(error)))?.kind();
    // No backstop: where the byte is not told, it is to show what that costs.
    let workload =
        Workload { warmup_ms: WARMUP_MS, duration_ms: WINDOW_MS, backstop_ns: 0, ..Workload::DEFAULT };
    let experiment = Experiment { host, cpus, workload };
    let kernel = (kernel_can && chosen != PublisherKind::Kernel).then_some(PublisherKind::Kernel);
    let (mut points, check) = (Vec::new(), Check::Save0);
    for publisher in kernel.into_iter().chain([chosen]) {
        for lock in LOCKS {
            for wait in WAITS {
                points.extend(OVERCOMMITS.map(|overcommit| Point {
                    lock,
                    wait,
                    check,
                    publisher,
                    overcommit,
                }));
            }
        }
    }
    let bar = progress_bar(points.len(), quiet);
    let mut demo = Demo { schema: SCHEMA, runs: Vec::with_capacity(points.len()), interrupted: false };
    for point in points {
        bar.set_message(format!(
            "{} lock, wait {}, {}x, {}",
            point.lock, point.wait, point.overcommit, point.publisher
        ));
        match experiment.measure(point) {
            Ok(result) => demo.runs.push((point, result)),
            Err(ExperimentError::Interrupted) => {
                demo.interrupted = true;
                break;
            }
            Err(error) => return Err(error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(demo)
}

fn kernel_has_steal_time() -> Result<bool, MachineError> {
    let supported = Supported::read(&machine::open_kvm()?);
    supported
        .map(|supported| supported.has_steal_time())
        .map_err(|source| MachineError::Make { what: "tell the CPUID that it supports", source })
}

/// A bar on a terminal; nothing elsewhere.
pub fn progress_bar(steps: usize, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if quiet || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    // The first draw comes before the first step.
    bar.tick();
    bar
}

impl Demo {
    fn find(&self, wanted: Point) -> Option<&RunResult> {
        self.runs.iter().find(|(point, _)| *point == wanted).map(|(_, result)| result)
    }

    /// Throughput of `point`, as a share of what the same lock, waiting the same way, gives at 1x.
    fn retention(&self, point: Point) -> Option<f64> {
        let throughput = |point| Some(lock_of(self.find(point)?)?.1.per_second);
        let base = throughput(Point { overcommit: 1, ..point })?;
        (base > 0.0).then(|| throughput(point).map(|here| here / base)).flatten()
    }

    fn publishers(&self) -> Vec<PublisherKind> {
        let mut publishers: Vec<_> = self.runs.iter().map(|(point, _)| point.publisher).collect();
        publishers.dedup();
        publishers
    }

    fn table(&self) -> Table {
        let mut table = Table::new(
            &[
                "publisher",
                "lock",
                "wait",
                "load",
                "acq/s",
                "p50 us",
                "p99 us",
                "longest ms",
                "steal s",
                "preempted/s",
                "byte seen/s",
                "halts/s",
                "kept",
            ],
            4,
        );
        for (point, result) in &self.runs {
            let Some((window, lock)) = lock_of(result) else { continue };
            let names = [
                point.publisher.to_string(),
                point.lock.to_string(),
                point.wait.to_string(),
                format!("{}x{}", point.overcommit, if window.host.disturbed { "*" } else { "" }),
            ];
            let kept = self.retention(*point).map_or_else(String::new, |kept| format!("{kept:.2}"));
            table.row(names.into_iter().chain(lock_cells(window, lock)).chain([kept]));
        }
        table
    }
}

impl Display for Demo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupted {
            writeln!(f, "Interrupted after {} points\n", self.runs.len())?;
        }
        let Some((_, first)) = self.runs.first() else { return Ok(()) };
        let (host, workload) = (&first.host, first.workload.unwrap_or_default());
        writeln!(
            f,
            "{} (KVM on {}, Linux {}), CPUs {}; one hot lock, {} us in it, {} us between, {} ms a row",
            host.processor,
            host.kvm_backend,
            host.kernel,
            first.guest.cpus,
            f64::from(workload.section_ns) / 1e3,
            f64::from(workload.think_ns) / 1e3,
            workload.duration_ms,
        )?;
        writeln!(f)?;
        write!(f, "{}", self.table())?;
        if self
            .runs
            .iter()
            .any(|(_, result)| result.window.as_ref().is_some_and(|window| window.host.disturbed))
        {
            writeln!(f, "* disturbed: other processes, or an outer hypervisor, used these CPUs meanwhile")?;
        }
        writeln!(f)?;
        for sentence in self.sentences() {
            writeln!(f, "{sentence}")?;
        }
        Ok(())
    }
}

/// What the table shows, in words. Every number and every judgement is taken from it.
impl Demo {
    fn sentences(&self) -> Vec<String> {
        let publishers = self.publishers();
        let best = publishers.last().copied();
        let first = best.and_then(|best| self.what_the_byte_is_worth(best));
        let second = publishers.iter().find(|publisher| Some(**publisher) != best);
        let second = second.and_then(|other| self.what_another_publisher_does(*other));
        first.into_iter().chain(second).collect()
    }

    /// Kept at 4x with the byte, the threshold and neither, for each lock.
    fn what_the_byte_is_worth(&self, publisher: PublisherKind) -> Option<String> {
        let mut parts = Vec::new();
        for lock in LOCKS {
            let kept = |wait| {
                let wait = WaitMode::new(wait);
                self.retention(Point { lock, wait, check: Check::Save0, publisher, overcommit: 4 })
            };
            let (ignored, threshold, used) =
                (kept(Wait::Spin)?, kept(Wait::Threshold)?, kept(Wait::Preempted)?);
            let factor = used / ignored.max(f64::MIN_POSITIVE);
            let change = match factor {
                factor if factor >= 1.05 => format!("{factor:.1} times as much"),
                factor if factor <= 0.95 => format!("a loss, {factor:.2} of it"),
                _ => "no difference".to_owned(),
            };
            parts.push(format!(
                "the {} keeps {used:.2} of its throughput when waiters use the byte, {threshold:.2} with a time \
                 threshold, and {ignored:.2} when they ignore it ({change})",
                long_name(lock),
            ));
        }
        Some(format!("At 4 vCPUs a CPU, with publisher {publisher}, {}.", parts.join("; ")))
    }

    /// Whether the other publisher's byte was ever seen, and what it kept.
    fn what_another_publisher_does(&self, publisher: PublisherKind) -> Option<String> {
        let (mut seen, mut preemptions, mut kept) = (0, 0, Vec::new());
        for lock in LOCKS {
            let wait = WaitMode::new(Wait::Preempted);
            let point = Point { lock, wait, check: Check::Save0, publisher, overcommit: 4 };
            let (window, figures) = lock_of(self.find(point)?)?;
            seen += figures.preempted_seen;
            preemptions += window.host.preemptions;
            kept.push(format!("{:.2} for the {}", self.retention(point)?, long_name(lock)));
        }
        let kept = kept.join(" and ");
        Some(match seen {
            0 => format!(
                "Publisher {publisher} never set the byte in {preemptions} preemptions, so using it keeps {kept}: what \
                 ignoring it keeps."
            ),
            seen => format!(
                "With publisher {publisher}, waiters saw the byte {seen} times in {preemptions} preemptions, and using \
                 it keeps {kept}."
            ),
        })
    }
}

fn long_name(lock: Lock) -> &'static str {
    match lock {
        Lock::Mutex => "mutex",
        _ => "test-and-set lock",
    }
}
