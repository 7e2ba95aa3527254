//! The queue of optimistic spinners, in the shape of Linux' `osq_lock`.
//!
//! Whoever spins for a mutex's holder first queues here, so that only one spins on the holder and the others each on
//! its own node. Unlike an MCS lock this queue can be left: a waiter that sees its predecessor preempted unlinks
//! itself in three steps, because behind a vCPU that does not run the turn will not come.
//!
//! Source: Linux `kernel/locking/osq_lock.c`, whose steps are kept; nodes are named by vCPU, as there.

use protocol::VcpuId;

use super::{FREE, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::Me;
use crate::patience::Patience;
use crate::sync::{AtomicU32, Ordering, PLACES, each, maker};

/// A place in the queue. Links are names: 0, or one more than a vCPU's index.
struct Node {
    next: AtomicU32,
    prev: AtomicU32,
    granted: AtomicU32,
}

impl Node {
    maker! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), prev: AtomicU32::new(FREE), granted: AtomicU32::new(0) }
        }
    }
}

/// See the module.
pub(super) struct Osq {
    tail: Padded<AtomicU32>,
    nodes: [Padded<Node>; PLACES],
}

impl Osq {
    maker! {
        pub(super) fn new() -> Self {
            Self { tail: Padded(AtomicU32::new(FREE)), nodes: each![Padded(Node::new()); PLACES] }
        }
    }

    /// Whether anybody is in the queue.
    pub(super) fn is_queued(&self) -> bool {
        self.tail.load(Ordering::Relaxed) != FREE
    }

    /// Queues until the turn comes (`true`), or until there is no sense in waiting for it (`false`).
    pub(super) fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        let node = self.node(me.id());
        node.granted.store(0, Ordering::Relaxed);
        node.next.store(FREE, Ordering::Relaxed);
        let Some(prev) = named(self.tail.swap(name_of(me.id()), Ordering::SeqCst)) else { return true };
        node.prev.store(name_of(prev), Ordering::Relaxed);
        self.node(prev).next.store(name_of(me.id()), Ordering::SeqCst);
        loop {
            if node.granted.load(Ordering::Acquire) != 0 {
                return true;
            }
            // Whoever is before us may have left, and somebody else be there now.
            let prev = named(node.prev.load(Ordering::Relaxed));
            if me.gives_up_on(prev, patience) {
                return self.leave(me, patience);
            }
            me.spin(patience);
        }
    }

    /// Passes the turn on.
    pub(super) fn release<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) {
        let name = name_of(me.id());
        if self.tail.compare_exchange(name, FREE, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            return;
        }
        let next = named(self.node(me.id()).next.swap(FREE, Ordering::SeqCst));
        if let Some(next) = next.or_else(|| self.next_or_end(me, FREE, patience)) {
            self.node(next).granted.store(1, Ordering::SeqCst);
        }
    }

    /// Unlinks our node. `true` if the turn came after all.
    fn leave<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        let (node, name) = (self.node(me.id()), name_of(me.id()));
        // Step 1: our predecessor must forget us; then it cannot grant us anything.
        let prev = loop {
            if let Some(prev) = named(node.prev.load(Ordering::SeqCst)) {
                let forgot =
                    self.node(prev).next.compare_exchange(name, FREE, Ordering::SeqCst, Ordering::Relaxed);
                if forgot.is_ok() {
                    break prev;
                }
            }
            if node.granted.load(Ordering::Acquire) != 0 {
                return true;
            }
            me.spin(patience);
        };
        me.tally.queue_exits += 1;
        // Step 2: our successor must be there, or we be the last.
        if let Some(next) = self.next_or_end(me, name_of(prev), patience) {
            // Step 3: the two become neighbours.
            self.node(next).prev.store(name_of(prev), Ordering::SeqCst);
            self.node(prev).next.store(name_of(next), Ordering::SeqCst);
        }
        false
    }

    /// Takes our successor off our node, waiting until it has linked itself; or, if we are the last, makes `tail` the
    /// last and gives `None`.
    fn next_or_end<C: Cpu>(&self, me: &mut Me<'_, C>, tail: u32, patience: &mut Patience) -> Option<VcpuId> {
        let (node, name) = (self.node(me.id()), name_of(me.id()));
        loop {
            if self.tail.load(Ordering::Relaxed) == name
                && self.tail.compare_exchange(name, tail, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            {
                return None;
            }
            // It may be in step 1 just now, and take itself back from our node; hence the exchange.
            if node.next.load(Ordering::Relaxed) != FREE
                && let Some(next) = named(node.next.swap(FREE, Ordering::SeqCst))
            {
                return Some(next);
            }
            me.spin(patience);
        }
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }
}
