//! Timings: when a run reached its milestones.

use std::fmt;
use std::time::{Duration, Instant};

use host::clock;

/// The milestones of a run, in order of time.
#[derive(Clone, Debug)]
pub struct Timings {
    began: Instant,
    marks: Vec<Mark>,
}

/// A milestone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mark {
    /// The milestone that was reached.
    pub what: &'static str,
    /// Time since the beginning.
    #[serde(rename = "at_ns", serialize_with = "as_ns")]
    pub at: Duration,
}

fn as_ns<S: serde::Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(at.as_nanos())
}

impl Timings {
    /// Creates an empty list. Times count from `began`.
    pub fn since(began: Instant) -> Self {
        Self { began, marks: Vec::new() }
    }

    /// Records that `what` is reached now.
    pub fn mark(&mut self, what: &'static str) {
        self.mark_at(what, Instant::now());
    }

    /// Records that `what` was reached `at`. Calls may come in any order.
    pub fn mark_at(&mut self, what: &'static str, at: Instant) {
        let mark = Mark { what, at: at.saturating_duration_since(self.began) };
        let place = self.marks.partition_point(|other| other.at <= mark.at);
        self.marks.insert(place, mark);
    }

    /// Returns the beginning, as a time of `CLOCK_MONOTONIC`.
    pub fn began_monotonic(&self) -> Duration {
        clock::monotonic().saturating_sub(self.began.elapsed())
    }

    /// Returns the milestones, in order of time.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// Returns the time until `what`; `None` if it was not reached.
    pub fn at(&self, what: &str) -> Option<Duration> {
        self.marks.iter().find(|mark| mark.what == what).map(|mark| mark.at)
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Mark { what, at } in &self.marks {
            writeln!(f, "{:>10.3} ms  {what}", at.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_kept_in_order_of_time() {
        let began = Instant::now();
        let mut timings = Timings::since(began);
        timings.mark_at("late", began + Duration::from_millis(2));
        timings.mark_at("early", began + Duration::from_millis(1));
        assert_eq!(timings.marks().iter().map(|mark| mark.what).collect::<Vec<_>>(), ["early", "late"]);
        assert_eq!(timings.at("late"), Some(Duration::from_millis(2)));
        assert_eq!(timings.at("never"), None);
    }
}
