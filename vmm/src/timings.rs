//! Where start-up time goes: marks along the way, and when the guest executed its first instruction.

use std::fmt;
use std::time::{Duration, Instant};

use host::clock;

/// Marks since the process, or the run, began.
#[derive(Clone, Debug)]
pub struct Timings {
    began: Instant,
    marks: Vec<Mark>,
}

/// One mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mark {
    /// What was reached.
    pub what: &'static str,
    /// Since the beginning.
    #[serde(rename = "at_ns", serialize_with = "as_ns")]
    pub at: Duration,
}

fn as_ns<S: serde::Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(at.as_nanos())
}

impl Timings {
    /// Nothing reached yet.
    pub fn since(began: Instant) -> Self {
        Self { began, marks: Vec::new() }
    }

    /// `what` is reached now.
    pub fn mark(&mut self, what: &'static str) {
        self.mark_at(what, Instant::now());
    }

    /// `what` was reached `at`. Marks need not come in order.
    pub fn mark_at(&mut self, what: &'static str, at: Instant) {
        let mark = Mark { what, at: at.saturating_duration_since(self.began) };
        let place = self.marks.partition_point(|other| other.at <= mark.at);
        self.marks.insert(place, mark);
    }

    /// When it all began, by the host's monotonic clock.
    pub fn began_monotonic(&self) -> Duration {
        clock::monotonic().saturating_sub(self.began.elapsed())
    }

    /// The marks, in order of time.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// When `what` was reached, if it was.
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
