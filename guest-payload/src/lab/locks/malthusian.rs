//! A Malthusian lock: an MCS queue that culls surplus waiters.
//!
//! A release that finds two or more waiters in the queue makes one of them passive: that vCPU halts
//! and leaves the queue. A release that finds none recalls the vCPU that became passive last, whose
//! caches are warmest. The lock thus circulates among as few vCPUs as keep it busy, and passive
//! vCPUs cost nothing. From time to time the vCPU that has been passive longest is recalled in any
//! case.
//!
//! A waiter in the queue waits for its predecessor, and stops if that vCPU is preempted or halted.
//! A passive vCPU halts at once, except under the policies `spin` and `yield`.
//!
//! No waiter sleeps forever: passive vCPUs lie on a list that only the holder touches. A release
//! that leaves the lock free has recalled one of them, if there was one; it will acquire the lock,
//! and release it in turn. The windows in which no vCPU can be named are those of [`super::Mcs`].
//!
//! Source: Dice, "Malthusian Locks", arXiv 1511.06035 (MCSCR). Three differences. A recalled vCPU
//! competes for the lock; there it is granted the lock, which would cost one wake-up per section if
//! CPUs are scarce. The clock decides when the oldest is recalled, not a coin. Under the policy
//! `preempted`, a waiter that does not run is culled first.

use protocol::VcpuId;

use super::mcs_queue::{GRANTED, McsQueue};
use crate::cpu::Cpu;
use crate::locks::{FREE, Lock, Padded, decode, encode};
use crate::park::LockCtx;
use crate::spin_wait::WaitPolicy;
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_new};

/// State of a node: its vCPU is passive.
const PASSIVE: u32 = 2;
/// State of a node: its vCPU is neither passive nor in the queue.
const RECALLED: u32 = 3;

/// Time between two recalls of the oldest passive vCPU, in [`Cpu::longest_step`]s (microseconds).
const ROTATION: u64 = 2000;

/// A Malthusian lock.
pub struct Malthusian {
    queue: McsQueue,
    /// The ends of the list of passive vCPUs. Only the holder touches the list.
    youngest: Padded<AtomicU32>,
    oldest: AtomicU32,
    rotated_at: AtomicU64,
}

impl Malthusian {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                queue: McsQueue::new(),
                youngest: Padded(AtomicU32::new(FREE)),
                oldest: AtomicU32::new(FREE),
                rotated_at: AtomicU64::new(0),
            }
        }
    }

    /// Queues for the lock. Returns `false` if the caller was culled and recalled, and must queue
    /// again.
    fn wait_in_queue<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> bool {
        let prev = self.queue.enter(ctx);
        if prev.is_none() {
            return true;
        }
        let node = self.queue.node(ctx.id());
        let mut wait = ctx.start_wait();
        loop {
            let should_stop = match node.state.load(Ordering::Acquire) {
                GRANTED => return true,
                RECALLED => return false,
                PASSIVE => ctx.policy.may_halt(),
                // The predecessor may have been culled. The present one is then unknown.
                _ => {
                    let is_queued = |prev: &VcpuId| {
                        let state = self.queue.node(*prev).state.load(Ordering::Relaxed);
                        !matches!(state, PASSIVE | RECALLED)
                    };
                    ctx.should_stop_spinning_behind(prev.filter(is_queued), &mut wait)
                }
            };
            if should_stop {
                // A grant or a recall wakes us. Becoming passive is no reason to wake up.
                ctx.park_unless(|_| matches!(node.state.load(Ordering::SeqCst), GRANTED | RECALLED));
                wait = ctx.start_wait();
            } else {
                ctx.spin(&mut wait);
            }
        }
    }

    /// Puts `vcpu` on the list of passive vCPUs, as the youngest.
    fn cull(&self, vcpu: VcpuId) {
        let node = self.queue.node(vcpu);
        let youngest = self.youngest.swap(encode(vcpu), Ordering::Relaxed);
        node.younger.store(FREE, Ordering::Relaxed);
        node.older.store(youngest, Ordering::Relaxed);
        match decode(youngest) {
            None => self.oldest.store(encode(vcpu), Ordering::Relaxed),
            Some(youngest) => self.queue.node(youngest).younger.store(encode(vcpu), Ordering::Relaxed),
        }
        node.state.swap(PASSIVE, Ordering::SeqCst);
    }

    /// Takes `vcpu` off the list of passive vCPUs.
    fn unlink(&self, vcpu: VcpuId) {
        let node = self.queue.node(vcpu);
        let (younger, older) = (node.younger.load(Ordering::Relaxed), node.older.load(Ordering::Relaxed));
        match decode(younger) {
            None => self.youngest.store(older, Ordering::Relaxed),
            Some(younger) => self.queue.node(younger).older.store(older, Ordering::Relaxed),
        }
        match decode(older) {
            None => self.oldest.store(younger, Ordering::Relaxed),
            Some(older) => self.queue.node(older).younger.store(younger, Ordering::Relaxed),
        }
    }

    /// Returns whether it is time to recall the oldest passive vCPU.
    fn is_rotation_due<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> bool {
        let now = ctx.cpu.cycles();
        let is_due =
            now.wrapping_sub(self.rotated_at.load(Ordering::Relaxed)) > ROTATION * ctx.cpu.longest_step();
        if is_due {
            self.rotated_at.store(now, Ordering::Relaxed);
        }
        is_due
    }

    /// Recalls a passive vCPU, which then competes for the lock again: the oldest if rotation is
    /// due, the youngest if the queue is empty.
    fn recall<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> Option<VcpuId> {
        let is_alone = self.queue.node(ctx.id()).next.load(Ordering::Acquire) == FREE;
        let youngest = decode(self.youngest.load(Ordering::Relaxed))?;
        let recalled = match () {
            () if self.is_rotation_due(ctx) => decode(self.oldest.load(Ordering::Relaxed))?,
            () if is_alone => youngest,
            () => return None,
        };
        self.unlink(recalled);
        self.queue.node(recalled).state.swap(RECALLED, Ordering::SeqCst);
        Some(recalled)
    }

    /// Chooses the next holder after the caller. `None` means that the lock is free.
    fn choose_next<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> Option<VcpuId> {
        let mut wait = ctx.start_wait();
        let next = self.queue.next_or_close(ctx.id(), ctx, &mut wait)?;
        let Some(after) = decode(self.queue.node(next).next.load(Ordering::Acquire)) else {
            return Some(next);
        };
        // There is one waiter too many: cull the one that does not run, where that is known.
        let reads_preempted = matches!(ctx.policy, WaitPolicy::Preempted { .. });
        if reads_preempted && ctx.is_off_cpu(after) && !ctx.is_off_cpu(next) {
            if let Some(last) = decode(self.queue.node(after).next.load(Ordering::Acquire)) {
                self.queue.node(next).next.store(encode(last), Ordering::Release);
                self.cull(after);
            }
            return Some(next);
        }
        self.cull(next);
        Some(after)
    }
}

impl Default for Malthusian {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Malthusian {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        while !self.wait_in_queue(ctx) {}
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let (recalled, next) = ctx.count_unnamed(|ctx| (self.recall(ctx), self.choose_next(ctx)));
        if let Some(next) = next {
            self.queue.node(next).state.swap(GRANTED, Ordering::SeqCst);
            ctx.wake(next);
        }
        if let Some(recalled) = recalled {
            ctx.wake(recalled);
        }
    }
}
