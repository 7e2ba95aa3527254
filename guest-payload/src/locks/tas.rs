//! Test-and-set, whose word takes the holder's vCPU id in the same compare-and-swap.
//!
//! So there is no moment at which the lock is held and nobody knows by whom. A waiter blames the holder. When it gives
//! up it halts; each release wakes the waiter that has been parked for longest. That one takes the lock and releases
//! it in turn, and so wakes the next: nobody sleeps for ever.
//!
//! No order is promised. Spinners back off exponentially, within bounds.

use core::sync::atomic::{AtomicU32, Ordering};

use super::{FREE, Lock, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::Strategy;

/// Spins between two looks at the word, at the most.
const LONGEST_BACKOFF: u32 = 32;

/// See the module.
pub struct Tas {
    word: Padded<AtomicU32>,
    waiters: Waiters,
}

impl Tas {
    /// A lock that nobody holds.
    pub const fn new() -> Self {
        Self { word: Padded(AtomicU32::new(FREE)), waiters: Waiters::new() }
    }

    fn try_take<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        self.word.load(Ordering::Relaxed) == FREE
            && self.word.compare_exchange(FREE, name_of(me.id()), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Whether spinning on is still hopeless, now that everybody knows we are about to halt.
    fn is_hopeless<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        named(self.word.load(Ordering::SeqCst)).is_some_and(|holder| match me.strategy {
            Strategy::Byte { .. } => me.cpu.is_preempted(holder),
            Strategy::Threshold(_) | Strategy::Ignore => true,
        })
    }
}

impl Default for Tas {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Tas {
    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let (mut patience, mut backoff) = (me.patience(), 1);
        while !self.try_take(me) {
            let holder = named(self.word.load(Ordering::Relaxed));
            if holder.is_some_and(|holder| me.gives_up_on(holder, &patience)) {
                me.park_if(&self.waiters, |me| self.is_hopeless(me));
                (patience, backoff) = (me.patience(), 1);
                continue;
            }
            for _ in 0..backoff {
                me.spin(&mut patience);
            }
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        // A full barrier: the word is free before we look who is parked.
        self.word.swap(FREE, Ordering::SeqCst);
        me.wake_longest(&self.waiters);
    }
}
