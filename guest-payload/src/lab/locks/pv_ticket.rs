//! The paravirtual ticket lock: first come, first served, with waiters that halt until their turn.
//!
//! A waiter that stops spinning notes the ticket that it wants, marks the lock, and halts. A
//! release that finds the mark searches for the waiter of the next ticket and wakes only that one.
//! The word does not name the holder, so only time makes a waiter stop. A preempted next waiter
//! delays all others, which is the known weakness of this lock.
//!
//! No waiter sleeps forever: it marks the lock before it looks a last time whose turn it is.
//!
//! Source: Linux 3.12 to 4.1 (commits 92b75202e5e8 and d6abfdb20223). One difference: wanted
//! tickets are kept in the lock, not in the CPU.

use crate::cpu::Cpu;
use crate::locks::{Lock, Padded};
use crate::park::{LockCtx, WaiterSet};
use crate::sync::{AtomicU32, Ordering, SLOTS, const_array, const_new};

/// A waiter may have halted. Tickets count by twos, to leave room for this bit.
const SLOW: u32 = 1;
const STEP: u32 = 2;

/// A paravirtual ticket lock.
pub struct PvTicket {
    tail: Padded<AtomicU32>,
    head: Padded<AtomicU32>,
    wanted: [AtomicU32; SLOTS],
    sleepers: WaiterSet,
}

impl PvTicket {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                tail: Padded(AtomicU32::new(0)),
                head: Padded(AtomicU32::new(0)),
                wanted: const_array![AtomicU32::new(0); SLOTS],
                sleepers: WaiterSet::new(),
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

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let ticket = self.tail.fetch_add(STEP, Ordering::SeqCst) & !SLOW;
        let mut wait = ctx.start_wait();
        while !self.is_turn_of(ticket) {
            if ctx.should_stop_spinning(None, &mut wait) {
                self.wanted[ctx.id().index()].store(ticket, Ordering::Relaxed);
                ctx.park_if(&self.sleepers, |_| {
                    self.tail.fetch_or(SLOW, Ordering::SeqCst);
                    !self.is_turn_of(ticket)
                });
                wait = ctx.start_wait();
                continue;
            }
            ctx.spin(&mut wait);
        }
        // With no successor there is no vCPU to wake.
        let alone = ticket.wrapping_add(STEP);
        let _ = self.tail.compare_exchange(alone | SLOW, alone, Ordering::SeqCst, Ordering::Relaxed);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let next = self.head.load(Ordering::Relaxed).wrapping_add(STEP);
        self.head.swap(next, Ordering::SeqCst);
        if self.tail.load(Ordering::SeqCst) & SLOW != 0 {
            let wants = self.sleepers.find(|vcpu| self.wanted[vcpu.index()].load(Ordering::Relaxed) == next);
            if let Some(vcpu) = wants {
                ctx.wake(vcpu);
            }
        }
    }
}
