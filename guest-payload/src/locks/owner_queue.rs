//! An owner in the word, a queue behind it, and a wake-up for whom it concerns.
//!
//! The word names the holder, and the queue says who tries for it next. Newcomers may take the lock past the queue while its
//! head does not try for it, being asleep or preempted: so the lock never waits for anybody who is not running. A waiter
//! blames the holder, or the one before it in the queue if that does not run. When it gives up it halts; whoever passes it the
//! head of the queue, or, if it is the head, lets the lock go, wakes it and nobody else.
//!
//! **No window.** A queue of linked nodes has moments in which nobody can be named (see [`super::Mcs`]). Here the queue is that
//! of Craig, Landin and Hagersten: each waiter watches the node of its predecessor, which has its owner's name in it
//! before anybody can find it. Nothing needs to be linked, so nobody can be preempted between queueing and being known;
//! and no release waits for anybody.
//!
//! Nobody sleeps for ever: a waiter leaves its name where the one it waits for will look, says that it is about to halt, and
//! then looks once more.
//!
//! Source: Linux arch/powerpc/lib/qspinlock.c (owner in the word, stealing past the queue) and
//! arch/s390/lib/spinlock.c (ask whether the owner runs). There a waiter yields to the owner by hypercall; here that is the
//! strategy `yield`. Craig, TR 93-02-02, University of Washington, 1993, for the queue.

use super::owner_word::OwnerWord;
use super::{FREE, Lock, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::Me;
use crate::sync::{AtomicU32, Ordering, PLACES, each, maker};

/// A place in the queue. It belongs to its vCPU until that has had its turn, and then to the one behind.
struct Node {
    /// 1 while whoever is behind must wait.
    is_before: AtomicU32,
    /// Whose it is.
    name: AtomicU32,
    /// Who is behind, and has halted.
    sleeper: AtomicU32,
}

impl Node {
    maker! {
        fn new() -> Self {
            Self { is_before: AtomicU32::new(0), name: AtomicU32::new(FREE), sleeper: AtomicU32::new(FREE) }
        }
    }
}

/// What a vCPU alone touches.
struct Place {
    /// Its node; 0 is the one that it begins with.
    node: AtomicU32,
    /// 1 if it holds the lock and came to it through the queue.
    has_queued: AtomicU32,
}

impl Place {
    maker! {
        fn new() -> Self {
            Self { node: AtomicU32::new(0), has_queued: AtomicU32::new(0) }
        }
    }
}

/// See the module.
pub struct OwnerQueue {
    word: OwnerWord,
    /// The head of the queue, while it tries for the lock.
    trying: AtomicU32,
    /// The last node of the queue. Node 0 is one more than there are vCPUs, and nobody's.
    tail: Padded<AtomicU32>,
    /// Who is the head of the queue, and has halted.
    head: Padded<AtomicU32>,
    nodes: [Padded<Node>; PLACES + 1],
    places: [Padded<Place>; PLACES],
}

impl OwnerQueue {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                word: OwnerWord::new(),
                trying: AtomicU32::new(FREE),
                tail: Padded(AtomicU32::new(0)),
                head: Padded(AtomicU32::new(FREE)),
                nodes: each![Padded(Node::new()); PLACES + 1],
                places: each![Padded(Place::new()); PLACES],
            }
        }
    }

    fn place<C: Cpu>(&self, me: &Me<'_, C>) -> &Place {
        &self.places[me.id().index()]
    }

    /// The node that `me` owns, and its number.
    fn own_node<C: Cpu>(&self, me: &Me<'_, C>) -> (u32, &Node) {
        let own = self.place(me).node.load(Ordering::Relaxed);
        let number = if own == 0 { name_of(me.id()) } else { own - 1 };
        (number, self.node(number))
    }

    /// Whether a newcomer may take the lock past the queue: nobody tries for it there, or whoever does is off its CPU.
    fn may_pass<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        let trying = named(self.trying.load(Ordering::Relaxed));
        trying.is_none_or(|head| me.strategy.asks() && me.is_off_cpu(head))
    }

    /// Tries to take the lock past the queue, for as long as that is asleep. `false`: queue.
    fn pass<C: Cpu>(&self, me: &mut Me<'_, C>) -> bool {
        let mut patience = me.patience();
        while self.may_pass(me) {
            if self.word.try_take(me) {
                me.tally.steals += u64::from(self.is_queued());
                return true;
            }
            let holder = self.word.holder();
            if !self.is_queued() || (holder.is_some() && me.gives_up_on(holder, &mut patience)) {
                break;
            }
            me.spin(&mut patience);
        }
        false
    }

    fn is_queued(&self) -> bool {
        self.node(self.tail.load(Ordering::Relaxed)).is_before.load(Ordering::Relaxed) != 0
    }

    fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize]
    }

    /// Waits in the queue until we are its head.
    fn queue<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let (number, node) = self.own_node(me);
        node.name.store(name_of(me.id()), Ordering::Relaxed);
        node.sleeper.store(FREE, Ordering::Relaxed);
        node.is_before.store(1, Ordering::Relaxed);
        let before = self.tail.swap(number, Ordering::SeqCst);
        let prev = self.node(before);
        let mut patience = me.patience();
        while prev.is_before.load(Ordering::Acquire) != 0 {
            let neighbour = named(prev.name.load(Ordering::Relaxed));
            if me.gives_up_behind(neighbour, &mut patience) {
                prev.sleeper.store(name_of(me.id()), Ordering::SeqCst);
                me.halt_unless(|_| prev.is_before.load(Ordering::SeqCst) == 0);
                patience = me.patience();
                continue;
            }
            me.spin(&mut patience);
        }
        // We go on with our predecessor's node once ours has been passed on.
        self.place(me).has_queued.store(before + 1, Ordering::Relaxed);
    }

    /// Tries for the lock, as the head of the queue, until it is ours.
    fn take_as_head<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.trying.store(name_of(me.id()), Ordering::Relaxed);
        let mut patience = me.patience();
        while !self.word.try_take(me) {
            let holder = self.word.holder();
            if holder.is_some() && me.gives_up_on(holder, &mut patience) {
                self.trying.store(FREE, Ordering::Relaxed);
                self.head.store(name_of(me.id()), Ordering::SeqCst);
                me.halt_unless(|me| {
                    !self.word.holder().is_some_and(|holder| patience.still_blames(holder, &me.cpu))
                });
                self.head.store(FREE, Ordering::SeqCst);
                self.trying.store(name_of(me.id()), Ordering::Relaxed);
                patience = me.patience();
                continue;
            }
            me.spin(&mut patience);
        }
        self.trying.store(FREE, Ordering::Relaxed);
    }
}

impl Default for OwnerQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for OwnerQueue {
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if self.pass(me) {
            return;
        }
        self.queue(me);
        self.take_as_head(me);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.word.let_go();
        let before = self.place(me).has_queued.swap(0, Ordering::Relaxed);
        if before != 0 {
            let (_, node) = self.own_node(me);
            // From here on the node is that of whoever is behind.
            self.place(me).node.store(before, Ordering::Relaxed);
            node.is_before.swap(0, Ordering::SeqCst);
            if let Some(sleeper) = named(node.sleeper.load(Ordering::SeqCst)) {
                me.wake(sleeper);
            }
        }
        if let Some(head) = named(self.head.load(Ordering::SeqCst)) {
            me.wake(head);
        }
    }
}
