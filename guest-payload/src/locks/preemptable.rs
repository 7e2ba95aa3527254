//! The preemptable ticket lock: in order while everybody runs, and out of order when that takes too long.
//!
//! Each waiter holds a ticket, and may try for the lock when its turn has come, or when it has spun for a time that is
//! proportional to its distance from it: whoever is further back waits longer before it presses in. So a waiter that is
//! preempted when its turn comes holds up the others for microseconds in place of a time slice.
//!
//! Source: Ouyang and Lange, "Preemptable Ticket Spinlocks", VEE 2013. What differs: the lock proper is a word that names
//! its holder, so that the strategies have somebody to blame; theirs spin for ever. Who gives up halts; each release wakes
//! the waiter parked for longest, which takes the lock and releases it in turn.

use super::owner_word::OwnerWord;
use super::{Lock, Padded};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::sync::{AtomicU32, Ordering, maker};

/// CPU time for each place that a waiter is away from its turn, before it presses in ([`Cpu::longest_step`]s: microseconds).
const TIMEOUT: u64 = 2;

/// See the module.
pub struct Preemptable {
    word: OwnerWord,
    next: Padded<AtomicU32>,
    /// How many have been through. Written by the holder.
    served: Padded<AtomicU32>,
    waiters: Waiters,
}

impl Preemptable {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                word: OwnerWord::new(),
                next: Padded(AtomicU32::new(0)),
                served: Padded(AtomicU32::new(0)),
                waiters: Waiters::new(),
            }
        }
    }

    /// Places between `ticket` and its turn; 0 once that has come.
    fn ahead(&self, ticket: u32) -> u32 {
        let ahead = ticket.wrapping_sub(self.served.load(Ordering::Relaxed)).cast_signed();
        u32::try_from(ahead).unwrap_or(0)
    }
}

impl Default for Preemptable {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Preemptable {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let ticket = self.next.fetch_add(1, Ordering::SeqCst);
        let mut patience = me.patience();
        loop {
            let ahead = self.ahead(ticket);
            let may_try = patience.spun() >= u64::from(ahead) * TIMEOUT * me.cpu.longest_step();
            if may_try && self.word.try_take(me) {
                me.tally.steals += u64::from(ahead > 0);
                return;
            }
            let holder = self.word.holder();
            if holder.is_some() && me.gives_up_on(holder, &mut patience) {
                me.park_if(&self.waiters, |me| {
                    self.word.holder().is_some_and(|holder| patience.still_blames(holder, &me.cpu))
                });
                patience = me.patience();
            }
            me.spin(&mut patience);
        }
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.served.store(self.served.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.word.let_go();
        me.wake_longest(&self.waiters);
    }
}
