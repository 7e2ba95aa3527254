//! The queue of optimistic spinners, in the shape of Linux' `osq_lock`.
//!
//! The spinners of a mutex queue here, so that only one spins on the owner and each other spins on
//! its own node. Unlike an MCS queue, this one can be left. A waiter whose predecessor is preempted
//! unlinks itself in three steps, because its turn will not come.
//!
//! Source: Linux `kernel/locking/osq_lock.c`. The steps are the same; as there, a vCPU names its
//! node.

use protocol::VcpuId;

use super::lock::{FREE, Padded, decode, encode};
use crate::cpu::Cpu;
use crate::park::LockCtx;
use crate::spin_wait::SpinWait;
use crate::sync::{AtomicU32, Ordering, SLOTS, const_array, const_new};

/// The node of one vCPU. Links are encoded vCPUs.
struct Node {
    next: AtomicU32,
    prev: AtomicU32,
    granted: AtomicU32,
}

impl Node {
    const_new! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), prev: AtomicU32::new(FREE), granted: AtomicU32::new(0) }
        }
    }
}

/// A queue of spinners.
pub(crate) struct Osq {
    tail: Padded<AtomicU32>,
    nodes: [Padded<Node>; SLOTS],
}

impl Osq {
    const_new! {
        pub(crate) fn new() -> Self {
            Self { tail: Padded(AtomicU32::new(FREE)), nodes: const_array![Padded(Node::new()); SLOTS] }
        }
    }

    /// Returns whether any spinner is in the queue.
    pub(crate) fn is_queued(&self) -> bool {
        self.tail.load(Ordering::Relaxed) != FREE
    }

    /// Queues until the turn comes (`true`), or until spinning is no longer worth it (`false`).
    pub(crate) fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) -> bool {
        let node = self.node(ctx.id());
        node.granted.store(0, Ordering::Relaxed);
        node.next.store(FREE, Ordering::Relaxed);
        let Some(prev) = decode(self.tail.swap(encode(ctx.id()), Ordering::SeqCst)) else { return true };
        node.prev.store(encode(prev), Ordering::Relaxed);
        self.node(prev).next.store(encode(ctx.id()), Ordering::SeqCst);
        loop {
            if node.granted.load(Ordering::Acquire) != 0 {
                return true;
            }
            // The predecessor may have left, and another vCPU taken its place.
            let prev = decode(node.prev.load(Ordering::Relaxed));
            if ctx.should_stop_spinning(prev, wait) {
                return self.leave(ctx, wait);
            }
            ctx.spin(wait);
        }
    }

    /// Passes the turn to the next spinner.
    pub(crate) fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) {
        let name = encode(ctx.id());
        if self.tail.compare_exchange(name, FREE, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            return;
        }
        let next = decode(self.node(ctx.id()).next.swap(FREE, Ordering::SeqCst));
        if let Some(next) = next.or_else(|| self.next_or_end(ctx, FREE, wait)) {
            self.node(next).granted.store(1, Ordering::SeqCst);
        }
    }

    /// Unlinks the caller's node. Returns `true` if the turn came meanwhile.
    fn leave<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) -> bool {
        let (node, name) = (self.node(ctx.id()), encode(ctx.id()));
        // Step 1: make the predecessor forget us, so that it cannot grant us the turn.
        let prev = loop {
            if let Some(prev) = decode(node.prev.load(Ordering::SeqCst)) {
                let forgot =
                    self.node(prev).next.compare_exchange(name, FREE, Ordering::SeqCst, Ordering::Relaxed);
                if forgot.is_ok() {
                    break prev;
                }
            }
            if node.granted.load(Ordering::Acquire) != 0 {
                return true;
            }
            ctx.spin(wait);
        };
        ctx.stats.queue_exits += 1;
        // Step 2: wait for a successor, unless we are the last.
        if let Some(next) = self.next_or_end(ctx, encode(prev), wait) {
            // Step 3: link the two neighbours.
            self.node(next).prev.store(encode(prev), Ordering::SeqCst);
            self.node(prev).next.store(encode(next), Ordering::SeqCst);
        }
        false
    }

    /// Takes the successor off the caller's node, after waiting for it to link itself. If the
    /// caller is the last, sets the tail to `tail` and returns `None`.
    fn next_or_end<C: Cpu>(
        &self,
        ctx: &mut LockCtx<'_, C>,
        tail: u32,
        wait: &mut SpinWait,
    ) -> Option<VcpuId> {
        let (node, name) = (self.node(ctx.id()), encode(ctx.id()));
        loop {
            if self.tail.load(Ordering::Relaxed) == name
                && self.tail.compare_exchange(name, tail, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            {
                return None;
            }
            // The successor may be in step 1 and take itself off our node. Hence the exchange.
            if node.next.load(Ordering::Relaxed) != FREE
                && let Some(next) = decode(node.next.swap(FREE, Ordering::SeqCst))
            {
                return Some(next);
            }
            ctx.spin(wait);
        }
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }
}
