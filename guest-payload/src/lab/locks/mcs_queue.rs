//! The queue of Mellor-Crummey and Scott: each waiter spins on a node of its own.
//!
//! [`super::Mcs`] and [`super::Malthusian`] differ in what a release does with the queue, not in
//! the queue.
//!
//! Source: Mellor-Crummey and Scott, ACM TOCS 9(1), 1991.

use protocol::VcpuId;

use super::links;
use crate::cpu::Cpu;
use crate::locks::{FREE, Padded, encode};
use crate::park::LockCtx;
use crate::spin_wait::SpinWait;
use crate::sync::{AtomicU32, Ordering, SLOTS, const_array, const_new};

/// State of a node: its vCPU waits in the queue.
pub(super) const WAITING: u32 = 0;
/// State of a node: its vCPU has the lock.
pub(super) const GRANTED: u32 = 1;

/// The node of one vCPU.
pub(super) struct Node {
    /// The successor, encoded.
    pub(super) next: AtomicU32,
    /// [`WAITING`], [`GRANTED`], or a state of the lock's own.
    pub(super) state: AtomicU32,
    /// Links of the lock's own. The node fills its cache lines in any case.
    pub(super) younger: AtomicU32,
    pub(super) older: AtomicU32,
}

impl Node {
    const_new! {
        fn new() -> Self {
            Self {
                next: AtomicU32::new(FREE),
                state: AtomicU32::new(WAITING),
                younger: AtomicU32::new(FREE),
                older: AtomicU32::new(FREE),
            }
        }
    }
}

/// The queue: its tail, and a node for each vCPU.
pub(super) struct McsQueue {
    tail: Padded<AtomicU32>,
    nodes: [Padded<Node>; SLOTS],
}

impl McsQueue {
    const_new! {
        /// Returns an empty queue.
        pub(super) fn new() -> Self {
            Self { tail: Padded(AtomicU32::new(FREE)), nodes: const_array![Padded(Node::new()); SLOTS] }
        }
    }

    pub(super) fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }

    /// Appends the caller. Returns its predecessor, or `None` if the queue was empty.
    pub(super) fn enter<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> Option<VcpuId> {
        let node = self.node(ctx.id());
        node.next.store(FREE, Ordering::Relaxed);
        node.state.store(WAITING, Ordering::Relaxed);
        let swap_tail = |name| self.tail.swap(name, Ordering::SeqCst);
        links::enter(ctx, swap_tail, |prev| &self.node(prev).next)
    }

    /// Returns the successor of `vcpu`, after waiting for it to link itself. If there is none,
    /// empties the queue and returns `None`.
    pub(super) fn next_or_close<C: Cpu>(
        &self,
        vcpu: VcpuId,
        ctx: &mut LockCtx<'_, C>,
        wait: &mut SpinWait,
    ) -> Option<VcpuId> {
        let node = self.node(vcpu);
        if node.next.load(Ordering::Acquire) == FREE
            && self.tail.compare_exchange(encode(vcpu), FREE, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            return None;
        }
        Some(links::wait_for_next(&node.next, ctx, wait))
    }
}
