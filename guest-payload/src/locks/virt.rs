//! What Linux' qspinlock falls back to on a hypervisor that offers no paravirtual lock: test-and-set, and no more.
//!
//! Source: Linux `virt_spin_lock()` (arch/x86/include/asm/qspinlock.h): spin while the word is set, then try to set it. It
//! keeps no owner, so a waiter has nobody to ask about: only time can make it give up. There it never halts; here the
//! strategies that know a time do, and each release wakes the waiter that has been parked for longest, which will release
//! the lock in turn.

use super::{FREE, Lock, Padded};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::sync::{AtomicU32, Ordering, maker};

const LOCKED: u32 = 1;

/// See the module.
pub struct Virt {
    word: Padded<AtomicU32>,
    waiters: Waiters,
}

impl Virt {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self { word: Padded(AtomicU32::new(FREE)), waiters: Waiters::new() }
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

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let mut patience = me.patience();
        while self.word.load(Ordering::Relaxed) != FREE
            || self.word.compare_exchange(FREE, LOCKED, Ordering::SeqCst, Ordering::Relaxed).is_err()
        {
            if me.gives_up_on(None, &mut patience) {
                me.park_if(&self.waiters, |_| self.word.load(Ordering::SeqCst) != FREE);
                patience = me.patience();
            }
            me.spin(&mut patience);
        }
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.word.swap(FREE, Ordering::SeqCst);
        me.wake_longest(&self.waiters);
    }
}
