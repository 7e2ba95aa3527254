//! The last intervals for which a vCPU was descheduled: a ring that is allocated whole.

use std::collections::VecDeque;

use vmm::hooks::Descheduled;

/// Number of intervals that are kept.
const MAX_INTERVALS: usize = 1 << 14;

/// The last intervals of one vCPU. Only a scheduler makes some, when the guest halts or yields too.
#[derive(Debug, Default)]
pub(super) struct Intervals(VecDeque<Descheduled>);

impl Intervals {
    /// Makes the memory of the whole ring resident, 640 KiB: a guest does not make it grow then.
    pub(super) fn allocate(&mut self) {
        let none = Descheduled { requested_ns: 0, from_ns: 0, published_ns: 0, to_ns: 0, descheduled_ns: 0 };
        if self.0.is_empty() {
            self.0.reserve_exact(MAX_INTERVALS);
            self.0.resize(MAX_INTERVALS, none);
            self.0.clear();
        }
    }

    /// Adds the latest interval. A full ring drops its oldest one.
    pub(super) fn add(&mut self, interval: Descheduled) {
        if self.0.len() == MAX_INTERVALS {
            self.0.pop_front();
        }
        self.0.push_back(interval);
    }

    /// Returns the intervals, in order.
    pub(super) fn all(&self) -> Vec<Descheduled> {
        self.0.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(from_ns: u64) -> Descheduled {
        Descheduled { requested_ns: 0, from_ns, published_ns: 0, to_ns: from_ns + 1, descheduled_ns: 1 }
    }

    #[test]
    fn million_intervals_stay_in_the_memory_that_was_allocated_and_the_last_are_kept() {
        let mut intervals = Intervals::default();
        intervals.allocate();
        let capacity = intervals.0.capacity();
        assert!(capacity * size_of::<Descheduled>() <= 640 << 10, "{capacity}");
        (0..1_000_000).for_each(|from_ns| intervals.add(interval(from_ns)));
        assert_eq!(intervals.0.capacity(), capacity);
        let kept = intervals.all();
        assert_eq!((kept.len(), kept.last()), (MAX_INTERVALS, Some(&interval(999_999))));
        assert_eq!(kept.first(), Some(&interval(1_000_000 - MAX_INTERVALS as u64)));
    }
}
