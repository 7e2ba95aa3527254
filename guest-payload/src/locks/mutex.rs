//! A mutex whose waiters spin while the owner runs, in the shape of Linux' `mutex`.
//!
//! The word names the owner. A waiter first queues with the other spinners ([`super::osq`]), then spins on the owner.
//! It blames the owner, or while it queues, its predecessor. When it gives up it becomes a sleeper.
//!
//! Sleepers stay in the set until they have the lock. Each release wakes the one that has been parked for longest; once
//! awake it spins on the owner like everybody else, and parks again if that owner is preempted, too. Nobody sleeps for
//! ever: a sleeper says that it is about to halt before it tries the lock a last time, so a release that comes between
//! finds it and wakes it.

use core::sync::atomic::{AtomicU32, Ordering};

use super::osq::Osq;
use super::{FREE, Lock, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::Patience;

/// See the module.
pub struct Mutex {
    owner: Padded<AtomicU32>,
    spinners: Osq,
    sleepers: Waiters,
}

impl Mutex {
    /// A mutex that nobody owns.
    pub const fn new() -> Self {
        Self { owner: Padded(AtomicU32::new(FREE)), spinners: Osq::new(), sleepers: Waiters::new() }
    }

    fn try_take<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        self.owner.load(Ordering::Relaxed) == FREE
            && self
                .owner
                .compare_exchange(FREE, name_of(me.id()), Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether there is no sense in spinning for the present owner.
    fn owner_is_lost<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &Patience) -> bool {
        named(self.owner.load(Ordering::Relaxed)).is_some_and(|owner| me.gives_up_on(owner, patience))
    }

    /// Spins until the mutex is ours (`true`), or until there is no sense in it (`false`).
    fn spin_on_owner<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        loop {
            if self.try_take(me) {
                return true;
            }
            if self.owner_is_lost(me, patience) {
                return false;
            }
            me.spin(patience);
        }
    }

    /// Queues with the spinners, and spins. `false` when we must sleep.
    fn spin<C: Cpu>(&self, me: &mut Me<'_, C>) -> bool {
        let mut patience = me.patience();
        if self.owner_is_lost(me, &patience) || !self.spinners.acquire(me, &mut patience) {
            return false;
        }
        let ours = self.spin_on_owner(me, &mut patience);
        self.spinners.release(me, &mut patience);
        ours
    }

    fn sleep<C: Cpu>(&self, me: &mut Me<'_, C>) {
        loop {
            me.announce();
            self.sleepers.add(me.id());
            if self.try_take(me) {
                me.cancel();
                break;
            }
            me.halt();
            if self.spin_on_owner(me, &mut me.patience()) {
                break;
            }
        }
        self.sleepers.remove(me.id());
    }
}

impl Default for Mutex {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Mutex {
    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if !self.try_take(me) && !self.spin(me) {
            self.sleep(me);
        }
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        // A full barrier: nobody owns it before we look who sleeps.
        self.owner.swap(FREE, Ordering::SeqCst);
        if let Some(sleeper) = self.sleepers.longest(me.lot) {
            me.wake(sleeper);
        }
    }
}
