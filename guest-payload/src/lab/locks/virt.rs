//! Linux' fallback under a hypervisor without paravirtual locks: a plain test-and-set lock.
//!
//! Source: Linux `virt_spin_lock()`, `arch/x86/include/asm/qspinlock.h`: spin while the word is
//! set, then try to set it. The word names no holder, so only time makes a waiter stop. In Linux a
//! waiter never halts; here it does under policies with a time limit. Each release wakes the waiter
//! that has been parked longest, which releases the lock in turn.

use crate::cpu::Cpu;
use crate::locks::{FREE, Lock, Padded};
use crate::park::{LockCtx, WaiterSet};
use crate::sync::{AtomicU32, Ordering, const_new};

const LOCKED: u32 = 1;

/// A test-and-set lock without an owner.
pub struct Virt {
    word: Padded<AtomicU32>,
    waiters: WaiterSet,
}

impl Virt {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self { word: Padded(AtomicU32::new(FREE)), waiters: WaiterSet::new() }
        }
    }
}

impl Default for Virt {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Virt {
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let mut wait = ctx.start_wait();
        while self.word.load(Ordering::Relaxed) != FREE
            || self.word.compare_exchange(FREE, LOCKED, Ordering::SeqCst, Ordering::Relaxed).is_err()
        {
            if ctx.should_stop_spinning(None, &mut wait) {
                ctx.park_if(&self.waiters, |_| self.word.load(Ordering::SeqCst) != FREE);
                wait = ctx.start_wait();
            }
            ctx.spin(&mut wait);
        }
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.word.swap(FREE, Ordering::SeqCst);
        ctx.wake_longest(&self.waiters);
    }
}
