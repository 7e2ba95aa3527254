//! The paravirtual ticket lock: first come, first served, and who has waited too long halts until its turn.
//!
//! A waiter that gives up notes which ticket it wants, marks the lock as one with sleepers, and halts. A release that finds
//! the mark looks for who wants the ticket that is next, and wakes that one only. Nobody knows the holder, so only time makes
//! a waiter give up; whoever is next and preempted keeps everybody waiting, which is what it is known for.
//!
//! Nobody sleeps for ever: a waiter marks the lock before it looks a last time whose turn it is.
//!
//! Source: Linux 3.12 to 4.1 (commits 92b75202e5e8 and d6abfdb20223). What differs: the wanted tickets are noted by lock,
//! not by CPU.

use super::{Lock, Padded};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::sync::{AtomicU32, Ordering, PLACES, each, maker};

/// Somebody may be halted. Tickets count by twos, to leave room for it.
const SLOW: u32 = 1;
const STEP: u32 = 2;

/// See the module.
pub struct PvTicket {
    tail: Padded<AtomicU32>,
    head: Padded<AtomicU32>,
    wanted: [AtomicU32; PLACES],
    sleepers: Waiters,
}

impl PvTicket {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                tail: Padded(AtomicU32::new(0)),
                head: Padded(AtomicU32::new(0)),
                wanted: each![AtomicU32::new(0); PLACES],
                sleepers: Waiters::new(),
            }
        }
    }

    fn is_turn_of(&self, ticket: u32) -> bool {
        self.head.load(Ordering::SeqCst) == ticket
    }
}

impl Default for PvTicket {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for PvTicket {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let ticket = self.tail.fetch_add(STEP, Ordering::SeqCst) & !SLOW;
        let mut patience = me.patience();
        while !self.is_turn_of(ticket) {
            if me.gives_up_on(None, &mut patience) {
                self.wanted[me.id().index()].store(ticket, Ordering::Relaxed);
                me.park_if(&self.sleepers, |_| {
                    self.tail.fetch_or(SLOW, Ordering::SeqCst);
                    !self.is_turn_of(ticket)
                });
                patience = me.patience();
                continue;
            }
            me.spin(&mut patience);
        }
        // With nobody behind us there is nobody to wake.
        let alone = ticket.wrapping_add(STEP);
        let _ = self.tail.compare_exchange(alone | SLOW, alone, Ordering::SeqCst, Ordering::Relaxed);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let next = self.head.load(Ordering::Relaxed).wrapping_add(STEP);
        self.head.swap(next, Ordering::SeqCst);
        if self.tail.load(Ordering::SeqCst) & SLOW != 0 {
            let wants = self.sleepers.find(|vcpu| self.wanted[vcpu.index()].load(Ordering::Relaxed) == next);
            if let Some(vcpu) = wants {
                me.wake(vcpu);
            }
        }
    }
}
