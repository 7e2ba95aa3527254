//! Results of rounds: figures of a point, comparisons of two points, and verdicts.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::Measurement;
use crate::results::statistics::median;
use host::disturbance::Disturbance;

/// Results of all points, round by round.
#[derive(Clone, Debug)]
pub struct Rounds<P, R> {
    pub(super) rounds: Vec<Vec<(P, R)>>,
    /// Whether the user ended the run before the last point.
    pub interrupted: bool,
}

/// What was taken from a point, in the document.
#[derive(Serialize)]
struct Taken<'r, P> {
    point: &'r P,
    #[serde(flatten)]
    disturbance: Disturbance,
}

impl<P: PartialEq + Serialize, R: Measurement + Serialize> Serialize for Rounds<P, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut points: Vec<&P> = Vec::new();
        for (point, _) in self.iter() {
            if !points.contains(&point) {
                points.push(point);
            }
        }
        let taken = |point| Some(Taken { point, disturbance: self.disturbance(point)? });
        let taken: Vec<_> = points.into_iter().filter_map(taken).collect();
        let mut document = serializer.serialize_struct("Rounds", 3)?;
        document.serialize_field("rounds", &self.rounds)?;
        document.serialize_field("verdicts", &taken)?;
        document.serialize_field("interrupted", &self.interrupted)?;
        document.end()
    }
}

/// A ratio of two points over the rounds in which both ran undisturbed, or without any, over all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median over the rounds.
    pub median: f64,
    /// Minimum over the rounds.
    pub min: f64,
    /// Maximum over the rounds.
    pub max: f64,
    /// Number of undisturbed rounds; 0 if others disturbed all that were compared.
    pub rounds: usize,
}

impl<P: PartialEq, R: Measurement> Rounds<P, R> {
    /// Number of rounds, the last of which may be incomplete.
    pub fn count(&self) -> usize {
        self.rounds.len()
    }

    /// The first lines of a report that the user ended early; empty for others.
    pub fn interruption(&self) -> String {
        if self.interrupted { format!("Interrupted in round {}\n\n", self.count()) } else { String::new() }
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

    /// The results of `point` that count: of its undisturbed rounds, or without any, of all.
    pub fn counted(&self, point: &P) -> Vec<&R> {
        prefer_known(self.of(point).collect(), |result| result.is_known()).0
    }

    /// The CPU time that others took from the results of `point` that count; `None` if it was not
    /// measured. Its verdict is that of the point.
    pub fn disturbance(&self, point: &P) -> Option<Disturbance> {
        self.counted(point).into_iter().map(Measurement::disturbance).reduce(Disturbance::and)
    }

    /// Computes the median over rounds of a figure of `point`; `None` if none is finite.
    pub fn median(&self, point: &P, figure: impl Fn(&R) -> Option<f64>) -> Option<f64> {
        median(self.counted(point).into_iter().filter_map(figure))
    }

    /// Computes the median over rounds of a figure of `point` and `base`, taken within a round.
    pub fn median_with(&self, point: &P, base: &P, figure: impl Fn(&R, &R) -> Option<f64>) -> Option<f64> {
        let (pairs, _) = self.pairs(point, base);
        median(pairs.into_iter().filter_map(|(result, base)| figure(result, base)))
    }

    /// Compares a figure of `point` with that of `base` within each round; `None` if no ratio is
    /// finite.
    pub fn ratio(&self, point: &P, base: &P, figure: impl Fn(&R) -> Option<f64>) -> Option<Ratio> {
        let (pairs, are_known) = self.pairs(point, base);
        let ratios = pairs.into_iter().filter_map(|(result, base)| Some(figure(result)? / figure(base)?));
        Ratio::of(&ratios.filter(|ratio| ratio.is_finite()).collect::<Vec<_>>(), are_known)
    }

    /// The results of `point` and `base` in each round in which both ran undisturbed, and `true`;
    /// without such a round, those of all rounds, and `false`.
    fn pairs(&self, point: &P, base: &P) -> (Vec<(&R, &R)>, bool) {
        let pair = |round| Some((in_round(round, point)?, in_round(round, base)?));
        let pairs = self.rounds.iter().filter_map(|round| pair(round)).collect();
        prefer_known(pairs, |(result, base)| result.is_known() && base.is_known())
    }
}

/// Returns those `results` that are known, and `true`; or all and `false`, if none is.
fn prefer_known<T>(results: Vec<T>, is_known: impl Fn(&T) -> bool) -> (Vec<T>, bool) {
    let any_known = results.iter().any(&is_known);
    (results.into_iter().filter(|result| !any_known || is_known(result)).collect(), any_known)
}

impl Ratio {
    fn of(ratios: &[f64], are_known: bool) -> Option<Self> {
        let bound = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick);
        Some(Self {
            median: median(ratios.iter().copied())?,
            min: bound(f64::min)?,
            max: bound(f64::max)?,
            rounds: if are_known { ratios.len() } else { 0 },
        })
    }
}

fn in_round<'r, P: PartialEq, R>(round: &'r [(P, R)], point: &P) -> Option<&'r R> {
    round.iter().find(|(other, _)| other == point).map(|(_, result)| result)
}
