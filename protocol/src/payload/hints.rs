//! Hints: what a vCPU and the host's scheduler tell each other while the guest runs.
//!
//! The steal-time record says one thing to the guest: this vCPU does not run. A host scheduler
//! decides better if it knows which vCPU holds a lock, and a guest waits better if it knows when
//! its slice ends. Each vCPU has one page for this, in memory of the guest. Unrequested hints cost
//! nothing: the parameters `hints`, `doorbell`, `trace` and `slice_margin_ns` turn them on.
//!
//! - [`GuestHints`]: written by the vCPU, read by the host; with a doorbell for urgent ones.
//! - [`HostHints`]: written by the host, read by the vCPU.
//! - [`Episodes`]: a log of long waits and long sections, for a trace of the run.
//!
//! The page is guest memory, so the host trusts no value in it.

use core::mem::{align_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::params::MAX_LOCKS;

/// The hint page of one vCPU.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct HintPage {
    /// From the vCPU to the host.
    pub guest: GuestHints,
    /// From the host to the vCPU.
    pub host: HostHints,
    /// Log of the vCPU.
    pub episodes: Episodes,
}

/// Hints from a vCPU to the host's scheduler.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct GuestHints {
    /// Number of locks that the vCPU holds.
    pub locks_held: AtomicU32,
    /// 1 while the vCPU does something urgent, which the host should not interrupt.
    pub urgent: AtomicU32,
    /// 1 from before a halt until another vCPU wakes this one. The waker stores 0.
    pub is_halted: AtomicU32,
    /// Pending doorbell rings: bits of [`Doorbell`]. The host takes them by an exchange with 0.
    pub doorbell: AtomicU32,
    /// For [`Doorbell::Yield`]: the index of the vCPU that should run.
    pub yield_to: AtomicU32,
    /// Since when the vCPU has waited for a lock (TSC cycles); 0 if it does not wait.
    pub waiting_since: AtomicU64,
}

/// Why a vCPU rings the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Doorbell {
    /// The vCPU is about to halt.
    Halt = 1,
    /// The vCPU was woken. The waker rings in its place.
    Wake = 2,
    /// The vCPU wants [`GuestHints::yield_to`] to run.
    Yield = 4,
}

/// Hints from the host's scheduler to a vCPU.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct HostHints {
    /// End of the vCPU's slice (TSC cycles), unless something else ends it earlier; 0 for unknown.
    pub slice_end: AtomicU64,
}

/// Number of episodes that a page holds.
pub const EPISODES: usize = 247;

/// A ring of the last [`EPISODES`] episodes. A new one overwrites the oldest.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Episodes {
    /// Number of episodes written so far.
    pub written: AtomicU64,
    ring: [Slot; EPISODES],
}

/// A long wait for a lock, or a long section under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Wait or section.
    pub kind: EpisodeKind,
    /// Index of the lock, below [`MAX_LOCKS`].
    pub lock: u8,
    /// Begin (TSC cycles).
    pub from: u64,
    /// End (TSC cycles).
    pub to: u64,
}

/// The kind of an [`Episode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EpisodeKind {
    /// The vCPU waited for a lock.
    Waited = 0,
    /// The vCPU held a lock. No other vCPU held it meanwhile.
    Held = 1,
    /// The vCPU held a lock as a reader.
    Read = 2,
}

impl EpisodeKind {
    const ALL: [Self; 3] = [Self::Waited, Self::Held, Self::Read];
}

#[derive(Debug)]
#[repr(C)]
struct Slot {
    from: AtomicU64,
    /// Length in the lower [`LENGTH_BITS`] bits, then 8 bits of the lock and 8 of the kind.
    rest: AtomicU64,
}

/// Bits of an episode's length: a day at 3 GHz. A longer one is shortened.
const LENGTH_BITS: u32 = 48;
const LONGEST: u64 = (1 << LENGTH_BITS) - 1;

impl Slot {
    fn store(&self, episode: Episode) {
        let length = episode.to.saturating_sub(episode.from).min(LONGEST);
        let tags = u64::from(u16::from_le_bytes([episode.lock, episode.kind as u8]));
        self.from.store(episode.from, Ordering::Relaxed);
        self.rest.store(tags << LENGTH_BITS | length, Ordering::Relaxed);
    }

    /// Loads the episode; `None` if the guest wrote a kind or a lock that does not exist.
    fn load(&self) -> Option<Episode> {
        let (from, rest) = (self.from.load(Ordering::Relaxed), self.rest.load(Ordering::Relaxed));
        let [.., lock, kind] = rest.to_le_bytes();
        let kind = *EpisodeKind::ALL.get(usize::from(kind))?;
        let to = from.saturating_add(rest & LONGEST);
        (u32::from(lock) < MAX_LOCKS).then_some(Episode { kind, lock, from, to })
    }
}

const _: () = assert!(size_of::<HintPage>() == 4096 && align_of::<HintPage>() == 4096);

impl HintPage {
    /// Returns a page of zeros: no hints.
    pub const fn new() -> Self {
        Self {
            guest: GuestHints {
                locks_held: AtomicU32::new(0),
                urgent: AtomicU32::new(0),
                is_halted: AtomicU32::new(0),
                doorbell: AtomicU32::new(0),
                yield_to: AtomicU32::new(0),
                waiting_since: AtomicU64::new(0),
            },
            host: HostHints { slice_end: AtomicU64::new(0) },
            episodes: Episodes {
                written: AtomicU64::new(0),
                ring: [const { Slot { from: AtomicU64::new(0), rest: AtomicU64::new(0) } }; EPISODES],
            },
        }
    }
}

impl Default for HintPage {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestHints {
    /// Rings the doorbell for `reason`. Returns whether that is new: the caller then writes to the
    /// doorbell port.
    pub fn ring(&self, reason: Doorbell) -> bool {
        self.doorbell.fetch_or(reason as u32, Ordering::AcqRel) & reason as u32 == 0
    }
}

impl Episodes {
    /// Appends an episode. Only the vCPU that owns the page may call this.
    pub fn push(&self, episode: Episode) {
        let written = self.written.load(Ordering::Relaxed);
        if let Some(slot) = self.slot(written) {
            slot.store(episode);
        }
        self.written.store(written.wrapping_add(1), Ordering::Release);
    }

    /// Passes the episodes from number `read` on to `each`. Returns the number of the next episode,
    /// and how many were overwritten before they could be read.
    pub fn drain(&self, read: u64, mut each: impl FnMut(Episode)) -> (u64, u64) {
        let written = self.written.load(Ordering::Acquire);
        // The guest may have stored any number.
        let first = read.max(written.saturating_sub(EPISODES as u64)).min(written);
        let mut lost = first.saturating_sub(read);
        for number in first..written {
            let Some(slot) = self.slot(number) else { break };
            let episode = slot.load();
            // The guest may have overwritten the slot during the read.
            if self.written.load(Ordering::Acquire).saturating_sub(number) >= EPISODES as u64 {
                lost += 1;
                continue;
            }
            match episode {
                Some(episode) => each(episode),
                None => lost += 1,
            }
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

    fn drain(page: &HintPage, read: u64) -> (Vec<u64>, u64, u64) {
        let mut seen = Vec::new();
        let (next, lost) = page.episodes.drain(read, |episode| seen.push(episode.from));
        (seen, next, lost)
    }

    #[test]
    fn drain_returns_each_episode_once_and_counts_overwritten_ones() {
        let page = Box::new(HintPage::new());
        let push =
            |from| page.episodes.push(Episode { kind: EpisodeKind::Held, lock: 0, from, to: from + 1 });
        push(5);
        push(6);
        assert_eq!(drain(&page, 0), (Vec::from([5, 6]), 2, 0));
        assert_eq!(drain(&page, 2), (Vec::new(), 2, 0));
        (0..300).for_each(push);
        let (seen, next, lost) = drain(&page, 2);
        // The writer may be about to overwrite the oldest slot.
        assert_eq!((seen.len() as u64 + lost, next), (300, 302));
        assert_eq!(seen.last(), Some(&299));
    }

    #[test]
    fn episode_is_read_as_it_was_written_and_a_bogus_one_is_lost() {
        let page = Box::new(HintPage::new());
        let written =
            EpisodeKind::ALL.map(|kind| Episode { kind, lock: 7, from: u64::MAX - 9, to: u64::MAX });
        for episode in written {
            page.episodes.push(episode);
        }
        page.episodes.push(Episode { kind: EpisodeKind::Held, lock: 8, from: 1, to: 2 });
        page.episodes.push(Episode { kind: EpisodeKind::Held, lock: 0, from: 0, to: u64::MAX });
        page.episodes.ring[4].rest.fetch_or(3 << 56, Ordering::Relaxed);
        let mut seen = Vec::new();
        assert_eq!(page.episodes.drain(0, |episode| seen.push(episode)), (5, 2));
        assert_eq!(seen, written);
    }

    #[test]
    fn drain_with_a_bogus_count_reads_at_most_one_page() {
        let page = Box::new(HintPage::new());
        page.episodes.written.store(u64::MAX, Ordering::Relaxed);
        let (seen, next, lost) = drain(&page, 7);
        assert!(seen.len() <= EPISODES);
        assert_eq!((next, seen.len() as u64 + lost), (u64::MAX, u64::MAX - 7));
        page.episodes.written.store(3, Ordering::Relaxed);
        assert_eq!(drain(&page, 9), (Vec::new(), 9, 0), "the count went back");
    }

    #[test]
    fn ring_is_new_once_until_the_host_takes_it() {
        let page = Box::new(HintPage::new());
        assert!(page.guest.ring(Doorbell::Yield));
        assert!(!page.guest.ring(Doorbell::Yield));
        assert!(page.guest.ring(Doorbell::Halt));
        assert_eq!(
            page.guest.doorbell.swap(0, Ordering::AcqRel),
            Doorbell::Yield as u32 | Doorbell::Halt as u32
        );
        assert!(page.guest.ring(Doorbell::Yield));
    }
}
