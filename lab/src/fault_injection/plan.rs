//! The plan of one vCPU's faults: the value of the guest's `preempted`, given the correct one.
//!
//! It has no thread and no clock. The seed alone decides each fault, so two runs with the same seed
//! drop the same sets.

use fastrand::Rng;
use protocol::VcpuId;

use super::Faults;

/// Length of a false set, if no preemption ends it (ns).
pub(super) const FALSE_NS: u64 = 500_000;

/// Number of injected faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FaultCounts {
    /// Sets of `preempted` by the real publisher.
    pub sets: u64,
    /// Of these, dropped.
    pub dropped: u64,
    /// Of these, delayed.
    pub delayed: u64,
    /// Sets without a preemption.
    pub falsely_set: u64,
    /// Clears that were dropped.
    pub stuck: u64,
}

impl FaultCounts {
    /// The faults since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sets: self.sets.saturating_sub(earlier.sets),
            dropped: self.dropped.saturating_sub(earlier.dropped),
            delayed: self.delayed.saturating_sub(earlier.delayed),
            falsely_set: self.falsely_set.saturating_sub(earlier.falsely_set),
            stuck: self.stuck.saturating_sub(earlier.stuck),
        }
    }
}

/// The plan of one vCPU's faults.
#[derive(Debug)]
pub(super) struct FaultPlan {
    faults: Faults,
    /// Decides which sets are dropped.
    drops: Rng,
    /// Decides when false sets occur.
    false_sets: Rng,
    /// The correct value.
    correct: bool,
    /// The guest's value.
    published: bool,
    /// When a delayed set is due (ns).
    due: Option<u64>,
    /// When the next false set is due (ns).
    next_false: Option<u64>,
    /// When the current false set ends (ns).
    false_until: Option<u64>,
    counts: FaultCounts,
}

impl FaultPlan {
    pub(super) fn new(faults: Faults, vcpu: VcpuId) -> Self {
        let stream = |number: u64| Rng::with_seed(faults.seed ^ (2 * vcpu.index() as u64 + number) << 48);
        Self {
            faults,
            drops: stream(1),
            false_sets: stream(2),
            correct: false,
            published: false,
            due: None,
            next_false: None,
            false_until: None,
            counts: FaultCounts::default(),
        }
    }

    /// Returns the guest's value at `now` (ns), given the correct one.
    pub(super) fn preempted(&mut self, now: u64, correct: bool) -> bool {
        match (self.correct, correct) {
            (false, true) => self.begin(now),
            (true, false) => self.end(),
            _ => {}
        }
        self.correct = correct;
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.published = true;
        }
        self.set_falsely(now);
        self.published
    }

    fn begin(&mut self, now: u64) {
        self.counts.sets += 1;
        self.false_until = None;
        if self.drops.f64() < self.faults.drop {
            self.counts.dropped += 1;
        } else if self.faults.delay_us > 0 {
            self.counts.delayed += 1;
            self.due = Some(now + 1_000 * u64::from(self.faults.delay_us));
        } else {
            self.published = true;
        }
    }

    fn end(&mut self) {
        self.due = None;
        self.clear();
    }

    fn clear(&mut self) {
        if self.faults.stick && self.published {
            self.counts.stuck += 1;
        } else {
            self.published = false;
        }
    }

    fn set_falsely(&mut self, now: u64) {
        if self.faults.false_hz <= 0.0 {
            return;
        }
        if self.false_until.is_some_and(|until| until <= now) {
            self.false_until = None;
            self.clear();
        }
        let next = match self.next_false {
            Some(next) => next,
            None => self.plan_false_set(now),
        };
        if next <= now {
            if !self.correct && !self.published {
                self.counts.falsely_set += 1;
                self.published = true;
                self.false_until = Some(now + FALSE_NS);
            }
            self.plan_false_set(now);
        }
    }

    /// Plans the next false set: a Poisson process, with a dead time after each set.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds in ns")]
    fn plan_false_set(&mut self, now: u64) -> u64 {
        let between = -(1.0 - self.false_sets.f64()).ln() / self.faults.false_hz;
        let next = now + FALSE_NS + (between * 1e9) as u64;
        self.next_false = Some(next);
        next
    }

    pub(super) fn counts(&self) -> FaultCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples a byte that is set in every other millisecond, each 10 us for a second.
    fn play(faults: &str) -> (FaultCounts, Vec<bool>) {
        let mut plan = FaultPlan::new(faults.parse().unwrap(), VcpuId::BOOT);
        let values =
            (0..100_000_u64).map(|sample| plan.preempted(sample * 10_000, sample / 100 % 2 == 1)).collect();
        (plan.counts(), values)
    }

    #[test]
    fn plan_without_faults_publishes_the_correct_value() {
        let (counts, values) = play("seed=1");
        assert_eq!(counts, FaultCounts { sets: 500, ..FaultCounts::default() });
        assert!(values.iter().enumerate().all(|(sample, value)| *value == (sample / 100 % 2 == 1)));
    }

    #[test]
    fn share_of_sets_is_dropped_and_the_same_for_the_same_seed() {
        let (counts, values) = play("drop=0.2,seed=5");
        assert!((70..130).contains(&counts.dropped), "{counts:?}");
        let set = values.chunks(200).filter(|period| period.iter().any(|value| *value)).count() as u64;
        assert_eq!(set, counts.sets - counts.dropped);
        assert_eq!(play("drop=0.2,seed=5").1, values);
        assert_ne!(play("drop=0.2,seed=6").1, values);
    }

    #[test]
    fn delayed_set_is_late_by_its_delay_or_missing() {
        let (counts, values) = play("delay_us=300");
        assert_eq!((counts.delayed, counts.sets), (500, 500));
        assert!(values.chunks(200).all(|period| period.iter().position(|value| *value) == Some(130)));
        assert!(!play("delay_us=1500").1.contains(&true));
    }

    #[test]
    fn false_sets_occur_at_their_rate_and_last_half_a_millisecond() {
        let mut plan = FaultPlan::new("false_hz=100".parse().unwrap(), VcpuId::BOOT);
        let values: Vec<bool> =
            (0..1_000_000_u64).map(|sample| plan.preempted(sample * 10_000, false)).collect();
        let begun = values.windows(2).filter(|pair| !pair[0] && pair[1]).count() as u64;
        assert_eq!(begun, plan.counts().falsely_set);
        assert!((850..1050).contains(&begun), "{begun}");
        let set = values.iter().filter(|value| **value).count() as u64;
        assert!(set.abs_diff(begun * FALSE_NS / 10_000) <= begun, "{set}");
    }

    #[test]
    fn byte_that_sticks_is_never_cleared() {
        let (counts, values) = play("stick");
        assert!(values[100..].iter().all(|value| *value));
        assert_eq!(counts.stuck, 499);
    }
}
