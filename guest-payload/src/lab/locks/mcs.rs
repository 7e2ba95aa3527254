//! The MCS lock: a queue in which each waiter spins on a word of its own.
//!
//! - **Policies other than `preempted`**: strictly in order. A waiter that stops spinning halts
//!   until its turn; the release that grants the turn wakes it.
//! - **`preempted`**: a waiter waits for its predecessor, which it knows by name, and stops if that
//!   vCPU is preempted or halted. A release passes over waiters that are off their CPUs; they queue
//!   again when they run. Each release also wakes the waiter that has been parked longest, so no
//!   waiter sleeps forever.
//!
//! Two windows remain in which no waiter can name the vCPU that it waits for: a vCPU is preempted
//! after it has entered the queue and before it has linked itself, or a release is preempted while
//! it walks the queue. Both are counted (`unnamed`). [`super::OwnerQueue`] is a queue without these
//! windows.
//!
//! Source: [`super::mcs_queue`]; passing over after He, Scherer and Scott, `HiPC` 2005, with
//! `preempted` in place of their time stamps.

use super::mcs_queue::{GRANTED, McsQueue, WAITING};
use crate::cpu::Cpu;
use crate::locks::Lock;
use crate::park::{LockCtx, WaiterSet};
use crate::spin_wait::WaitPolicy;
use crate::sync::{Ordering, const_new};
use protocol::VcpuId;

/// State of a node: its turn came while its vCPU was off its CPU.
const PASSED: u32 = 2;

/// An MCS lock.
pub struct Mcs {
    queue: McsQueue,
    waiters: WaiterSet,
}

impl Mcs {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self { queue: McsQueue::new(), waiters: WaiterSet::new() }
        }
    }

    fn is_waiting(&self, vcpu: VcpuId) -> bool {
        self.queue.node(vcpu).state.load(Ordering::SeqCst) == WAITING
    }

    /// Queues for the lock. Returns `false` if the turn came and was passed over.
    fn wait_in_queue<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> bool {
        let prev = self.queue.enter(ctx);
        if prev.is_none() {
            return true;
        }
        let node = self.queue.node(ctx.id());
        let mut wait = ctx.start_wait();
        loop {
            match node.state.load(Ordering::Acquire) {
                GRANTED => return true,
                PASSED => return false,
                _ => {}
            }
            if ctx.should_stop_spinning_behind(prev, &mut wait) {
                ctx.park_if(&self.waiters, |ctx| self.is_waiting(ctx.id()));
                wait = ctx.start_wait();
                continue;
            }
            ctx.spin(&mut wait);
        }
    }

    /// Chooses the next holder after the caller.
    fn choose_next<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> Option<VcpuId> {
        let mut wait = ctx.start_wait();
        let mut next = self.queue.next_or_close(ctx.id(), ctx, &mut wait)?;
        if matches!(ctx.policy, WaitPolicy::Preempted { .. }) {
            while ctx.is_off_cpu(next) || ctx.lot.is_parked(next) {
                // Once the vCPU sees PASSED, it may reuse its node.
                let after = self.queue.next_or_close(next, ctx, &mut wait);
                self.queue.node(next).state.swap(PASSED, Ordering::SeqCst);
                next = after?;
            }
        }
        Some(next)
    }
}

impl Default for Mcs {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Mcs {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        while !self.wait_in_queue(ctx) {
            ctx.stats.queue_exits += 1;
        }
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if let Some(next) = ctx.count_unnamed(|ctx| self.choose_next(ctx)) {
            self.queue.node(next).state.swap(GRANTED, Ordering::SeqCst);
            // The vCPU may have halted, or be about to.
            ctx.wake(next);
        }
        if matches!(ctx.policy, WaitPolicy::Preempted { .. }) {
            ctx.wake_longest(&self.waiters);
        }
    }
}
