//! Rounds: every point once, then all of them again.
//!
//! A slow spell of the machine then falls on all points, and what is compared was measured within one round. A point that
//! strangers disturbed is measured again, a bounded number of times; if it never comes out clean, its round does not count
//! for it.

use protocol::payload::params::Workload;
use serde::Serialize;

use super::{BenchError, median};
use crate::cli::{BenchArgs, RoundArgs, usable_cpus};
use crate::demo::progress_bar;
use crate::experiment::{Experiment, ExperimentError, Point, lock_of};
use crate::results::{LockFigures, RunResult};
use host::facts::HostFacts;

const WARMUP_MS: u32 = 200;

/// What was measured, round by round.
#[derive(Debug, Serialize)]
pub(super) struct Rounds {
    rounds: Vec<Vec<(Point, RunResult)>>,
    /// Whether the user ended it before the last point.
    pub(super) interrupted: bool,
}

/// What rounds gave for a ratio: the median, the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    /// Rounds that it is from.
    pub(super) clean: usize,
}

impl Ratio {
    pub(super) fn of(ratios: &[f64]) -> Option<Self> {
        let bound = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick);
        Some(Self {
            median: median(ratios.iter().copied())?,
            least: bound(f64::min)?,
            most: bound(f64::max)?,
            clean: ratios.len(),
        })
    }
}

impl Rounds {
    /// Measures `points`, each a guest of its own that does `workload` but for what the point says.
    pub(super) fn measure(
        workload: Workload,
        points: &[Point],
        args: RoundArgs,
        common: &BenchArgs,
    ) -> Result<Self, BenchError> {
        let cpus = usable_cpus(common.cpus.as_ref())?;
        let workload = Workload { warmup_ms: WARMUP_MS, duration_ms: args.duration_ms, ..workload };
        let experiment = Experiment { host: HostFacts::probe(), cpus, workload };
        let bar = progress_bar(points.len() * usize::from(args.rounds), common.quiet);
        let mut all = Self { rounds: Vec::new(), interrupted: false };
        'rounds: for round in 1..=args.rounds {
            let mut runs = Vec::with_capacity(points.len());
            for point in points {
                let Point { lock, wait, check, overcommit, .. } = point;
                bar.set_message(format!("round {round}: {lock}, {wait}, {check}, {overcommit}x"));
                let result = match clean(&experiment, *point, args.retries) {
                    Err(ExperimentError::Interrupted) => {
                        all.interrupted = true;
                        all.rounds.push(runs);
                        break 'rounds;
                    }
                    result => result?,
                };
                runs.push((*point, result));
                bar.inc(1);
            }
            all.rounds.push(runs);
        }
        bar.finish_and_clear();
        Ok(all)
    }

    /// How many rounds there are.
    pub(super) fn count(&self) -> usize {
        self.rounds.len()
    }

    /// The first run of all.
    pub(super) fn first(&self) -> Option<&RunResult> {
        Some(&self.rounds.first()?.first()?.1)
    }

    /// What `point` gave in each round.
    fn of(&self, point: Point) -> impl Iterator<Item = &RunResult> {
        self.rounds.iter().filter_map(move |round| in_round(round, point))
    }

    /// Throughput of `point` over that of `base`, in each round in which neither was disturbed.
    pub(super) fn ratio(&self, point: Point, base: Point) -> Option<Ratio> {
        let ratio = |round: &Vec<(Point, RunResult)>| {
            let (here, base) = (in_round(round, point)?, in_round(round, base)?);
            let throughput = |result| Some(lock_of(result)?.1.per_second);
            let is_clean = !is_disturbed(here) && !is_disturbed(base);
            is_clean.then(|| Some(throughput(here)? / throughput(base)?)).flatten()
        };
        Ratio::of(&self.rounds.iter().filter_map(ratio).collect::<Vec<_>>())
    }

    /// The median over rounds of a figure of `point`.
    pub(super) fn figure(&self, point: Point, figure: impl Fn(&LockFigures) -> f64) -> f64 {
        median(self.of(point).filter_map(|result| Some(figure(lock_of(result)?.1)))).unwrap_or(0.0)
    }

    /// As [`Rounds::figure`], of a count in a second.
    pub(super) fn rate(&self, point: Point, count: impl Fn(&LockFigures) -> u64) -> f64 {
        let rate = |result| {
            let (window, lock) = lock_of(result)?;
            Some(count(lock) as f64 * 1e9 / (window.length_ns as f64).max(1.0))
        };
        median(self.of(point).filter_map(rate)).unwrap_or(0.0)
    }

    /// The worst over rounds of a figure of `point`.
    pub(super) fn worst(&self, point: Point, figure: impl Fn(&LockFigures) -> f64) -> f64 {
        self.of(point).filter_map(|result| Some(figure(lock_of(result)?.1))).fold(0.0, f64::max)
    }
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

fn in_round(round: &[(Point, RunResult)], point: Point) -> Option<&RunResult> {
    round.iter().find(|(p, _)| *p == point).map(|(_, result)| result)
}

fn is_disturbed(result: &RunResult) -> bool {
    result.window.as_ref().is_some_and(|window| window.host.disturbed)
}
