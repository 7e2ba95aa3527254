//! Linux' qspinlock, as it runs on bare metal: one word, a bit for whoever is next, and a queue behind that.
//!
//! The first waiter sets `pending` and spins on the word; the others queue, each on a node of its own, and the queue's head
//! waits until the lock is free and nobody pending. The word does not say who holds the lock, so `pending` and the head have
//! nobody to blame but time; a waiter in the queue blames its predecessor.
//!
//! Source: Linux kernel/locking/qspinlock.c. What differs: all of the word is changed by whole-word instructions, and
//! `pending` is set by a compare-and-swap; and waiters may halt, which there only the paravirtual lock does. Each release
//! wakes the one that has halted outside of the queue, if there is one; in it, whoever gives the turn wakes. Nobody sleeps
//! for ever: a waiter that is about to halt looks at the word once more.

use protocol::VcpuId;

use super::{FREE, Lock, Padded, links, name_of};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::sync::{AtomicU32, Ordering, PLACES, each, maker};

const LOCKED: u32 = 1;
const PENDING: u32 = 1 << 8;
const TAIL_SHIFT: u32 = 16;

struct Node {
    next: AtomicU32,
    granted: AtomicU32,
}

impl Node {
    maker! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), granted: AtomicU32::new(0) }
        }
    }
}

/// See the module.
pub struct Qspin {
    word: Padded<AtomicU32>,
    nodes: [Padded<Node>; PLACES],
    /// Who has halted as `pending`, or as the head of the queue.
    waiters: Waiters,
}

impl Qspin {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                word: Padded(AtomicU32::new(0)),
                nodes: each![Padded(Node::new()); PLACES],
                waiters: Waiters::new(),
            }
        }
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }

    fn swap_word(&self, old: u32, new: u32) -> bool {
        self.word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Waits until the word has none of `bits`; nobody can be blamed for them.
    fn wait_without<C: Cpu>(&self, bits: u32, me: &mut Me<'_, C>) {
        let mut patience = me.patience();
        while self.word.load(Ordering::Acquire) & bits != 0 {
            if me.gives_up_on(None, &mut patience) {
                me.park_if(&self.waiters, |_| self.word.load(Ordering::SeqCst) & LOCKED != 0);
                patience = me.patience();
            }
            me.spin(&mut patience);
        }
    }

    /// Waits in the queue until we are its head.
    fn queue<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let node = self.node(me.id());
        node.next.store(FREE, Ordering::Relaxed);
        node.granted.store(0, Ordering::Relaxed);
        let entered = links::enter(me, |name| self.swap_tail(name), |prev| &self.node(prev).next);
        let Some(prev) = entered else { return };
        let mut patience = me.patience();
        while node.granted.load(Ordering::Acquire) == 0 {
            if me.gives_up_behind(Some(prev), &mut patience) {
                me.halt_unless(|_| node.granted.load(Ordering::SeqCst) != 0);
                patience = me.patience();
                continue;
            }
            me.spin(&mut patience);
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

    /// As the head, with the lock free: takes it, and makes the next one head.
    fn take_as_head<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let name = name_of(me.id());
        if self.swap_word(name << TAIL_SHIFT, LOCKED) {
            return;
        }
        self.word.fetch_or(LOCKED, Ordering::SeqCst);
        let mut patience = me.patience();
        let next = links::behind(&self.node(me.id()).next, me, &mut patience);
        self.node(next).granted.swap(1, Ordering::SeqCst);
        me.wake(next);
    }
}

impl Default for Qspin {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Qspin {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        loop {
            let word = self.word.load(Ordering::Relaxed);
            match word {
                0 if self.swap_word(0, LOCKED) => return,
                LOCKED if self.swap_word(LOCKED, LOCKED | PENDING) => {
                    self.wait_without(LOCKED, me);
                    self.word.fetch_sub(PENDING - LOCKED, Ordering::SeqCst);
                    return;
                }
                // Somebody was quicker: look again.
                0 | LOCKED => {}
                _ => break,
            }
        }
        self.queue(me);
        self.wait_without(LOCKED | PENDING, me);
        self.take_as_head(me);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.word.fetch_sub(LOCKED, Ordering::SeqCst);
        // Both, if both have halted: the head must not be awake alone, and wait for `pending`.
        while me.wake_longest(&self.waiters) {}
    }
}
