//! The preemptable ticket lock: in order, unless that takes too long.
//!
//! A waiter may try for the lock when its turn has come, or when it has spun for a time in
//! proportion to its distance from its turn. A waiter that is preempted when its turn comes thus
//! delays the others for microseconds, and not for a time slice.
//!
//! Source: Ouyang and Lange, "Preemptable Ticket Spinlocks", VEE 2013. Two differences: the lock
//! itself is a word that names its holder, so that policies have a vCPU to wait for; and waiters
//! may halt, where theirs spin forever. Each release wakes the waiter parked longest, which takes
//! the lock and releases it in turn.

use crate::cpu::Cpu;
use crate::locks::OwnerWord;
use crate::locks::{Lock, Padded};
use crate::park::{LockCtx, WaiterSet};
use crate::sync::{AtomicU32, Ordering, const_new};

/// CPU time to spin for each place before the turn, in [`Cpu::longest_step`]s (microseconds).
const TIMEOUT: u64 = 2;

/// A preemptable ticket lock.
pub struct Preemptable {
    word: OwnerWord,
    next: Padded<AtomicU32>,
    /// Number of tickets served. Written by the holder.
    served: Padded<AtomicU32>,
    waiters: WaiterSet,
}

impl Preemptable {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                word: OwnerWord::new(),
                next: Padded(AtomicU32::new(0)),
                served: Padded(AtomicU32::new(0)),
                waiters: WaiterSet::new(),
            }
        }
    }

    /// Returns the number of places between `ticket` and its turn; 0 once that has come.
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

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let ticket = self.next.fetch_add(1, Ordering::SeqCst);
        let mut wait = ctx.start_wait();
        loop {
            let ahead = self.ahead(ticket);
            let may_try = wait.spun() >= u64::from(ahead) * TIMEOUT * ctx.cpu.longest_step();
            if may_try && self.word.try_lock(ctx) {
                ctx.stats.steals += u64::from(ahead > 0);
                return;
            }
            let holder = self.word.holder();
            if holder.is_some() && ctx.should_stop_spinning(holder, &mut wait) {
                ctx.park_if(&self.waiters, |ctx| {
                    self.word.holder().is_some_and(|holder| wait.still_applies(holder, &ctx.cpu))
                });
                wait = ctx.start_wait();
            }
            ctx.spin(&mut wait);
        }
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.served.store(self.served.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.word.unlock();
        ctx.wake_longest(&self.waiters);
    }
}
