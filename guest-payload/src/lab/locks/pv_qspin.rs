//! Linux' paravirtual qspinlock, in the five variants that were discussed.
//!
//! Waiters queue. Each spins on a node of its own until it is the head of the queue, and the head
//! spins on the word. A waiter that stops spinning halts. A halted waiter is not woken when it
//! becomes head: the new holder marks the word, and its release wakes that waiter.
//!
//! | [`Variant`] | overtakes the queue | halts early behind |
//! |---|---|---|
//! | `Plain` | never | - |
//! | `Steal` | once, on arrival | - |
//! | `Hybrid` | while the head of the queue does not spin | - |
//! | `State` | as `Hybrid` | a halted predecessor |
//! | `Byte` | as `Hybrid` | a halted or preempted predecessor |
//!
//! `State` is Linux today. Linux had `Byte` for some time in 2019: with three virtual machines on
//! one host a benchmark lost seven eighths of its throughput, and the change was reverted. As
//! there, a waiter looks at its predecessor every 256 iterations.
//!
//! The word does not name the holder. Apart from early halts, only time makes a waiter stop; the
//! policy `preempted` is its backstop and nothing else.
//!
//! No waiter sleeps forever. In the queue, a waiter announces that it halts, then reads its node
//! once more; the vCPU that makes it head stores the grant first, then looks whether it has halted.
//! As head, it marks the word, and halts only if the lock is still held; the release clears the
//! word and sees the mark.
//!
//! Source: Linux `kernel/locking/qspinlock_paravirt.h`; commits 11752adb68a3 (hybrid), 75437bb304b2
//! and 89340d0935c9 (`Byte`, and its revert). Two differences: a word of the lock names the
//! sleeping head, where Linux has a hash table; and a head that has to halt again marks the word
//! again.

use protocol::VcpuId;

use super::links;
use crate::cpu::Cpu;
use crate::locks::{FREE, Lock, Padded, decode, encode};
use crate::park::LockCtx;
use crate::sync::{AtomicU32, Ordering, SLOTS, const_array, const_new};

/// Which waiters may overtake the queue, and which halt early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// Strict order.
    Plain,
    /// One attempt to overtake on arrival.
    Steal,
    /// Attempts to overtake while the head does not spin.
    Hybrid,
    /// `Hybrid`, and early halts behind a halted predecessor.
    State,
    /// `State`, and early halts behind a preempted predecessor.
    Preempted,
}

const LOCKED: u32 = 1;
/// With [`LOCKED`]: the release has a vCPU to wake.
const SLOW: u32 = 2;
const HOLD: u32 = 0xff;
/// The head spins, so no vCPU may overtake it.
const PENDING: u32 = 1 << 8;
const TAIL_SHIFT: u32 = 16;
const TAIL: u32 = 0xffff << TAIL_SHIFT;

const RUNNING: u32 = 0;
const HALTED: u32 = 1;
/// Halted, and named in the lock.
const KNOWN: u32 = 2;

/// Iterations between two looks at the predecessor.
const LOOK_EVERY: u32 = 256;

struct Node {
    next: AtomicU32,
    granted: AtomicU32,
    state: AtomicU32,
}

impl Node {
    const_new! {
        fn new() -> Self {
            Self { next: AtomicU32::new(FREE), granted: AtomicU32::new(0), state: AtomicU32::new(RUNNING) }
        }
    }
}

/// The memory of the lock, for any variant.
pub struct PvState {
    word: Padded<AtomicU32>,
    /// The halted head of the queue, encoded.
    sleeper: Padded<AtomicU32>,
    nodes: [Padded<Node>; SLOTS],
}

impl PvState {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                word: Padded(AtomicU32::new(0)),
                sleeper: Padded(AtomicU32::new(FREE)),
                nodes: const_array![Padded(Node::new()); SLOTS],
            }
        }
    }
}

impl Default for PvState {
    fn default() -> Self {
        Self::new()
    }
}

/// A paravirtual queued spinlock.
pub struct PvQspin<'s> {
    state: &'s PvState,
    variant: Variant,
}

impl<'s> PvQspin<'s> {
    /// Returns the lock in `state` as `variant`. All its users must use the same variant.
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

    /// Overtakes the queue, if the lock is free and the head does not spin.
    fn try_steal<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> bool {
        let word = self.word();
        let stolen = word & (HOLD | PENDING) == 0 && self.swap_word(word, word | LOCKED);
        ctx.stats.steals += u64::from(stolen && word & TAIL != 0);
        stolen
    }

    /// Tries to overtake the queue on arrival.
    fn steal<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> bool {
        match self.variant {
            Variant::Plain => false,
            Variant::Steal => self.try_steal(ctx),
            Variant::Hybrid | Variant::State | Variant::Preempted => {
                let mut wait = ctx.start_wait();
                loop {
                    if self.try_steal(ctx) {
                        return true;
                    }
                    let word = self.word();
                    if word & TAIL == 0 || word & PENDING != 0 {
                        return false;
                    }
                    // Linux limits the head's time; here the newcomer's time is limited too.
                    if ctx.should_stop_spinning(None, &mut wait) {
                        return false;
                    }
                    ctx.spin(&mut wait);
                }
            }
        }
    }

    /// Returns whether to halt now behind `prev`.
    fn waits_early<C: Cpu>(&self, prev: VcpuId, turns: u32, ctx: &mut LockCtx<'_, C>) -> bool {
        if self.variant < Variant::State || !ctx.policy.may_halt() || !turns.is_multiple_of(LOOK_EVERY) {
            return false;
        }
        let has_halted = self.node(prev).state.load(Ordering::Relaxed) != RUNNING;
        let is_preempted = !has_halted && self.variant == Variant::Preempted && ctx.cpu.is_preempted(prev);
        ctx.stats.preempted_seen += u64::from(is_preempted);
        ctx.stats.early_waits += u64::from(has_halted || is_preempted);
        has_halted || is_preempted
    }

    /// Queues until the caller is the head.
    fn queue<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let node = self.node(ctx.id());
        node.next.store(FREE, Ordering::Relaxed);
        node.granted.store(0, Ordering::Relaxed);
        node.state.store(RUNNING, Ordering::Relaxed);
        let entered = links::enter(ctx, |name| self.swap_tail(name), |prev| &self.node(prev).next);
        let Some(prev) = entered else { return };
        let mut wait = ctx.start_wait();
        while node.granted.load(Ordering::Acquire) == 0 {
            if self.waits_early(prev, wait.turns(), ctx) || ctx.should_stop_spinning(None, &mut wait) {
                ctx.park_unless(|_| {
                    node.state.swap(HALTED, Ordering::SeqCst);
                    node.granted.load(Ordering::SeqCst) != 0
                });
                let _ = node.state.compare_exchange(HALTED, RUNNING, Ordering::SeqCst, Ordering::Relaxed);
                wait = ctx.start_wait();
            }
            ctx.spin(&mut wait);
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

    /// Waits as the head until the lock is taken.
    fn wait_as_head<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let node = self.node(ctx.id());
        loop {
            node.state.store(RUNNING, Ordering::Relaxed);
            self.state.word.fetch_or(PENDING, Ordering::SeqCst);
            let mut wait = ctx.start_wait();
            loop {
                let word = self.word();
                if word & HOLD == 0 {
                    if self.swap_word(word, word & !PENDING | LOCKED) {
                        return;
                    }
                    continue;
                }
                if ctx.should_stop_spinning(None, &mut wait) {
                    break;
                }
                ctx.spin(&mut wait);
            }
            self.state.word.fetch_and(!PENDING, Ordering::SeqCst);
            ctx.prepare_to_park();
            node.state.store(KNOWN, Ordering::Relaxed);
            self.state.sleeper.store(encode(ctx.id()), Ordering::SeqCst);
            if self.state.word.fetch_or(SLOW, Ordering::SeqCst) & HOLD == 0 {
                // The lock was free, and is taken now.
                ctx.cancel_park();
                let mark = SLOW - LOCKED;
                self.state.word.fetch_sub(mark, Ordering::SeqCst);
                return;
            }
            ctx.park();
        }
    }

    /// Makes the successor head, if there is one. The caller holds the lock.
    fn pass_head<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        loop {
            let word = self.word();
            if word & TAIL != encode(ctx.id()) << TAIL_SHIFT {
                break;
            }
            if self.swap_word(word, word & !TAIL) {
                return;
            }
        }
        let mut wait = ctx.start_wait();
        let next = links::wait_for_next(&self.node(ctx.id()).next, ctx, &mut wait);
        let node = self.node(next);
        node.granted.swap(1, Ordering::SeqCst);
        // Do not wake it, but name it: our release wakes it.
        if node.state.compare_exchange(HALTED, KNOWN, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            self.state.sleeper.store(encode(next), Ordering::SeqCst);
            self.state.word.fetch_or(SLOW, Ordering::SeqCst);
        }
    }
}

impl Lock for PvQspin<'_> {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if self.swap_word(0, LOCKED) || self.steal(ctx) {
            return;
        }
        self.queue(ctx);
        self.wait_as_head(ctx);
        self.pass_head(ctx);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if self.state.word.fetch_and(!HOLD, Ordering::SeqCst) & SLOW != 0
            && let Some(sleeper) = decode(self.state.sleeper.load(Ordering::SeqCst))
        {
            ctx.wake(sleeper);
        }
    }
}
