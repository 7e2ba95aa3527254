//! What guest and host tell each other beside the record: a page for each vCPU.
//!
//! The record is the kernel's, and says one thing: this vCPU does not run. A host that chooses who runs could do better if it
//! knew more, and so could a guest. This page is ours, and not in the record's way. All of it is optional: words ask the guest for
//! it ([`crate::words::Workload::tell`] and those behind it), and nothing is written that nobody has asked for.
//!
//! - [`Told`]: what the vCPU says of itself, for whoever looks; and a bell, for what cannot wait.
//! - [`Heard`]: what the host says.
//! - [`Episode`]: what took long, for a trace of the run.
//!
//! The host believes none of it: it is guest memory.

use core::mem::{align_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A vCPU's page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Exchange {
    /// The guest writes it.
    pub told: Told,
    /// The host writes it.
    pub heard: Heard,
    /// The guest writes it.
    pub episodes: Episodes,
}

/// What a vCPU says of itself.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Told {
    /// How many locks it holds.
    pub holds: AtomicU32,
    /// What it hints: 1 while it is at something urgent.
    pub hint: AtomicU32,
    /// 1 from before a halt until somebody wakes it. Whoever wakes it stores 0.
    pub is_halted: AtomicU32,
    /// What it has rung the doorbell for, and the host has not yet taken: bits of [`Ring`].
    pub bell: AtomicU32,
    /// For [`Ring::Yield`]: whom it waits for.
    pub yields_to: AtomicU32,
    /// For a lock, since when (cycles); 0 for none.
    pub waits_since: AtomicU64,
}

/// Why a vCPU rings the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ring {
    /// It is about to halt.
    Halt = 1,
    /// It was woken: another rings for it.
    Wake = 2,
    /// It wants another to run.
    Yield = 4,
}

/// What the host says.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Heard {
    /// When this vCPU's turn ends (cycles of the guest's clock), if nothing comes between; 0 for unknown.
    pub turn_ends: AtomicU64,
}

/// How many episodes a page holds.
pub const EPISODES: usize = 247;

/// The last [`EPISODES`] episodes. One that nobody reads in time is lost.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Episodes {
    /// How many there have been.
    pub written: AtomicU64,
    ring: [Slot; EPISODES],
}

/// A wait for a lock, or a section under it, that took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Which of the two.
    pub kind: EpisodeKind,
    /// When it began (cycles).
    pub from: u64,
    /// When it was over.
    pub to: u64,
}

/// What took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpisodeKind {
    /// Waiting for a lock.
    Waited,
    /// Holding it.
    Held,
}

#[derive(Debug)]
#[repr(C)]
struct Slot {
    /// Shifted left by one; the last bit is the kind.
    from: AtomicU64,
    to: AtomicU64,
}

const _: () = assert!(size_of::<Exchange>() == 4096 && align_of::<Exchange>() == 4096);

impl Exchange {
    /// A page on which nothing is written.
    pub const fn new() -> Self {
        Self {
            told: Told {
                holds: AtomicU32::new(0),
                hint: AtomicU32::new(0),
                is_halted: AtomicU32::new(0),
                bell: AtomicU32::new(0),
                yields_to: AtomicU32::new(0),
                waits_since: AtomicU64::new(0),
            },
            heard: Heard { turn_ends: AtomicU64::new(0) },
            episodes: Episodes {
                written: AtomicU64::new(0),
                ring: [const { Slot { from: AtomicU64::new(0), to: AtomicU64::new(0) } }; EPISODES],
            },
        }
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Told {
    /// Notes that the bell rings for `ring`. Says whether it did not already: then the port is to be written.
    pub fn rings(&self, ring: Ring) -> bool {
        self.bell.fetch_or(ring as u32, Ordering::AcqRel) & ring as u32 == 0
    }
}

impl Episodes {
    /// Adds one. Only the vCPU itself calls this.
    pub fn push(&self, episode: Episode) {
        let written = self.written.load(Ordering::Relaxed);
        if let Some(slot) = self.slot(written) {
            let kind = u64::from(episode.kind == EpisodeKind::Held);
            slot.from.store(episode.from << 1 | kind, Ordering::Relaxed);
            slot.to.store(episode.to, Ordering::Relaxed);
        }
        self.written.store(written.wrapping_add(1), Ordering::Release);
    }

    /// Hands over those from the one numbered `read` on, and gives the number of the next, and how many of them were lost.
    pub fn drain(&self, read: u64, mut each: impl FnMut(Episode)) -> (u64, u64) {
        let written = self.written.load(Ordering::Acquire);
        // A guest may write any number there.
        let first = read.max(written.saturating_sub(EPISODES as u64)).min(written);
        let mut lost = first.saturating_sub(read);
        for number in first..written {
            let Some(slot) = self.slot(number) else { break };
            let (from, to) = (slot.from.load(Ordering::Relaxed), slot.to.load(Ordering::Relaxed));
            // It may have been written over meanwhile.
            if self.written.load(Ordering::Acquire).saturating_sub(number) >= EPISODES as u64 {
                lost += 1;
                continue;
            }
            let kind = if from & 1 == 1 { EpisodeKind::Held } else { EpisodeKind::Waited };
            each(Episode { kind, from: from >> 1, to });
        }
        (written.max(read), lost)
    }

    fn slot(&self, number: u64) -> Option<&Slot> {
        let index = number % EPISODES as u64;
        usize::try_from(index).ok().and_then(|index| self.ring.get(index))
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;

    fn drain(exchange: &Exchange, read: u64) -> (Vec<u64>, u64, u64) {
        let mut seen = Vec::new();
        let (next, lost) = exchange.episodes.drain(read, |episode| seen.push(episode.from));
        (seen, next, lost)
    }

    #[test]
    fn episodes_are_read_once_and_those_that_were_written_over_are_counted() {
        let exchange = Box::new(Exchange::new());
        let push = |from| exchange.episodes.push(Episode { kind: EpisodeKind::Held, from, to: from + 1 });
        push(5);
        push(6);
        assert_eq!(drain(&exchange, 0), (Vec::from([5, 6]), 2, 0));
        assert_eq!(drain(&exchange, 2), (Vec::new(), 2, 0));
        (0..300).for_each(push);
        let (seen, next, lost) = drain(&exchange, 2);
        // The oldest might be under the writer's pen.
        assert_eq!((seen.len() as u64 + lost, next), (300, 302));
        assert_eq!(seen.last(), Some(&299));
    }

    #[test]
    fn guest_that_writes_nonsense_costs_its_host_a_page_of_work() {
        let exchange = Box::new(Exchange::new());
        exchange.episodes.written.store(u64::MAX, Ordering::Relaxed);
        let (seen, next, lost) = drain(&exchange, 7);
        assert!(seen.len() <= EPISODES);
        assert_eq!((next, seen.len() as u64 + lost), (u64::MAX, u64::MAX - 7));
        exchange.episodes.written.store(3, Ordering::Relaxed);
        assert_eq!(drain(&exchange, 9), (Vec::new(), 9, 0), "it went back");
    }

    #[test]
    fn bell_is_rung_once_until_it_is_taken() {
        let exchange = Box::new(Exchange::new());
        assert!(exchange.told.rings(Ring::Yield));
        assert!(!exchange.told.rings(Ring::Yield));
        assert!(exchange.told.rings(Ring::Halt));
        assert_eq!(exchange.told.bell.swap(0, Ordering::AcqRel), Ring::Yield as u32 | Ring::Halt as u32);
        assert!(exchange.told.rings(Ring::Yield));
    }
}
