//! A mutex with optimistic spinning, in the shape of Linux' `mutex`.
//!
//! The word names the owner. A waiter first queues with the other spinners ([`super::osq`]), then
//! spins on the owner. It waits for the owner, or for its predecessor while it queues. When it
//! stops spinning, it sleeps.
//!
//! A sleeper stays in the set until it has the mutex. Each release wakes the sleeper that has been
//! parked longest. It then spins on the owner like any waiter, and parks again if that owner is
//! preempted too. No waiter sleeps forever: a sleeper announces that it parks before it tries the
//! mutex a last time, so a release in between finds it and wakes it.
//!
//! Source: Linux `kernel/locking/mutex.c`. Two differences: there is no hand-off to a sleeper that
//! has waited too long, and a release looks for sleepers itself, where Linux keeps a flag in the
//! owner word.

use super::lock::Lock;
use super::osq::Osq;
use super::owner_word::OwnerWord;
use crate::cpu::Cpu;
use crate::park::{LockCtx, WaiterSet};
use crate::spin_wait::SpinWait;
use crate::sync::const_new;

/// A mutex.
pub struct Mutex {
    owner: OwnerWord,
    spinners: Osq,
    sleepers: WaiterSet,
}

impl Mutex {
    const_new! {
        /// Returns a free mutex.
        pub fn new() -> Self {
            Self { owner: OwnerWord::new(), spinners: Osq::new(), sleepers: WaiterSet::new() }
        }
    }

    /// Returns whether to stop spinning for the present owner.
    fn should_stop_spinning<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) -> bool {
        let owner = self.owner.holder();
        owner.is_some() && ctx.should_stop_spinning(owner, wait)
    }

    /// Spins until the mutex is taken (`true`), or until spinning is no longer worth it (`false`).
    fn spin_on_owner<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) -> bool {
        loop {
            if self.owner.try_lock(ctx) {
                return true;
            }
            if self.should_stop_spinning(ctx, wait) {
                return false;
            }
            ctx.spin(wait);
        }
    }

    /// Queues with the spinners, then spins. Returns `false` if the caller must sleep.
    fn spin<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> bool {
        let mut wait = ctx.start_wait();
        if self.should_stop_spinning(ctx, &mut wait) || !self.spinners.acquire(ctx, &mut wait) {
            return false;
        }
        let ours = self.spin_on_owner(ctx, &mut wait);
        self.spinners.release(ctx, &mut wait);
        ours
    }

    fn sleep<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        loop {
            ctx.prepare_to_park();
            self.sleepers.add(ctx.id());
            if self.owner.try_lock(ctx) {
                ctx.cancel_park();
                break;
            }
            ctx.park();
            if self.spin_on_owner(ctx, &mut ctx.start_wait()) {
                break;
            }
        }
        self.sleepers.remove(ctx.id());
    }
}

impl Default for Mutex {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Mutex {
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if self.owner.try_lock(ctx) {
            ctx.stats.steals += u64::from(self.spinners.is_queued());
        } else if !self.spin(ctx) {
            self.sleep(ctx);
        }
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.owner.unlock();
        if let Some(sleeper) = self.sleepers.longest(ctx.lot) {
            ctx.wake(sleeper);
        }
    }
}
