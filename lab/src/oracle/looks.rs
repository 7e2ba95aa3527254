//! Looking: a thread that does nothing but look at one byte, and notes when it changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use host::clock;
use host::cpus::Cpus;
use steal_time::publisher::record::GuestRecord;

/// Between two looks so far apart (ns), anything may have happened.
pub const BLIND_NS: u64 = 20_000;

/// More changes than this are not noted.
const MOST_CHANGES: usize = 1 << 20;

/// The byte was seen to have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// When it was first seen so (ns of the monotonic clock).
    pub at_ns: u64,
    /// Whether it is set from then on.
    pub is_set: bool,
}

/// What was seen of one byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// The first look.
    pub from_ns: u64,
    /// The last look.
    pub to_ns: u64,
    /// Whether it was set at the first look.
    pub began_set: bool,
    /// Its changes, in order.
    pub changes: Vec<Change>,
    /// When nobody looked for long, from the last look before to the first after.
    pub blind: Vec<(u64, u64)>,
}

impl Looks {
    fn look(&mut self, at_ns: u64, is_set: bool) {
        if at_ns.saturating_sub(self.to_ns) > BLIND_NS {
            self.blind.push((self.to_ns, at_ns));
        }
        self.to_ns = at_ns;
        let was_set = self.changes.last().map_or(self.began_set, |change| change.is_set);
        if is_set != was_set && self.changes.len() < MOST_CHANGES {
            self.changes.push(Change { at_ns, is_set });
        }
    }
}

/// See the module. Looks until it is asked what it has seen.
#[derive(Debug)]
pub struct Looker {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Looks>,
}

impl Looker {
    /// Begins to look at the byte of `record`, on these CPUs, which should be idle.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(record: Arc<GuestRecord>, cpus: Cpus) -> std::io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread::Builder::new().name("looker".to_owned()).spawn(move || {
            // On another CPU it would see as well, but not as often.
            let _ = cpus.confine_this_thread();
            let began_ns = clock::monotonic_ns();
            let began_set = record.preempted() != 0;
            let mut looks = Looks { from_ns: began_ns, to_ns: began_ns, began_set, ..Looks::default() };
            while !ends.load(Ordering::Relaxed) {
                // In this order: what is seen was so at the time noted, or later.
                let is_set = record.preempted() != 0;
                looks.look(clock::monotonic_ns(), is_set);
            }
            looks
        })?;
        Ok(Self { is_over, thread })
    }

    /// Ends it, and gives what it has seen.
    pub fn finish(self) -> Looks {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_note_changes_and_long_absences() {
        let mut looks = Looks { from_ns: 100, to_ns: 100, ..Looks::default() };
        for (at_ns, is_set) in [(200, false), (300, true), (400, true), (400 + BLIND_NS + 1, false)] {
            looks.look(at_ns, is_set);
        }
        let change = |at_ns, is_set| Change { at_ns, is_set };
        assert_eq!(looks.changes, [change(300, true), change(401 + BLIND_NS, false)]);
        assert_eq!(looks.blind, [(400, 401 + BLIND_NS)]);
    }
}
