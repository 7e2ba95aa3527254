//! A Malthusian lock: a queue that sends those into retirement whom it has too many of.
//!
//! The queue is that of [`super::Mcs`]. A release that sees two waiters or more makes the first of them passive: that one
//! halts, and is no longer in the queue. One that sees none recalls the one that was made passive last, whose caches
//! are warmest. So the lock works with as few vCPUs as keep it busy, and who is passive costs nothing. Now and then the
//! one that has been passive for longest is recalled in any case.
//!
//! A waiter in the queue blames its predecessor, if that is preempted or has halted. Who was made passive halts at once, but
//! with `ignore` and `yield`, which spin.
//!
//! Nobody sleeps for ever: who is passive lies on a list that only holders touch. A release that leaves the lock free has
//! recalled one, if there was one; that one will have the lock, and release it in turn. The windows in which nobody can be named are those of the queue.
//!
//! Source: Dice, "Malthusian Locks", arXiv 1511.06035 (MCSCR). What differs: who is recalled competes for the lock, where
//! there it is given it: to give it to a vCPU that sleeps would cost a wake-up a section wherever the CPUs are too few for anybody
//! to be waiting. Out of turn it is the clock that recalls, not a coin. And which of several waiters is retired is chosen by the
//! byte, where it is asked.

use protocol::VcpuId;

use super::{FREE, Lock, Padded, links, name_of, named};
use crate::cpu::Cpu;
use crate::park::Me;
use crate::patience::Strategy;
use crate::sync::{AtomicU32, AtomicU64, Ordering, PLACES, each, maker};

const WAITING: u32 = 0;
const GRANTED: u32 = 1;
const PASSIVE: u32 = 2;
/// No longer passive, and without a place in the queue.
const RECALLED: u32 = 3;

/// Time between two who come back out of turn ([`Cpu::longest_step`]s: microseconds).
const TURN: u64 = 2000;

struct Node {
    next: AtomicU32,
    state: AtomicU32,
    /// Neighbours on the list of the passive. Only the holder touches these.
    younger: AtomicU32,
    older: AtomicU32,
}

impl Node {
    maker! {
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

/// See the module.
pub struct Malthusian {
    tail: Padded<AtomicU32>,
    /// Both ends of the list of the passive. Only the holder touches these.
    youngest: Padded<AtomicU32>,
    oldest: AtomicU32,
    turned: AtomicU64,
    nodes: [Padded<Node>; PLACES],
}

impl Malthusian {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                tail: Padded(AtomicU32::new(FREE)),
                youngest: Padded(AtomicU32::new(FREE)),
                oldest: AtomicU32::new(FREE),
                turned: AtomicU64::new(0),
                nodes: each![Padded(Node::new()); PLACES],
            }
        }
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.nodes[vcpu.index()]
    }

    /// Queues until the lock is ours (`true`), or until we are to queue anew.
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
            let gives_up = match node.state.load(Ordering::Acquire) {
                GRANTED => return true,
                RECALLED => return false,
                PASSIVE => me.strategy.halts(),
                // Who was before us may have been retired: then nobody knows who is.
                _ => {
                    let is_there = |prev: &VcpuId| {
                        !matches!(self.node(*prev).state.load(Ordering::Relaxed), PASSIVE | RECALLED)
                    };
                    me.gives_up_behind(prev.filter(is_there), &mut patience)
                }
            };
            if gives_up {
                // Whoever grants or recalls wakes. That we are made passive meanwhile is no reason to wake up.
                me.halt_unless(|_| matches!(node.state.load(Ordering::SeqCst), GRANTED | RECALLED));
                patience = me.patience();
            } else {
                me.spin(&mut patience);
            }
        }
    }

    fn retire(&self, vcpu: VcpuId) {
        let node = self.node(vcpu);
        let youngest = self.youngest.swap(name_of(vcpu), Ordering::Relaxed);
        node.younger.store(FREE, Ordering::Relaxed);
        node.older.store(youngest, Ordering::Relaxed);
        match named(youngest) {
            None => self.oldest.store(name_of(vcpu), Ordering::Relaxed),
            Some(youngest) => self.node(youngest).younger.store(name_of(vcpu), Ordering::Relaxed),
        }
        node.state.swap(PASSIVE, Ordering::SeqCst);
    }

    /// Takes `vcpu` off the list of the passive.
    fn recall(&self, vcpu: VcpuId) {
        let node = self.node(vcpu);
        let (younger, older) = (node.younger.load(Ordering::Relaxed), node.older.load(Ordering::Relaxed));
        match named(younger) {
            None => self.youngest.store(older, Ordering::Relaxed),
            Some(younger) => self.node(younger).older.store(older, Ordering::Relaxed),
        }
        match named(older) {
            None => self.oldest.store(younger, Ordering::Relaxed),
            Some(older) => self.node(older).younger.store(younger, Ordering::Relaxed),
        }
    }

    /// Whether it is time for the oldest to come back.
    fn is_somebody_s_turn<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        let now = me.cpu.cycles();
        let is_due = now.wrapping_sub(self.turned.load(Ordering::Relaxed)) > TURN * me.cpu.longest_step();
        if is_due {
            self.turned.store(now, Ordering::Relaxed);
        }
        is_due
    }

    /// Takes one off the list of the passive, to compete for the lock anew: the youngest, if nobody queues; the oldest, if it
    /// is time.
    fn recall_one<C: Cpu>(&self, me: &Me<'_, C>) -> Option<VcpuId> {
        let is_alone = self.node(me.id()).next.load(Ordering::Acquire) == FREE;
        let youngest = named(self.youngest.load(Ordering::Relaxed))?;
        let recalled = match () {
            () if self.is_somebody_s_turn(me) => named(self.oldest.load(Ordering::Relaxed))?,
            () if is_alone => youngest,
            () => return None,
        };
        self.recall(recalled);
        self.node(recalled).state.swap(RECALLED, Ordering::SeqCst);
        Some(recalled)
    }

    /// Who is to have the lock after `me`; `None`, and it is free.
    fn choose_next<C: Cpu>(&self, me: &mut Me<'_, C>) -> Option<VcpuId> {
        let (name, node) = (name_of(me.id()), self.node(me.id()));
        let mut patience = me.patience();
        if node.next.load(Ordering::Acquire) == FREE
            && self.tail.compare_exchange(name, FREE, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            return None;
        }
        let next = links::behind(&node.next, me, &mut patience);
        let Some(after) = named(self.node(next).next.load(Ordering::Acquire)) else { return Some(next) };
        // One too many. With the byte, the one that does not run, if one of the two does not.
        let asks = matches!(me.strategy, Strategy::Byte { .. });
        if asks && me.is_off_cpu(after) && !me.is_off_cpu(next) {
            if let Some(last) = named(self.node(after).next.load(Ordering::Acquire)) {
                self.node(next).next.store(name_of(last), Ordering::Release);
                self.retire(after);
            }
            return Some(next);
        }
        self.retire(next);
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

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        while !self.queue(me) {}
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let (recalled, next) = me.unnamed(|me| (self.recall_one(me), self.choose_next(me)));
        if let Some(next) = next {
            self.node(next).state.swap(GRANTED, Ordering::SeqCst);
            me.wake(next);
        }
        if let Some(recalled) = recalled {
            me.wake(recalled);
        }
    }
}
