//! Measured rounds: runs every point once per round, and compares points within a round.
//!
//! A slow phase of the machine affects all points of a round alike, so ratios are taken within one
//! round and their median is quoted. A point that other tasks disturbed is measured again up to
//! `retries` times. If it never runs undisturbed, its round does not count for its ratios.

mod experiment;
mod point;

use std::fmt::Display;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

pub use self::experiment::{Experiment, SessionPlan, lock_of};
pub use self::point::{Point, WaitMode};
use crate::error::Error;
use crate::results::statistics::median;

/// How points are measured.
#[derive(Clone, Copy, Debug)]
pub struct Runner {
    /// Rounds that count.
    pub rounds: u16,
    /// Rounds before them that warm caches and do not count.
    pub warmup_rounds: u16,
    /// Number of times that a disturbed point is measured again.
    pub retries: u16,
    /// Whether the progress bar is hidden.
    pub quiet: bool,
}

/// The result of one point in one round.
pub trait Measurement {
    /// Whether other tasks or an outer hypervisor disturbed it.
    fn is_disturbed(&self) -> bool {
        false
    }
}

/// Results of all points, round by round.
#[derive(Clone, Debug, Serialize)]
pub struct Rounds<P, R> {
    rounds: Vec<Vec<(P, R)>>,
    /// Whether the user ended the run before the last point.
    pub interrupted: bool,
}

/// A ratio of two points over all undisturbed rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median over the rounds.
    pub median: f64,
    /// Minimum over the rounds.
    pub min: f64,
    /// Maximum over the rounds.
    pub max: f64,
    /// Number of undisturbed rounds.
    pub rounds: usize,
}

impl Runner {
    /// A runner that measures each point once.
    pub fn once(quiet: bool) -> Self {
        Self { rounds: 1, warmup_rounds: 0, retries: 0, quiet }
    }

    /// Measures all `points` in each round with `measure`.
    ///
    /// # Errors
    /// The first error of `measure`, except [`Error::Interrupted`]: it ends the rounds, and
    /// the results so far are returned.
    pub fn measure<P: Clone + Display, R: Measurement>(
        self,
        points: &[P],
        mut measure: impl FnMut(&P) -> Result<R, Error>,
    ) -> Result<Rounds<P, R>, Error> {
        let all_rounds = self.warmup_rounds + self.rounds;
        let bar = progress_bar(points.len() * usize::from(all_rounds), self.quiet);
        let mut all = Rounds { rounds: Vec::new(), interrupted: false };
        for round in 1..=all_rounds {
            let mut results = Vec::with_capacity(points.len());
            for point in points {
                bar.set_message(format!("round {round}: {point}"));
                match self.undisturbed(point, &mut measure) {
                    Err(Error::Interrupted) => {
                        all.interrupted = true;
                        break;
                    }
                    result => results.push((point.clone(), result?)),
                }
                bar.inc(1);
            }
            if round > self.warmup_rounds {
                all.rounds.push(results);
            }
            if all.interrupted {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(all)
    }

    /// Measures `point`, retrying disturbed runs up to `retries` times.
    fn undisturbed<P, R: Measurement>(
        self,
        point: &P,
        measure: &mut impl FnMut(&P) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut result = measure(point)?;
        for _ in 0..self.retries {
            if !result.is_disturbed() {
                break;
            }
            result = measure(point)?;
        }
        Ok(result)
    }
}

impl<P: PartialEq, R: Measurement> Rounds<P, R> {
    /// Number of rounds, the last of which may be incomplete.
    pub fn count(&self) -> usize {
        self.rounds.len()
    }

    /// All results with their points, in the order in which they were measured.
    pub fn iter(&self) -> impl Iterator<Item = &(P, R)> {
        self.rounds.iter().flatten()
    }

    /// The first result.
    pub fn first(&self) -> Option<&R> {
        self.iter().next().map(|(_, result)| result)
    }

    /// The results of `point`, at most one per round.
    pub fn of(&self, point: &P) -> impl Iterator<Item = &R> {
        self.rounds.iter().filter_map(move |round| in_round(round, point))
    }

    /// Computes the median over rounds of a figure of `point`.
    pub fn median(&self, point: &P, figure: impl Fn(&R) -> Option<f64>) -> Option<f64> {
        median(self.of(point).filter_map(figure))
    }

    /// Computes the median over rounds of a figure of `point` and `base`, taken within a round.
    pub fn median_with(&self, point: &P, base: &P, figure: impl Fn(&R, &R) -> Option<f64>) -> Option<f64> {
        let of = |round: &Vec<(P, R)>| figure(in_round(round, point)?, in_round(round, base)?);
        median(self.rounds.iter().filter_map(of))
    }

    /// Compares a figure of `point` with that of `base` in each round in which both ran
    /// undisturbed; `None` if there is no such round.
    pub fn ratio(&self, point: &P, base: &P, figure: impl Fn(&R) -> Option<f64>) -> Option<Ratio> {
        let ratio = |round: &Vec<(P, R)>| {
            let (result, base) = (in_round(round, point)?, in_round(round, base)?);
            let is_clean = !result.is_disturbed() && !base.is_disturbed();
            is_clean.then(|| Some(figure(result)? / figure(base)?)).flatten()
        };
        Ratio::of(&self.rounds.iter().filter_map(ratio).collect::<Vec<_>>())
    }
}

impl Ratio {
    fn of(ratios: &[f64]) -> Option<Self> {
        let bound = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick);
        Some(Self {
            median: median(ratios.iter().copied())?,
            min: bound(f64::min)?,
            max: bound(f64::max)?,
            rounds: ratios.len(),
        })
    }
}

fn in_round<'r, P: PartialEq, R>(round: &'r [(P, R)], point: &P) -> Option<&'r R> {
    round.iter().find(|(other, _)| other == point).map(|(_, result)| result)
}

/// Creates a progress bar on standard error, hidden if that is no terminal.
fn progress_bar(steps: usize, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if quiet || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    // Draws the bar before the first step has ended.
    bar.tick();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample {
        value: f64,
        is_disturbed: bool,
    }

    impl Measurement for Sample {
        fn is_disturbed(&self) -> bool {
            self.is_disturbed
        }
    }

    const ROUNDS: Runner = Runner { rounds: 3, warmup_rounds: 0, retries: 2, quiet: true };

    fn clean(value: f64) -> Sample {
        Sample { value, is_disturbed: false }
    }

    #[test]
    fn disturbed_point_is_measured_again_up_to_the_number_of_retries() {
        let mut runs = 0;
        let rounds = ROUNDS.measure(&["a"], |_| {
            runs += 1;
            Ok(Sample { value: f64::from(runs), is_disturbed: runs != 2 })
        });
        // The second run of the first round is undisturbed; the other rounds use all retries.
        assert_eq!(runs, 2 + 3 + 3);
        let rounds = rounds.unwrap();
        assert_eq!(rounds.of(&"a").map(|sample| sample.value).collect::<Vec<_>>(), [2.0, 5.0, 8.0]);
        assert_eq!(rounds.ratio(&"a", &"a", |sample| Some(sample.value)).map(|ratio| ratio.rounds), Some(1));
    }

    #[test]
    fn ratio_compares_within_rounds() {
        let mut factor = 0.0;
        let rounds = ROUNDS.measure(&["base", "double"], |point| {
            factor += 1.0;
            Ok(clean(if *point == "base" { factor } else { 2.0 * (factor - 1.0) }))
        });
        let ratio = rounds.unwrap().ratio(&"double", &"base", |sample| Some(sample.value)).unwrap();
        assert_eq!(ratio, Ratio { median: 2.0, min: 2.0, max: 2.0, rounds: 3 });
    }

    #[test]
    fn interruption_ends_the_rounds_and_keeps_what_was_measured() {
        let mut runs = 0;
        let rounds = ROUNDS.measure(&["a", "b"], |_| {
            runs += 1;
            if runs == 4 { Err(Error::Interrupted) } else { Ok(clean(1.0)) }
        });
        let rounds = rounds.unwrap();
        assert!(rounds.interrupted);
        assert_eq!((rounds.count(), rounds.iter().count(), rounds.of(&"b").count()), (2, 3, 1));
    }

    #[test]
    fn warmup_rounds_run_and_do_not_count() {
        let mut runs = 0;
        let runner = Runner { warmup_rounds: 1, ..ROUNDS };
        let rounds = runner.measure(&["a"], |_| {
            runs += 1;
            Ok(clean(f64::from(runs)))
        });
        assert_eq!((rounds.unwrap().first().map(|sample| sample.value), runs), (Some(2.0), 4));
    }
}
