//! Retention: what a lock keeps of its throughput when CPUs are overcommitted.
//!
//! Each round measures every point once, 1x first, so that a slow spell of the machine falls on all of them; kept is
//! what a point gave of its own 1x in the same round, and the median over rounds is quoted. A point that strangers
//! disturbed is measured again, a bounded number of times, and marked if it never came out clean.

use std::fmt::{self, Display};

use protocol::words::{Lock, Wait, Workload};
use serde::Serialize;

use super::{Bench, BenchError, median};
use crate::cli::{RetentionArgs, usable_cpus};
use crate::demo::progress_bar;
use crate::experiment::{Experiment, ExperimentError, Point, lock_of};
use crate::host::facts::HostFacts;
use crate::publisher::PublisherKind;
use crate::results::{LockFigures, RunResult, Shares};
use crate::table::{Table, figure};

const OVERCOMMITS: [usize; 3] = [1, 4, 8];
const WARMUP_MS: u32 = 200;

/// All rounds.
#[derive(Debug, Serialize)]
pub(super) struct RetentionBench {
    rounds: Vec<Vec<(Point, RunResult)>>,
    /// Whether the user ended it before the last point.
    interrupted: bool,
}

pub(super) fn run(args: &RetentionArgs) -> Result<RetentionBench, BenchError> {
    let cpus = usable_cpus(args.common.cpus.as_ref())?;
    let workload = Workload { warmup_ms: WARMUP_MS, duration_ms: args.duration_ms, ..Workload::DEFAULT };
    let experiment = Experiment { host: HostFacts::probe(), cpus, workload };
    let points: Vec<Point> = points().collect();
    let bar = progress_bar(points.len() * usize::from(args.rounds), args.common.quiet);
    let mut bench = RetentionBench { rounds: Vec::new(), interrupted: false };
    'rounds: for round in 1..=args.rounds {
        let mut runs = Vec::with_capacity(points.len());
        for point in &points {
            bar.set_message(format!("round {round}: {}, {}, {}x", point.lock, point.wait, point.overcommit));
            let result = match clean(&experiment, *point, args.retries) {
                Err(ExperimentError::Interrupted) => {
                    bench.interrupted = true;
                    bench.rounds.push(runs);
                    break 'rounds;
                }
                result => result?,
            };
            runs.push((*point, result));
            bar.inc(1);
        }
        bench.rounds.push(runs);
    }
    bar.finish_and_clear();
    Ok(bench)
}

fn points() -> impl Iterator<Item = Point> {
    [Lock::Tas, Lock::Ticket, Lock::Mutex].into_iter().flat_map(|lock| {
        [Wait::Ignore, Wait::Threshold, Wait::Byte].into_iter().flat_map(move |wait| {
            OVERCOMMITS.map(|overcommit| Point { lock, wait, publisher: PublisherKind::Bpf, overcommit })
        })
    })
}

/// Measures `point` until it is not disturbed, `retries` times more at the most.
fn clean(experiment: &Experiment, point: Point, retries: u16) -> Result<RunResult, ExperimentError> {
    let mut result = experiment.measure(point)?;
    for _ in 0..retries {
        if !is_disturbed(&result) {
            break;
        }
        result = experiment.measure(point)?;
    }
    Ok(result)
}

fn is_disturbed(result: &RunResult) -> bool {
    result.window.as_ref().is_some_and(|window| window.host.disturbed)
}

impl RetentionBench {
    /// What `point` gave in each round.
    fn of(&self, point: Point) -> impl Iterator<Item = &RunResult> {
        self.rounds
            .iter()
            .filter_map(move |round| round.iter().find(|(p, _)| *p == point).map(|(_, result)| result))
    }

    /// What `point` kept of its own 1x, in each round in which neither was disturbed.
    fn kept(&self, point: Point) -> Vec<f64> {
        let base = self.of(Point { overcommit: 1, ..point });
        let kept = base.zip(self.of(point)).filter(|(base, here)| !is_disturbed(base) && !is_disturbed(here));
        kept.filter_map(|(base, here)| Some(lock_of(here)?.1.per_second / lock_of(base)?.1.per_second))
            .collect()
    }

    /// The median over rounds of a figure of `point`.
    fn figure(&self, point: Point, figure: impl Fn(&LockFigures) -> f64) -> f64 {
        median(self.of(point).filter_map(|result| Some(figure(lock_of(result)?.1)))).unwrap_or(0.0)
    }

    fn shares(&self, point: Point) -> [String; 5] {
        let parts: [fn(&Shares) -> f64; 5] = [|s| s.useful, |s| s.spin, |s| s.kicks, |s| s.rest, |s| s.idle];
        parts.map(|part| format!("{:.3}", self.figure(point, |lock| part(&lock.shares))))
    }
}

impl Bench for RetentionBench {
    fn was_interrupted(&self) -> bool {
        self.interrupted
    }
}

impl Display for RetentionBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupted {
            writeln!(f, "Interrupted in round {}\n", self.rounds.len())?;
        }
        let Some((_, first)) = self.rounds.first().and_then(|round| round.first()) else { return Ok(()) };
        let workload = first.workload.unwrap_or_default();
        writeln!(
            f,
            "{} (KVM on {}, Linux {}), CPUs {}, publisher bpf; {} ns in the lock, {} ns between, {} ms a point, median \
             of {} rounds\n",
            first.host.processor,
            first.host.kvm_backend,
            first.host.kernel,
            first.guest.cpus,
            workload.section_ns,
            workload.think_ns,
            workload.duration_ms,
            self.rounds.len(),
        )?;
        let header = [
            "lock", "wait", "load", "clean", "acq/s", "kept", "least", "most", "useful", "spin", "kicks",
            "rest", "idle", "gap ms", "jain", "halts",
        ];
        let mut table = Table::new(&header, 3);
        for point in points() {
            let kept = self.kept(point);
            let bound = |pick: fn(f64, f64) -> f64| kept.iter().copied().reduce(pick);
            let show =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let names = [
                point.lock.to_string(),
                point.wait.to_string(),
                format!("{}x", point.overcommit),
                format!("{}/{}", kept.len(), self.rounds.len()),
                figure(self.figure(point, |lock| lock.per_second)),
                show(median(kept.iter().copied())),
                show(bound(f64::min)),
                show(bound(f64::max)),
            ];
            let last = [
                figure(self.figure(point, |lock| lock.longest_gap_ns as f64 / 1e6)),
                format!("{:.2}", self.figure(point, |lock| lock.jain)),
                figure(self.figure(point, |lock| lock.halts as f64)),
            ];
            table.row(names.into_iter().chain(self.shares(point)).chain(last));
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "\nkept: of the same lock's 1x in the same round, median, least and most of the clean rounds; useful to idle: \
             shares of all CPU time"
        )
    }
}
