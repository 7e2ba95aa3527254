//! Sampler: a thread that reads the `preempted` byte of a record in a loop, and records its
//! transitions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use host::clock;
use host::cpus::Cpus;
use steal_time::publisher::record::GuestRecord;

/// Longest time between two samples (ns) that does not count as a gap.
pub const MAX_GAP_NS: u64 = 20_000;

/// Limit of recorded transitions, and of gaps. At the limit the samples end: the oracle judges only
/// what lies before.
const MAX_TRANSITIONS: usize = 1 << 20;

/// A transition of `preempted` between zero and nonzero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// First sample with the new value (ns, `CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// Whether the new value is nonzero.
    pub is_set: bool,
}

/// Samples of one `preempted` byte, reduced to its transitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// First sample (ns, `CLOCK_MONOTONIC`).
    pub from_ns: u64,
    /// Last sample (ns, `CLOCK_MONOTONIC`).
    pub to_ns: u64,
    /// Whether the first sample was nonzero.
    pub began_set: bool,
    /// Transitions, in order.
    pub transitions: Vec<Transition>,
    /// Intervals of more than [`MAX_GAP_NS`] without a sample (ns), in order: the last sample
    /// before, the first one after.
    pub gaps: Vec<(u64, u64)>,
}

impl Samples {
    fn add(&mut self, at_ns: u64, is_set: bool) {
        if self.transitions.len().max(self.gaps.len()) == MAX_TRANSITIONS {
            return;
        }
        if at_ns.saturating_sub(self.to_ns) > MAX_GAP_NS {
            self.gaps.push((self.to_ns, at_ns));
        }
        self.to_ns = at_ns;
        let was_set = self.transitions.last().map_or(self.began_set, |transition| transition.is_set);
        if is_set != was_set {
            self.transitions.push(Transition { at_ns, is_set });
        }
    }
}

/// The sampling thread of one record. It runs until [`Sampler::finish`].
#[derive(Debug)]
pub struct Sampler {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    /// Starts to sample `preempted` of `record` on `cpus`, which should be idle.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(record: Arc<GuestRecord>, cpus: Cpus) -> std::io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread::Builder::new().name("sampler".to_owned()).spawn(move || {
            // On another CPU the samples are as correct, only with more gaps.
            let _ = cpus.pin_this_thread();
            let began_ns = clock::monotonic_ns();
            let began_set = record.preempted() != 0;
            let mut samples = Samples { from_ns: began_ns, to_ns: began_ns, began_set, ..Samples::default() };
            while !ends.load(Ordering::Relaxed) {
                // The timestamp follows the sample: the value was current then or earlier.
                let is_set = record.preempted() != 0;
                samples.add(clock::monotonic_ns(), is_set);
            }
            samples
        })?;
        Ok(Self { is_over, thread })
    }

    /// Stops the thread and returns its samples.
    pub fn finish(self) -> Samples {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_record_transitions_and_long_gaps() {
        let mut samples = Samples { from_ns: 100, to_ns: 100, ..Samples::default() };
        for (at_ns, is_set) in [(200, false), (300, true), (400, true), (400 + MAX_GAP_NS + 1, false)] {
            samples.add(at_ns, is_set);
        }
        let transition = |at_ns, is_set| Transition { at_ns, is_set };
        assert_eq!(samples.transitions, [transition(300, true), transition(401 + MAX_GAP_NS, false)]);
        assert_eq!(samples.gaps, [(400, 401 + MAX_GAP_NS)]);
    }

    #[test]
    fn full_samples_end_so_that_nothing_later_is_judged() {
        let full = MAX_TRANSITIONS as u64;
        let mut samples = Samples::default();
        (1..=full + 5).for_each(|at_ns| samples.add(at_ns, at_ns % 2 == 1));
        assert_eq!((samples.transitions.len() as u64, samples.to_ns), (full, full));
        let mut samples = Samples::default();
        (1..=full + 5).for_each(|gap| samples.add(gap * (MAX_GAP_NS + 1), false));
        assert_eq!((samples.gaps.len() as u64, samples.to_ns), (full, full * (MAX_GAP_NS + 1)));
    }
}
