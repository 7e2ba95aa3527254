//! Test-and-set, whose word takes the holder's vCPU id in the same compare-and-swap.
//!
//! A waiter blames the holder. When it gives up it halts; each release wakes the waiter that has been parked for longest.
//! That one takes the lock and releases it in turn, and so wakes the next: nobody sleeps for ever.
//!
//! No order is promised. Spinners back off exponentially, within bounds.

use super::Lock;
use super::owner_word::OwnerWord;
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::sync::maker;

/// Spins between two looks at the word, at the most.
pub(super) const LONGEST_BACKOFF: u32 = 32;

/// See the module.
pub struct Tas {
    word: OwnerWord,
    waiters: Waiters,
}

impl Tas {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self { word: OwnerWord::new(), waiters: Waiters::new() }
        }
    }
}

impl Default for Tas {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Tas {
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let (mut patience, mut backoff) = (me.patience(), 1);
        while !self.word.try_take(me) {
            let holder = self.word.holder();
            if holder.is_some() && me.gives_up_on(holder, &mut patience) {
                me.park_if(&self.waiters, |me| {
                    self.word.holder().is_some_and(|holder| patience.still_blames(holder, &me.cpu))
                });
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
        self.word.let_go();
        me.wake_longest(&self.waiters);
    }
}
