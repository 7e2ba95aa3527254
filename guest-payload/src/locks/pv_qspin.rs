//! Linux' paravirtual qspinlock, in the five shapes that were argued about.
//!
//! Waiters queue; each spins on a node of its own until it is the queue's head, and the head spins on the word. Who has spun
//! for as long as it may, halts. A halted waiter is not woken when it becomes head: the new holder only marks the word as one
//! with a sleeper, and its release wakes that one.
//!
//! | [`Variant`] | takes the lock past the queue | halts early behind |
//! |---|---|---|
//! | `Plain` | never | nobody |
//! | `Steal` | once, on arrival | nobody |
//! | `Hybrid` | while the queue's head does not spin | nobody |
//! | `State` | as `Hybrid` | a predecessor that has halted |
//! | `Byte` | as `Hybrid` | a predecessor that has halted, or whose byte is set |
//!
//! `State` is what Linux has today. `Byte` is what it had for some time in 2019: with three virtual machines on one host a
//! benchmark lost seven eighths of its throughput, and it was reverted. Early waits look at the predecessor each 256 turns, as
//! there.
//!
//! The word does not name the holder; so but for early waits only time makes a waiter give up, and the strategy `byte` has
//! its backstop here and nothing else.
//!
//! Nobody sleeps for ever. In the queue: a waiter says that it halts, then looks at its node once more; whoever makes it head
//! gives it the grant first, and then looks whether it has halted. As head: it marks the word, and halts only if the lock is
//! still held; the release clears the whole byte, and sees the mark.
//!
//! Source: Linux `kernel/locking/qspinlock_paravirt.h`; commits 11752adb68a3 (hybrid), 75437bb304b2 and
//! 89340d0935c9 (byte, and its revert). What differs: the lock knows its sleeping head by a word of
//! its own, where Linux has a hash table; and a head that was woken and has to halt again marks the word again.

use protocol::VcpuId;

use super::{FREE, Lock, Padded, links, name_of, named};
use crate::cpu::Cpu;
use crate::park::Me;
use crate::sync::{AtomicU32, Ordering, PLACES, each, maker};

/// Who may go first, and who halts early: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// In order.
    Plain,
    /// One attempt on arrival.
    Steal,
    /// Attempts while the head does not spin.
    Hybrid,
    /// And early waits behind who has halted.
    State,
    /// And early waits behind who is preempted.
    Byte,
}

const LOCKED: u32 = 1;
/// With [`LOCKED`]: the release has somebody to wake.
const SLOW: u32 = 2;
const HOLD: u32 = 0xff;
/// The head spins: nobody may go first.
const PENDING: u32 = 1 << 8;
const TAIL_SHIFT: u32 = 16;
const TAIL: u32 = 0xffff << TAIL_SHIFT;

const RUNNING: u32 = 0;
const HALTED: u32 = 1;
/// Halted, and the lock knows.
const KNOWN: u32 = 2;

/// Turns between two looks at the predecessor.
const LOOK_EVERY: u32 = 256;

struct Node {
    next: AtomicU32,
    granted: AtomicU32,
    state: AtomicU32,
}

impl Node {
    maker! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), granted: AtomicU32::new(0), state: AtomicU32::new(RUNNING) }
        }
    }
}

/// What the lock is made of, whatever its variant.
pub struct PvState {
    word: Padded<AtomicU32>,
    /// The head that has halted.
    sleeper: Padded<AtomicU32>,
    nodes: [Padded<Node>; PLACES],
}

impl PvState {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                word: Padded(AtomicU32::new(0)),
                sleeper: Padded(AtomicU32::new(FREE)),
                nodes: each![Padded(Node::new()); PLACES],
            }
        }
    }
}

impl Default for PvState {
    fn default() -> Self {
        Self::new()
    }
}

/// See the module.
pub struct PvQspin<'s> {
    state: &'s PvState,
    variant: Variant,
}

impl<'s> PvQspin<'s> {
    /// The lock in `state`, as `variant` of it. All who use it must use the same.
    pub const fn new(state: &'s PvState, variant: Variant) -> Self {
        Self { state, variant }
    }

    fn word(&self) -> u32 {
        self.state.word.load(Ordering::SeqCst)
    }

    fn swap_word(&self, old: u32, new: u32) -> bool {
        self.state.word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    fn node(&self, vcpu: VcpuId) -> &Node {
        &self.state.nodes[vcpu.index()]
    }

    /// Takes the lock past the queue, if it is free and the head does not spin.
    fn try_steal<C: Cpu>(&self, me: &mut Me<'_, C>) -> bool {
        let word = self.word();
        let stolen = word & (HOLD | PENDING) == 0 && self.swap_word(word, word | LOCKED);
        me.tally.steals += u64::from(stolen && word & TAIL != 0);
        stolen
    }

    /// What is tried before queueing.
    fn steal<C: Cpu>(&self, me: &mut Me<'_, C>) -> bool {
        match self.variant {
            Variant::Plain => false,
            Variant::Steal => self.try_steal(me),
            Variant::Hybrid | Variant::State | Variant::Byte => {
                let mut patience = me.patience();
                loop {
                    if self.try_steal(me) {
                        return true;
                    }
                    let word = self.word();
                    if word & TAIL == 0 || word & PENDING != 0 {
                        return false;
                    }
                    // Here, too, the time is limited: there the head's is.
                    if me.gives_up_on(None, &mut patience) {
                        return false;
                    }
                    me.spin(&mut patience);
                }
            }
        }
    }

    /// Whether to halt now, behind `prev`.
    fn waits_early<C: Cpu>(&self, prev: VcpuId, turns: u32, me: &mut Me<'_, C>) -> bool {
        if self.variant < Variant::State || !me.strategy.halts() || !turns.is_multiple_of(LOOK_EVERY) {
            return false;
        }
        let has_halted = self.node(prev).state.load(Ordering::Relaxed) != RUNNING;
        let is_preempted = !has_halted && self.variant == Variant::Byte && me.cpu.is_preempted(prev);
        me.tally.preempted_seen += u64::from(is_preempted);
        me.tally.early_waits += u64::from(has_halted || is_preempted);
        has_halted || is_preempted
    }

    /// Queues until we are the head.
    fn queue<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let node = self.node(me.id());
        node.next.store(FREE, Ordering::Relaxed);
        node.granted.store(0, Ordering::Relaxed);
        node.state.store(RUNNING, Ordering::Relaxed);
        let entered = links::enter(me, |name| self.swap_tail(name), |prev| &self.node(prev).next);
        let Some(prev) = entered else { return };
        let mut patience = me.patience();
        while node.granted.load(Ordering::Acquire) == 0 {
            if self.waits_early(prev, patience.turns(), me) || me.gives_up_on(None, &mut patience) {
                me.halt_unless(|_| {
                    node.state.swap(HALTED, Ordering::SeqCst);
                    node.granted.load(Ordering::SeqCst) != 0
                });
                let _ = node.state.compare_exchange(HALTED, RUNNING, Ordering::SeqCst, Ordering::Relaxed);
                patience = me.patience();
            }
            me.spin(&mut patience);
        }
    }

    fn swap_tail(&self, tail: u32) -> u32 {
        loop {
            let old = self.word();
            if self.swap_word(old, old & !TAIL | tail << TAIL_SHIFT) {
                return old >> TAIL_SHIFT;
            }
        }
    }

    /// As the head, waits until the lock is ours.
    fn wait_as_head<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let node = self.node(me.id());
        loop {
            node.state.store(RUNNING, Ordering::Relaxed);
            self.state.word.fetch_or(PENDING, Ordering::SeqCst);
            let mut patience = me.patience();
            loop {
                let word = self.word();
                if word & HOLD == 0 {
                    if self.swap_word(word, word & !PENDING | LOCKED) {
                        return;
                    }
                    continue;
                }
                if me.gives_up_on(None, &mut patience) {
                    break;
                }
                me.spin(&mut patience);
            }
            self.state.word.fetch_and(!PENDING, Ordering::SeqCst);
            me.announce();
            node.state.store(KNOWN, Ordering::Relaxed);
            self.state.sleeper.store(name_of(me.id()), Ordering::SeqCst);
            if self.state.word.fetch_or(SLOW, Ordering::SeqCst) & HOLD == 0 {
                // It was free, and is ours now.
                me.cancel();
                let mark = SLOW - LOCKED;
                self.state.word.fetch_sub(mark, Ordering::SeqCst);
                return;
            }
            me.halt();
        }
    }

    /// Makes the next one head, if there is one. The lock is ours.
    fn pass_head<C: Cpu>(&self, me: &mut Me<'_, C>) {
        loop {
            let word = self.word();
            if word & TAIL != name_of(me.id()) << TAIL_SHIFT {
                break;
            }
            if self.swap_word(word, word & !TAIL) {
                return;
            }
        }
        let mut patience = me.patience();
        let next = links::behind(&self.node(me.id()).next, me, &mut patience);
        let node = self.node(next);
        node.granted.swap(1, Ordering::SeqCst);
        // Not woken, but known: our release wakes it.
        if node.state.compare_exchange(HALTED, KNOWN, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            self.state.sleeper.store(name_of(next), Ordering::SeqCst);
            self.state.word.fetch_or(SLOW, Ordering::SeqCst);
        }
    }
}

impl Lock for PvQspin<'_> {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if self.swap_word(0, LOCKED) || self.steal(me) {
            return;
        }
        self.queue(me);
        self.wait_as_head(me);
        self.pass_head(me);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if self.state.word.fetch_and(!HOLD, Ordering::SeqCst) & SLOW != 0
            && let Some(sleeper) = named(self.state.sleeper.load(Ordering::SeqCst))
        {
            me.wake(sleeper);
        }
    }
}
