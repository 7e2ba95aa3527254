//! The lock of Mellor-Crummey and Scott: a queue in which each waiter spins on a word of its own.
//!
//! - **ignore, threshold, cap, yield**: strictly in order. A waiter that gives up halts until its turn; the release that
//!   gives it the turn wakes it.
//! - **byte**: a waiter blames its predecessor, which it knows by name, if that one is preempted or has halted. A release
//!   passes over waiters that are off their CPUs: they queue anew when they run again. Each release also wakes the waiter
//!   that has been parked for longest, so that nobody sleeps for ever.
//!
//! Two windows remain in which nobody can name whom to wait for. A waiter that is preempted between entering the queue and
//! linking itself to its predecessor stops the release behind which it stands; and while a release walks the queue, the lock
//! is nobody's. They are counted (`unnamed`); [`super::OwnerQueue`] shows a queue without them.
//!
//! Source: Mellor-Crummey and Scott, ACM TOCS 9(1), 1991; passing over after He, Scherer and Scott, `HiPC` 2005, with the byte
//! in place of their time stamps.

use protocol::VcpuId;

use super::{FREE, Lock, Padded, links, name_of};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::{Patience, Strategy};
use crate::sync::{AtomicU32, Ordering, PLACES, each, maker};

const WAITING: u32 = 0;
const GRANTED: u32 = 1;
/// The turn came while its vCPU was off its CPU.
const PASSED: u32 = 2;

struct Node {
    next: AtomicU32,
    state: AtomicU32,
}

impl Node {
    maker! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), state: AtomicU32::new(WAITING) }
        }
    }
}

/// See the module.
pub struct Mcs {
    tail: Padded<AtomicU32>,
    nodes: [Padded<Node>; PLACES],
    waiters: Waiters,
}

impl Mcs {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                tail: Padded(AtomicU32::new(FREE)),
                nodes: each![Padded(Node::new()); PLACES],
                waiters: Waiters::new(),
            }
        }
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }

    fn is_waiting(&self, vcpu: VcpuId) -> bool {
        self.node(vcpu).state.load(Ordering::SeqCst) == WAITING
    }

    /// Queues. `false` when the turn came and was passed over.
    fn queue<C: Cpu>(&self, me: &mut Me<'_, C>) -> bool {
        let node = self.node(me.id());
        node.next.store(FREE, Ordering::Relaxed);
        node.state.store(WAITING, Ordering::Relaxed);
        let swap_tail = |name| self.tail.swap(name, Ordering::SeqCst);
        let prev = links::enter(me, swap_tail, |prev| &self.node(prev).next);
        if prev.is_none() {
            return true;
        }
        let mut patience = me.patience();
        loop {
            match node.state.load(Ordering::Acquire) {
                GRANTED => return true,
                PASSED => return false,
                _ => {}
            }
            if me.gives_up_behind(prev, &mut patience) {
                me.park_if(&self.waiters, |me| self.is_waiting(me.id()));
                patience = me.patience();
                continue;
            }
            me.spin(&mut patience);
        }
    }

    /// Who is behind `vcpu`, after waiting for it to link itself; or `None`, and nobody is in the queue any more.
    fn next_or_end<C: Cpu>(
        &self,
        vcpu: VcpuId,
        me: &mut Me<'_, C>,
        patience: &mut Patience,
    ) -> Option<VcpuId> {
        let node = self.node(vcpu);
        if node.next.load(Ordering::Acquire) == FREE
            && self.tail.compare_exchange(name_of(vcpu), FREE, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            return None;
        }
        Some(links::behind(&node.next, me, patience))
    }

    /// Who is to have the turn after `me`.
    fn choose_next<C: Cpu>(&self, me: &mut Me<'_, C>) -> Option<VcpuId> {
        let mut patience = me.patience();
        let mut next = self.next_or_end(me.id(), me, &mut patience)?;
        if matches!(me.strategy, Strategy::Byte { .. }) {
            while me.is_off_cpu(next) || me.lot.is_parked(next) {
                // Its node is its own again from the moment that it knows.
                let after = self.next_or_end(next, me, &mut patience);
                self.node(next).state.swap(PASSED, Ordering::SeqCst);
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

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        while !self.queue(me) {
            me.tally.queue_exits += 1;
        }
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if let Some(next) = me.unnamed(|me| self.choose_next(me)) {
            self.node(next).state.swap(GRANTED, Ordering::SeqCst);
            // It may be halted, or about to.
            me.wake(next);
        }
        if matches!(me.strategy, Strategy::Byte { .. }) {
            me.wake_longest(&self.waiters);
        }
    }
}
