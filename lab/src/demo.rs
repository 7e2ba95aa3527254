//! The demonstration: a lock that retains its throughput because the host publishes `preempted`.
//!
//! It runs two locks in three ways of waiting, with two publishers, at one and at four vCPUs per
//! CPU. Work and CPUs are the same at both. The figure of interest is the throughput that a lock
//! retains at four.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use protocol::payload::params::{Check, Lock, Wait, Workload};
use serde::Serialize;

use crate::error::{Error, interrupted_status};
use crate::guest::RunError;
use crate::output::OutputFile;
use crate::print::print;
use crate::publisher::{self, ChosenPublisher};
use crate::render::{HostLine, per_second};
use crate::results::statistics::ratio;
use crate::results::{RunResult, SCHEMA};
use crate::runner::{Experiment, Measurement, Point, Rounds, Runner, WaitMode, lock_of};
use crate::table::{TAKEN, Table, count_or_dash, figure, fixed, or_dash, taken};
use host::cpus::Cpus;
use host::facts::HostFacts;
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm::cli::{choice, usable_cpus};

/// vCPUs per CPU: the baseline, and what is compared with it.
const OVERCOMMITS: [usize; 2] = [1, 4];
const LOCKS: [Lock; 2] = [Lock::Tas, Lock::Mutex];
const WAITS: [WaitMode; 3] =
    [WaitMode::new(Wait::Spin), WaitMode::new(Wait::Threshold), WaitMode::new(Wait::Preempted)];

/// With start and end of each guest, 24 points take about 15 s.
const WARMUP_MS: u32 = 100;
const WINDOW_MS: u32 = 480;

/// Options of the demonstration.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Host CPUs that the vCPU threads may use, as in 0,2-3 [default: all that this process may
    /// use]
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
    let json = args.json.as_deref().map(OutputFile::open).transpose()?;
    let demo = run(HostFacts::probe(), usable_cpus(args.cpus.as_ref())?, args.publisher, args.quiet)?;
    if let Some(json) = json {
        json.write(&demo)?;
    }
    if !args.quiet {
        print(&demo)?;
    }
    Ok(interrupted_status(demo.was_interrupted()))
}

/// Results of the demonstration.
#[derive(Clone, Debug, Serialize)]
pub struct Demo {
    pub(crate) schema: u32,
    /// The publisher that is compared with KVM's own.
    pub(crate) publisher: ChosenPublisher,
    #[serde(flatten)]
    pub(crate) runs: Rounds<Point, RunResult>,
}

/// Runs the demonstration on `cpus`. It compares KVM's own publisher, if the host has it, with the
/// chosen one.
///
/// # Errors
/// The error of the first point that could not be measured.
pub fn run(host: HostFacts, cpus: Cpus, choice: PublisherChoice, quiet: bool) -> Result<Demo, Error> {
    let kernel_can = publisher::kernel_has_steal_time().map_err(RunError::from)?;
    let publisher = ChosenPublisher::settle(choice)?;
    if !quiet {
        publisher.announce();
    }
    let chosen = publisher.kind;
    // Without the backstop, a publisher that does not set `preempted` shows what that costs.
    let workload =
        Workload { warmup_ms: WARMUP_MS, duration_ms: WINDOW_MS, backstop_ns: 0, ..Workload::DEFAULT };
    let experiment = Experiment { host, cpus, workload };
    let kernel = (kernel_can && chosen != PublisherKind::Kernel).then_some(PublisherKind::Kernel);
    let points = points(kernel.into_iter().chain([chosen]));
    let runs = Runner::once(quiet).measure(&points, |point| experiment.measure(*point))?;
    Ok(Demo { schema: SCHEMA, publisher, runs })
}

pub(crate) fn points(publishers: impl Iterator<Item = PublisherKind>) -> Vec<Point> {
    let (mut points, check) = (Vec::new(), Check::Save0);
    for publisher in publishers {
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
    points
}

impl Demo {
    /// Whether the user ended it before the last point.
    pub fn was_interrupted(&self) -> bool {
        self.runs.interrupted
    }

    /// Throughput of `point` relative to the same lock with the same way of waiting at 1x.
    fn retained(&self, point: Point) -> Option<f64> {
        let throughput = |point| Some(lock_of(self.runs.of(&point).next()?)?.1.per_second);
        let base = throughput(Point { overcommit: 1, ..point })?;
        Some(throughput(point)? / base).filter(|retained| retained.is_finite())
    }

    fn publishers(&self) -> Vec<PublisherKind> {
        let mut publishers: Vec<_> = self.runs.iter().map(|(point, _)| point.publisher).collect();
        publishers.dedup();
        publishers
    }

    fn table(&self) -> Table {
        let header = [
            "publisher",
            "lock",
            "wait",
            "overcommit",
            "acq/s",
            "longest ms",
            "steal s",
            "preempted/s",
            "seen/s",
            "retained",
            "taken",
        ];
        let mut table = Table::new(&header, 4);
        for (point, result) in self.runs.iter() {
            let Some((window, lock)) = lock_of(result) else { continue };
            table.row([
                point.publisher.to_string(),
                point.lock.to_string(),
                point.wait.to_string(),
                format!("{}x", point.overcommit),
                figure(lock.per_second),
                figure(lock.waits.quantile_ns(|waits| waits.longest_ns) / 1e6),
                figure(window.guest_steal_ns as f64 / 1e9),
                window.host.preemptions.map_or_else(|| "-".to_owned(), |count| per_second(window, count)),
                per_second(window, lock.preempted_seen),
                or_dash(self.retained(*point), |retained| fixed(retained, 2)),
                taken(self.runs.disturbance(point)),
            ]);
        }
        table
    }
}

impl Display for Demo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runs.interrupted {
            writeln!(f, "Interrupted after {} points\n", self.runs.iter().count())?;
        }
        let Some(first) = self.runs.first() else { return Ok(()) };
        let (host, workload) = (&first.host, first.workload.unwrap_or_default());
        writeln!(
            f,
            "{}, CPUs {}, publisher {};\none hot lock, {} us in it, {} us between, {} ms a row\n",
            HostLine(host),
            first.guest.cpus,
            self.publisher,
            f64::from(workload.section_ns) / 1e3,
            f64::from(workload.think_ns) / 1e3,
            workload.duration_ms,
        )?;
        write!(f, "{}", self.table())?;
        writeln!(f, "\n{TAKEN}")?;
        for sentence in self.sentences() {
            writeln!(f, "{sentence}")?;
        }
        Ok(())
    }
}

/// What the table shows, in words. All numbers and judgements are taken from it.
impl Demo {
    fn sentences(&self) -> Vec<String> {
        let publishers = self.publishers();
        let best = publishers.last().copied();
        let first = best.and_then(|best| self.worth_of_preempted(best));
        let second = publishers.iter().find(|publisher| Some(**publisher) != best);
        let second = second.and_then(|other| self.other_publisher(*other));
        first.into_iter().chain(understatement(self.publisher.kind)).chain(second).collect()
    }

    /// What each lock retains at 4x in each way of waiting.
    fn worth_of_preempted(&self, publisher: PublisherKind) -> Option<String> {
        let mut parts = Vec::new();
        for lock in LOCKS {
            let retained = |wait| {
                let wait = WaitMode::new(wait);
                self.retained(Point { lock, wait, check: Check::Save0, publisher, overcommit: 4 })
            };
            let (spin, threshold, preempted) =
                (retained(Wait::Spin)?, retained(Wait::Threshold)?, retained(Wait::Preempted)?);
            let change = change(preempted, spin);
            parts.push(format!(
                "the {} retains {preempted:.2} of its throughput when waiters read `preempted`, \
                 {threshold:.2} with a time threshold, and {spin:.2} when they spin ({change})",
                long_name(lock),
            ));
        }
        let doubt = self.doubt(publisher);
        Some(format!("{doubt}At 4 vCPUs per CPU, with publisher {publisher}, {}.", parts.join("; ")))
    }

    /// What a sentence about `publisher` begins with: that its figures do not count, or nothing.
    fn doubt(&self, publisher: PublisherKind) -> &'static str {
        let mut results = self.runs.iter().filter(|(point, _)| point.publisher == publisher);
        if results.all(|(_, result)| result.is_known()) { "" } else { "Disturbed: " }
    }

    /// Whether waiters ever saw the other publisher's byte set, and what locks retain with it.
    fn other_publisher(&self, publisher: PublisherKind) -> Option<String> {
        let (mut seen, mut preemptions, mut retained) = (0, Some(0), Vec::new());
        for lock in LOCKS {
            let wait = WaitMode::new(Wait::Preempted);
            let point = Point { lock, wait, check: Check::Save0, publisher, overcommit: 4 };
            let (window, figures) = lock_of(self.runs.of(&point).next()?)?;
            seen += figures.preempted_seen;
            preemptions = preemptions.zip(window.host.preemptions).map(|(sum, more)| sum + more);
            retained.push(format!("{:.2} for the {}", self.retained(point)?, long_name(lock)));
        }
        let (retained, doubt) = (retained.join(" and "), self.doubt(publisher));
        let preemptions = count_or_dash(preemptions);
        Some(match seen {
            0 => format!(
                "{doubt}Publisher {publisher} never set `preempted` in {preemptions} preemptions: waiters that \
                 read it retain what spinning retains, {retained}."
            ),
            seen => format!(
                "{doubt}With publisher {publisher}, waiters saw `preempted` set {seen} times in {preemptions} \
                 preemptions, and retain {retained}."
            ),
        })
    }
}

/// States by how much the figures of `publisher` fall short of what `preempted` is worth.
fn understatement(publisher: PublisherKind) -> Option<String> {
    match publisher {
        PublisherKind::Perf => Some(
            "Publisher perf sets `preempted` late, so these figures understate what it is worth (publisher bpf \
             shows it)."
                .to_owned(),
        ),
        PublisherKind::Monitor => Some(
            "Publisher monitor sees no preemption by the host, so these figures do not show what `preempted` is \
             worth (publisher bpf does)."
                .to_owned(),
        ),
        _ => None,
    }
}

fn long_name(lock: Lock) -> &'static str {
    match lock {
        Lock::Mutex => "mutex",
        _ => "test-and-set lock",
    }
}

/// Compares what a lock retains when waiters read `preempted` with what it retains when they spin.
fn change(preempted: f64, spin: f64) -> String {
    match ratio(preempted, spin) {
        factor if !factor.is_finite() => "spinning retains nothing".to_owned(),
        factor if factor >= 1.05 => format!("{} times as much", fixed(factor, 1)),
        factor if factor <= 0.95 => format!("a loss, {factor:.2} times as much"),
        _ => "no difference".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_is_a_factor_unless_spinning_retains_nothing() {
        assert_eq!(change(0.9, 0.3), "3.0 times as much");
        assert_eq!(change(0.3, 0.6), "a loss, 0.50 times as much");
        assert_eq!(change(0.9, 0.9), "no difference");
        assert_eq!(change(0.9, 0.0), "spinning retains nothing");
        assert!(change(0.9, 1e-200).len() < 30, "{}", change(0.9, 1e-200));
    }
}
