//! Cull and rotate: as many waiters stay awake as there are free CPUs, without knowing how many
//! those are.
//!
//! The word names the holder. A waiter parks when it sees the holder preempted. So each preemption
//! of a holder takes those waiters out of circulation that would only spin. A release does not wake
//! them while another contender can take the lock. It wakes the waiter that has been parked longest
//! in two cases:
//!
//! - **No contender is left.** A vCPU counts as a contender from finding the lock taken until it
//!   parks, and from being chosen for a wake-up. A release that finds the count at 0 and a parked
//!   vCPU wakes one. The last contender thus never leaves sleepers behind a free lock, and CPUs
//!   stay busy.
//! - **Rotation.** Every [`ROTATION`] a release wakes one in any case, so that the vCPUs in
//!   circulation do not keep the lock among themselves.
//!
//! No waiter sleeps forever. A vCPU that parks first leaves the count, then reads the word once
//! more. Either it finds the lock free and continues, or the holder's release comes later. That
//! release finds another contender, whose release will follow, or the sleeper. It may also find a
//! vCPU that counts for a sleeper it is about to wake; if that sleeper is gone, the vCPU looks
//! again.
//!
//! The passive set is the idea of Dice's Malthusian locks (see [`super::Malthusian`]). That a
//! preempted holder makes waiters passive, and the rule for the last contender, are ours.

use crate::cpu::Cpu;
use crate::locks::LONGEST_BACKOFF;
use crate::locks::OwnerWord;
use crate::locks::{Lock, Padded};
use crate::park::{LockCtx, WaiterSet};
use crate::spin_wait::SpinWait;
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_new};

/// Time between two rotations, in [`Cpu::longest_step`]s (microseconds).
const ROTATION: u64 = 2000;

/// A lock that limits its contenders.
pub struct Cull {
    word: OwnerWord,
    /// Number of vCPUs that want the lock, have found it taken, and are not parked.
    contenders: Padded<AtomicU32>,
    /// Time of the last rotation (cycles).
    rotated_at: AtomicU64,
    parked: WaiterSet,
}

impl Cull {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                word: OwnerWord::new(),
                contenders: Padded(AtomicU32::new(0)),
                rotated_at: AtomicU64::new(0),
                parked: WaiterSet::new(),
            }
        }
    }

    /// Parks a contender, which is a contender again on return.
    fn park<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &SpinWait) {
        ctx.prepare_to_park();
        self.parked.add(ctx.id());
        self.contenders.fetch_sub(1, Ordering::SeqCst);
        if self.word.holder().is_some_and(|holder| wait.still_applies(holder, &ctx.cpu)) {
            ctx.park();
        } else {
            ctx.cancel_park();
        }
        // Removal from the set counts as a contender: by the waker that chose us, or else by us.
        if self.parked.remove(ctx.id()) {
            self.contenders.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Wakes the vCPU that has been parked longest.
    fn wake_one<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        loop {
            // Count it first: it may take the lock and leave before we could count it.
            self.contenders.fetch_add(1, Ordering::SeqCst);
            if let Some(vcpu) = self.parked.longest(ctx.lot)
                && self.parked.remove(vcpu)
            {
                ctx.wake(vcpu);
                return;
            }
            // The set is empty, or the sleeper continues on its own, as a contender of its own. But
            // a release may have taken our count for a contender, and left a sleeper to it: that
            // one is ours to wake.
            let is_last = self.contenders.fetch_sub(1, Ordering::SeqCst) == 1;
            if !is_last || self.parked.is_empty() {
                return;
            }
        }
    }

    /// Returns whether rotation is due; `true` for one caller only.
    fn is_rotation_due<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> bool {
        let (now, last) = (ctx.cpu.cycles(), self.rotated_at.load(Ordering::Relaxed));
        now.wrapping_sub(last) > ROTATION * ctx.cpu.longest_step()
            && self.rotated_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Default for Cull {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Cull {
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if self.word.try_lock(ctx) {
            return;
        }
        self.contenders.fetch_add(1, Ordering::SeqCst);
        let (mut wait, mut backoff) = (ctx.start_wait(), 1);
        while !self.word.try_lock(ctx) {
            let holder = self.word.holder();
            if holder.is_some() && ctx.should_stop_spinning(holder, &mut wait) {
                self.park(ctx, &wait);
                (wait, backoff) = (ctx.start_wait(), 1);
                continue;
            }
            for _ in 0..backoff {
                ctx.spin(&mut wait);
            }
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
        self.contenders.fetch_sub(1, Ordering::SeqCst);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.word.unlock();
        if !self.parked.is_empty()
            && (self.contenders.load(Ordering::SeqCst) == 0 || self.is_rotation_due(ctx))
        {
            self.wake_one(ctx);
        }
    }
}
