//! Measured rounds: runs every point once per round, and compares points within a round.
//!
//! A slow phase of the machine affects all points of a round alike, so ratios are taken within one
//! round and their median is quoted.
//!
//! A point from which other tasks or an outer hypervisor took CPU time is measured again up to
//! `retries` times ([`undisturbed`]; the rule is that of [`host::disturbance`]). Figures are taken
//! from rounds that ran undisturbed. A point without such a round keeps the figures of all its
//! rounds, and its verdict is `disturbed`, in table and document.

mod experiment;
mod point;
mod rounds;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use self::experiment::{Experiment, SessionPlan, lock_of};
pub use self::point::{Point, WaitMode};
pub use self::rounds::{Ratio, Rounds};
use crate::error::{self, Error};
use host::disturbance::{Disturbance, Verdict};

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

/// Number of times that a disturbed measurement is repeated, where no option chooses it.
pub const RETRIES: u16 = 2;

/// The result of one point in one round.
pub trait Measurement {
    /// The CPU time that others took from it.
    fn disturbance(&self) -> Disturbance;

    /// Whether its figures count.
    fn is_known(&self) -> bool {
        self.disturbance().verdict() == Verdict::Known
    }
}

/// Measures until nothing disturbs, repeating up to `retries` times. Returns the last result.
///
/// # Errors
/// The first error of `measure`.
pub fn undisturbed<R: Measurement, E>(
    retries: u16,
    mut measure: impl FnMut() -> Result<R, E>,
) -> Result<R, E> {
    let mut result = measure()?;
    for _ in 0..retries {
        if result.disturbance().verdict() != Verdict::Disturbed {
            break;
        }
        result = measure()?;
    }
    Ok(result)
}

impl Runner {
    /// A runner that measures each point once.
    pub fn once(quiet: bool) -> Self {
        Self { rounds: 1, warmup_rounds: 0, retries: RETRIES, quiet }
    }

    /// Measures all `points` in each round with `measure`.
    ///
    /// # Errors
    /// The first error of `measure`, except by an interruption: it ends the rounds, and the results
    /// so far are returned.
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
                // Nothing begins once termination is requested.
                let mut measure = || error::pause(Duration::ZERO).and_then(|()| measure(point));
                match undisturbed(self.retries, &mut measure) {
                    Err(error) if error.is_interrupted() => {
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
