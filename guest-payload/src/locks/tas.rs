//! A test-and-set lock whose word names its holder.
//!
//! The compare-and-swap that takes the lock stores the holder's vCPU id, so a waiter always knows
//! which vCPU it waits for. When the waiter stops spinning, it halts. Each release wakes the waiter
//! that has been parked longest. That one takes the lock and releases it in turn, which wakes the
//! next: no waiter sleeps forever.
//!
//! The lock promises no order. Spinners back off exponentially, within bounds.

use super::lock::Lock;
use super::owner_word::OwnerWord;
use crate::cpu::Cpu;
use crate::park::{LockCtx, WaiterSet};
use crate::sync::const_new;

/// Longest backoff: spins between two reads of the word.
pub(crate) const LONGEST_BACKOFF: u32 = 32;

/// A test-and-set lock.
pub struct Tas {
    word: OwnerWord,
    waiters: WaiterSet,
}

impl Tas {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self { word: OwnerWord::new(), waiters: WaiterSet::new() }
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

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let (mut wait, mut backoff) = (ctx.start_wait(), 1);
        while !self.word.try_lock(ctx) {
            let holder = self.word.holder();
            if holder.is_some() && ctx.should_stop_spinning(holder, &mut wait) {
                ctx.park_if(&self.waiters, |ctx| {
                    self.word.holder().is_some_and(|holder| wait.still_applies(holder, &ctx.cpu))
                });
                (wait, backoff) = (ctx.start_wait(), 1);
                continue;
            }
            for _ in 0..backoff {
                ctx.spin(&mut wait);
            }
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.word.unlock();
        ctx.wake_longest(&self.waiters);
    }
}
