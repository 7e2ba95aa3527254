//! A mutex whose waiters spin while the owner runs, in the shape of Linux' `mutex`.
//!
//! The word names the owner. A waiter first queues with the other spinners ([`super::osq`]), then spins on the owner.
//! It blames the owner, or while it queues, its predecessor. When it gives up it becomes a sleeper.
//!
//! Sleepers stay in the set until they have the lock. Each release wakes the one that has been parked for longest; once
//! awake it spins on the owner like everybody else, and parks again if that owner is preempted, too. Nobody sleeps for
//! ever: a sleeper says that it is about to halt before it tries the lock a last time, so a release that comes between
//! finds it and wakes it.
//!
//! Source: Linux kernel/locking/mutex.c. What differs: no hand-off to a sleeper that has waited too long; and a release looks
//! for sleepers by itself, where there a flag in the owner word tells it to.

use super::Lock;
use super::osq::Osq;
use super::owner_word::OwnerWord;
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::Patience;
use crate::sync::maker;

/// See the module.
pub struct Mutex {
    owner: OwnerWord,
    spinners: Osq,
    sleepers: Waiters,
}

impl Mutex {
    maker! {
        /// A mutex that nobody owns.
        pub fn new() -> Self {
            Self { owner: OwnerWord::new(), spinners: Osq::new(), sleepers: Waiters::new() }
        }
    }

    /// Whether there is no sense in spinning for the present owner.
    fn owner_is_lost<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        let owner = self.owner.holder();
        owner.is_some() && me.gives_up_on(owner, patience)
    }

    /// Spins until the mutex is ours (`true`), or until there is no sense in it (`false`).
    fn spin_on_owner<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        loop {
            if self.owner.try_take(me) {
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
        if self.owner_is_lost(me, &mut patience) || !self.spinners.acquire(me, &mut patience) {
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
            if self.owner.try_take(me) {
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
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if self.owner.try_take(me) {
            me.tally.steals += u64::from(self.spinners.is_queued());
        } else if !self.spin(me) {
            self.sleep(me);
        }
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.owner.let_go();
        if let Some(sleeper) = self.sleepers.longest(me.lot) {
            me.wake(sleeper);
        }
    }
}
