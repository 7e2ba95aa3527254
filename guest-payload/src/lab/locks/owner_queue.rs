//! The owner in the word, a queue without windows, and wake-ups for single vCPUs.
//!
//! The word names the holder. The head of the queue tries for the lock next. A newcomer may
//! overtake the queue while its head does not try, because it sleeps or is preempted. So the lock
//! never waits for a vCPU that does not run. A waiter waits for the holder, or for its predecessor
//! in the queue. When it stops spinning, it halts. The vCPU that makes it head, or releases the
//! lock to a sleeping head, wakes it.
//!
//! **No window.** In a queue of linked nodes there are moments in which a vCPU cannot be named (see
//! [`super::Mcs`]). This queue is that of Craig, Landin and Hagersten: each waiter watches the node
//! of its predecessor, which holds the owner's name before any vCPU can find it. Nothing has to be
//! linked, and no release waits for another vCPU.
//!
//! No waiter sleeps forever: it leaves its name where the vCPU that it waits for will look,
//! announces that it parks, and then looks once more.
//!
//! Source: Linux `arch/powerpc/lib/qspinlock.c` (owner in the word, stealing past the queue) and
//! `arch/s390/lib/spinlock.c` (asks whether the owner runs). There a waiter yields to the owner by
//! hypercall, which is the policy `yield` here. The queue: Craig, TR 93-02-02, University of
//! Washington, 1993.

use crate::cpu::Cpu;
use crate::locks::OwnerWord;
use crate::locks::{FREE, Lock, Padded, decode, encode};
use crate::park::LockCtx;
use crate::sync::{AtomicU32, Ordering, SLOTS, const_array, const_new};

/// A node of the queue. It belongs to its vCPU until that has had its turn, then to the successor.
struct Node {
    /// 1 while the successor must wait.
    is_before: AtomicU32,
    /// The vCPU of this node, encoded.
    name: AtomicU32,
    /// The successor, if it has halted.
    sleeper: AtomicU32,
}

impl Node {
    const_new! {
        fn new() -> Self {
            Self { is_before: AtomicU32::new(0), name: AtomicU32::new(FREE), sleeper: AtomicU32::new(FREE) }
        }
    }
}

/// State that only its own vCPU accesses.
struct Place {
    /// The vCPU's node, plus one; 0 for the initial one.
    node: AtomicU32,
    /// Predecessor's node, plus one, if the vCPU holds the lock and came through the queue; else 0.
    has_queued: AtomicU32,
}

impl Place {
    const_new! {
        fn new() -> Self {
            Self { node: AtomicU32::new(0), has_queued: AtomicU32::new(0) }
        }
    }
}

/// A lock with an owner and a queue.
pub struct OwnerQueue {
    word: OwnerWord,
    /// The head of the queue, while it tries for the lock.
    trying: AtomicU32,
    /// The last node of the queue. Node 0 is an extra one that belongs to no vCPU.
    tail: Padded<AtomicU32>,
    /// The head of the queue, if it has halted.
    head: Padded<AtomicU32>,
    nodes: [Padded<Node>; SLOTS + 1],
    places: [Padded<Place>; SLOTS],
}

impl OwnerQueue {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                word: OwnerWord::new(),
                trying: AtomicU32::new(FREE),
                tail: Padded(AtomicU32::new(0)),
                head: Padded(AtomicU32::new(FREE)),
                nodes: const_array![Padded(Node::new()); SLOTS + 1],
                places: const_array![Padded(Place::new()); SLOTS],
            }
        }
    }

    fn place<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> &Place {
        &self.places[ctx.id().index()]
    }

    /// Returns the number of the caller's node, and the node.
    fn own_node<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> (u32, &Node) {
        let own = self.place(ctx).node.load(Ordering::Relaxed);
        let number = if own == 0 { encode(ctx.id()) } else { own - 1 };
        (number, self.node(number))
    }

    /// Returns whether a newcomer may overtake the queue: its head does not try, or is off its CPU.
    fn may_pass<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> bool {
        let trying = decode(self.trying.load(Ordering::Relaxed));
        trying.is_none_or(|head| ctx.policy.reads_preempted() && ctx.is_off_cpu(head))
    }

    /// Tries to overtake the queue while its head sleeps. Returns `false` if the caller must queue.
    fn pass<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> bool {
        let mut wait = ctx.start_wait();
        while self.may_pass(ctx) {
            if self.word.try_lock(ctx) {
                ctx.stats.steals += u64::from(self.is_queued());
                return true;
            }
            let holder = self.word.holder();
            if !self.is_queued() || (holder.is_some() && ctx.should_stop_spinning(holder, &mut wait)) {
                break;
            }
            ctx.spin(&mut wait);
        }
        false
    }

    fn is_queued(&self) -> bool {
        self.node(self.tail.load(Ordering::Relaxed)).is_before.load(Ordering::Relaxed) != 0
    }

    fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize]
    }

    /// Waits in the queue until the caller is its head.
    fn queue<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let (number, node) = self.own_node(ctx);
        node.name.store(encode(ctx.id()), Ordering::Relaxed);
        node.sleeper.store(FREE, Ordering::Relaxed);
        node.is_before.store(1, Ordering::Relaxed);
        let before = self.tail.swap(number, Ordering::SeqCst);
        let prev = self.node(before);
        let mut wait = ctx.start_wait();
        while prev.is_before.load(Ordering::Acquire) != 0 {
            let neighbour = decode(prev.name.load(Ordering::Relaxed));
            if ctx.should_stop_spinning_behind(neighbour, &mut wait) {
                prev.sleeper.store(encode(ctx.id()), Ordering::SeqCst);
                ctx.park_unless(|_| prev.is_before.load(Ordering::SeqCst) == 0);
                wait = ctx.start_wait();
                continue;
            }
            ctx.spin(&mut wait);
        }
        // The caller takes over its predecessor's node once its own has been passed on.
        self.place(ctx).has_queued.store(before + 1, Ordering::Relaxed);
    }

    /// Tries for the lock as the head of the queue until it is taken.
    fn take_as_head<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.trying.store(encode(ctx.id()), Ordering::Relaxed);
        let mut wait = ctx.start_wait();
        while !self.word.try_lock(ctx) {
            let holder = self.word.holder();
            if holder.is_some() && ctx.should_stop_spinning(holder, &mut wait) {
                self.trying.store(FREE, Ordering::Relaxed);
                self.head.store(encode(ctx.id()), Ordering::SeqCst);
                ctx.park_unless(|ctx| {
                    !self.word.holder().is_some_and(|holder| wait.still_applies(holder, &ctx.cpu))
                });
                self.head.store(FREE, Ordering::SeqCst);
                self.trying.store(encode(ctx.id()), Ordering::Relaxed);
                wait = ctx.start_wait();
                continue;
            }
            ctx.spin(&mut wait);
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

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if self.pass(ctx) {
            return;
        }
        self.queue(ctx);
        self.take_as_head(ctx);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.word.unlock();
        let before = self.place(ctx).has_queued.swap(0, Ordering::Relaxed);
        if before != 0 {
            let (_, node) = self.own_node(ctx);
            // From here on the node belongs to the successor.
            self.place(ctx).node.store(before, Ordering::Relaxed);
            node.is_before.swap(0, Ordering::SeqCst);
            if let Some(sleeper) = decode(node.sleeper.load(Ordering::SeqCst)) {
                ctx.wake(sleeper);
            }
        }
        if let Some(head) = decode(self.head.load(Ordering::SeqCst)) {
            ctx.wake(head);
        }
    }
}
