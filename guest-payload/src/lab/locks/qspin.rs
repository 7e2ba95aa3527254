//! Linux' queued spinlock, as on bare metal: one word, a pending bit, and a queue.
//!
//! The first waiter sets `pending` and spins on the word. The others queue, each on a node of its
//! own, and the head of the queue waits until the lock is free and no vCPU is pending. The word
//! does not name the holder, so for `pending` and the head only time counts. A waiter in the queue
//! waits for its predecessor.
//!
//! Source: Linux `kernel/locking/qspinlock.c`. Three differences: all accesses to the word use the
//! whole word; `pending` is set by a compare-and-swap; and waiters may halt, as in Linux'
//! paravirtual lock. Each release wakes a waiter that has halted outside of the queue; in the
//! queue, the vCPU that grants the turn wakes. No waiter sleeps forever: before it halts, it reads
//! the word once more.

use protocol::VcpuId;

use super::links;
use crate::cpu::Cpu;
use crate::locks::{FREE, Lock, Padded, encode};
use crate::park::{LockCtx, WaiterSet};
use crate::sync::{AtomicU32, Ordering, SLOTS, const_array, const_new};

const LOCKED: u32 = 1;
const PENDING: u32 = 1 << 8;
const TAIL_SHIFT: u32 = 16;

struct Node {
    next: AtomicU32,
    granted: AtomicU32,
}

impl Node {
    const_new! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), granted: AtomicU32::new(0) }
        }
    }
}

/// A queued spinlock.
pub struct Qspin {
    word: Padded<AtomicU32>,
    nodes: [Padded<Node>; SLOTS],
    /// Waiters that have halted as `pending`, or as the head of the queue.
    waiters: WaiterSet,
}

impl Qspin {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                word: Padded(AtomicU32::new(0)),
                nodes: const_array![Padded(Node::new()); SLOTS],
                waiters: WaiterSet::new(),
            }
        }
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }

    fn swap_word(&self, old: u32, new: u32) -> bool {
        self.word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Waits until the word has none of `bits`. No vCPU can be named for them.
    fn wait_without<C: Cpu>(&self, bits: u32, ctx: &mut LockCtx<'_, C>) {
        let mut wait = ctx.start_wait();
        while self.word.load(Ordering::Acquire) & bits != 0 {
            if ctx.should_stop_spinning(None, &mut wait) {
                ctx.park_if(&self.waiters, |_| self.word.load(Ordering::SeqCst) & LOCKED != 0);
                wait = ctx.start_wait();
            }
            ctx.spin(&mut wait);
        }
    }

    /// Waits in the queue until the caller is its head.
    fn queue<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let node = self.node(ctx.id());
        node.next.store(FREE, Ordering::Relaxed);
        node.granted.store(0, Ordering::Relaxed);
        let entered = links::enter(ctx, |name| self.swap_tail(name), |prev| &self.node(prev).next);
        let Some(prev) = entered else { return };
        let mut wait = ctx.start_wait();
        while node.granted.load(Ordering::Acquire) == 0 {
            if ctx.should_stop_spinning_behind(Some(prev), &mut wait) {
                ctx.park_unless(|_| node.granted.load(Ordering::SeqCst) != 0);
                wait = ctx.start_wait();
                continue;
            }
            ctx.spin(&mut wait);
        }
    }

    fn swap_tail(&self, tail: u32) -> u32 {
        loop {
            let old = self.word.load(Ordering::Relaxed);
            let new = old & ((1 << TAIL_SHIFT) - 1) | tail << TAIL_SHIFT;
            if self.swap_word(old, new) {
                return old >> TAIL_SHIFT;
            }
        }
    }

    /// Takes the free lock as the head, and makes the successor head.
    fn take_as_head<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let name = encode(ctx.id());
        if self.swap_word(name << TAIL_SHIFT, LOCKED) {
            return;
        }
        self.word.fetch_or(LOCKED, Ordering::SeqCst);
        let mut wait = ctx.start_wait();
        let next = links::wait_for_next(&self.node(ctx.id()).next, ctx, &mut wait);
        self.node(next).granted.swap(1, Ordering::SeqCst);
        ctx.wake(next);
    }
}

impl Default for Qspin {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Qspin {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        loop {
            let word = self.word.load(Ordering::Relaxed);
            match word {
                0 if self.swap_word(0, LOCKED) => return,
                LOCKED if self.swap_word(LOCKED, LOCKED | PENDING) => {
                    self.wait_without(LOCKED, ctx);
                    self.word.fetch_sub(PENDING - LOCKED, Ordering::SeqCst);
                    return;
                }
                // Another vCPU was faster: look again.
                0 | LOCKED => {}
                _ => break,
            }
        }
        self.queue(ctx);
        self.wait_without(LOCKED | PENDING, ctx);
        self.take_as_head(ctx);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.word.fetch_sub(LOCKED, Ordering::SeqCst);
        // Both may have halted, and the head must not be awake alone and wait for `pending`.
        while ctx.wake_longest(&self.waiters) {}
    }
}
