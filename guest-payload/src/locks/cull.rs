//! Cull and rotate: as many waiters stay awake as there are CPUs for, and nobody has to know how many those are.
//!
//! The word names the holder. A waiter that sees the holder preempted parks; so each preemption of a holder takes those out
//! of circulation who would only spin. A release does *not* wake them, as long as somebody else is there to take the lock.
//! It wakes the one that has been parked for longest in two cases only:
//!
//! - **Nobody contends.** Whoever wants the lock and is not parked is counted, from the moment that it finds it taken, and who
//!   is woken is counted from the moment that it is chosen. A release that finds the count at 0, and somebody parked, wakes
//!   one: so the last to leave never leaves sleepers behind a free lock. This is also what keeps CPUs busy.
//! - **Its turn has come.** Each [`TURN`] one is woken in any case, lest those in circulation keep the lock for themselves.
//!
//! Nobody sleeps for ever: who parks stops counting itself, and only then looks at the word once more. Either it finds the
//! lock free and goes on, or the holder's release comes after, and finds either another contender, whose own release will
//! come, or the sleeper. (Or somebody who counts himself for one whom he is about to wake, and then finds him gone: he looks
//! again.)
//!
//! The idea of a passive set is that of Dice's Malthusian locks (see [`super::Malthusian`]); that a preempted holder
//! is what makes waiters passive, and the rule for the last leaver, are ours.

use super::owner_word::OwnerWord;
use super::tas::LONGEST_BACKOFF;
use super::{Lock, Padded};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::Patience;
use crate::sync::{AtomicU32, AtomicU64, Ordering, maker};

/// Time between two who are woken because it is their turn ([`Cpu::longest_step`]s: microseconds).
const TURN: u64 = 2000;

/// See the module.
pub struct Cull {
    word: OwnerWord,
    /// Those who want the lock, have found it taken, and are not parked.
    contenders: Padded<AtomicU32>,
    /// When somebody was last woken because it was its turn (cycles).
    turned: AtomicU64,
    parked: Waiters,
}

impl Cull {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                word: OwnerWord::new(),
                contenders: Padded(AtomicU32::new(0)),
                turned: AtomicU64::new(0),
                parked: Waiters::new(),
            }
        }
    }

    /// Parks, as a contender, and comes back as one.
    fn park<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &Patience) {
        me.announce();
        self.parked.add(me.id());
        self.contenders.fetch_sub(1, Ordering::SeqCst);
        if self.word.holder().is_some_and(|holder| patience.still_blames(holder, &me.cpu)) {
            me.halt();
        } else {
            me.cancel();
        }
        // Who takes us out of the set counts us: whoever chose to wake us, or we, if it was for another reason.
        if self.parked.remove(me.id()) {
            self.contenders.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Wakes the one that has been parked for longest.
    fn wake_one<C: Cpu>(&self, me: &mut Me<'_, C>) {
        loop {
            // Counted first: it may have the lock, and have left, before we come back to count it.
            self.contenders.fetch_add(1, Ordering::SeqCst);
            if let Some(vcpu) = self.parked.longest(me.lot)
                && self.parked.remove(vcpu)
            {
                me.wake(vcpu);
                return;
            }
            // There is none, or it goes on by itself, as a contender of its own. But whoever has released meanwhile may have
            // taken the one that we have counted for a contender, and have left a sleeper to him: that one is ours to wake.
            let is_last = self.contenders.fetch_sub(1, Ordering::SeqCst) == 1;
            if !is_last || self.parked.is_empty() {
                return;
            }
        }
    }

    /// Whether it is time to wake somebody; says so to one only.
    fn is_somebody_s_turn<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        let (now, last) = (me.cpu.cycles(), self.turned.load(Ordering::Relaxed));
        now.wrapping_sub(last) > TURN * me.cpu.longest_step()
            && self.turned.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Default for Cull {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Cull {
    const HANDS_OVER: bool = false;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if self.word.try_take(me) {
            return;
        }
        self.contenders.fetch_add(1, Ordering::SeqCst);
        let (mut patience, mut backoff) = (me.patience(), 1);
        while !self.word.try_take(me) {
            let holder = self.word.holder();
            if holder.is_some() && me.gives_up_on(holder, &mut patience) {
                self.park(me, &patience);
                (patience, backoff) = (me.patience(), 1);
                continue;
            }
            for _ in 0..backoff {
                me.spin(&mut patience);
            }
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
        self.contenders.fetch_sub(1, Ordering::SeqCst);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.word.let_go();
        if !self.parked.is_empty()
            && (self.contenders.load(Ordering::SeqCst) == 0 || self.is_somebody_s_turn(me))
        {
            self.wake_one(me);
        }
    }
}
