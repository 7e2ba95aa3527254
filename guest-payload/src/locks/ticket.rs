//! Ticket: first come, first served, as long as those who come are running.
//!
//! Next to each ticket its taker writes its name, so whoever serves knows whose turn is next. A waiter blames the vCPU
//! whose turn it is.
//!
//! - **ignore, threshold, cap, yield**: strictly in order. A waiter whose time is over halts until its turn; the release that
//!   makes it its turn wakes it.
//! - **byte**: a waiter that is off its CPU when its turn comes loses it: the release passes it over, and it takes a
//!   new ticket when it runs again. Order holds among those who run. Without this every hand-over to a preempted
//!   waiter would cost a time slice, and nothing would be gained by knowing of it. Each release also wakes the
//!   waiter that has been parked for longest.
//!
//! Two things need care, and both are measured to matter:
//!
//! - **Woken, but not on a CPU yet.** Such a waiter slept, so its byte is 0. The release therefore asks also whether
//!   it is off-line (see [`crate::park`]), and after giving a waiter its turn looks whether that one was about to
//!   halt just then, and wakes it.
//! - **Nobody to blame.** Between taking a ticket and writing the name beside it, a vCPU can be preempted. Its turn
//!   comes, it holds the lock, and no byte names it. These moments are counted (`unnamed`). The byte's backstop is for
//!   them: with it, waiters halt after some time even if nobody can be blamed.
//!
//! Linux had ticket locks until 4.1; the names, and passing over, are ours.

use protocol::VcpuId;

use super::{FREE, Lock, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::Strategy;
use crate::sync::{AtomicU32, AtomicU64, Ordering, PLACES, each, maker};

/// Names are kept for this many tickets; more than there can be waiters, so none is overwritten while it counts.
const NAMES: usize = PLACES.next_power_of_two();

/// Spins between two looks at whose turn it is, at the most.
const LONGEST_BACKOFF: u32 = 16;

/// See the module.
pub struct Ticket {
    next: Padded<AtomicU32>,
    serving: Padded<AtomicU32>,
    /// Whose turn it is, as far as known.
    turn: Padded<AtomicU32>,
    /// Ticket (upper half) and its taker's name (lower half).
    names: [Padded<AtomicU64>; NAMES],
    waiters: Waiters,
}

impl Ticket {
    maker! {
        /// A lock that nobody holds.
        pub fn new() -> Self {
            Self {
                next: Padded(AtomicU32::new(0)),
                serving: Padded(AtomicU32::new(0)),
                turn: Padded(AtomicU32::new(FREE)),
                names: each![Padded(AtomicU64::new(0)); NAMES],
                waiters: Waiters::new(),
            }
        }
    }

    fn take_ticket<C: Cpu>(&self, me: &mut Me<'_, C>) -> u32 {
        me.unnamed(|me| {
            let ticket = self.next.fetch_add(1, Ordering::SeqCst);
            self.name(ticket).store(u64::from(ticket) << 32 | u64::from(name_of(me.id())), Ordering::SeqCst);
            ticket
        })
    }

    /// Who took `ticket`, if it was taken and its taker has said so.
    fn taker(&self, ticket: u32) -> Option<VcpuId> {
        let name = self.name(ticket).load(Ordering::SeqCst);
        let (of, name) = (name >> 32, name & u64::from(u32::MAX));
        if of == u64::from(ticket) { named(u32::try_from(name).ok()?) } else { None }
    }

    fn name(&self, ticket: u32) -> &AtomicU64 {
        &self.names[ticket as usize % NAMES]
    }

    /// Waits with `ticket`. `false` when the turn came and was passed over.
    fn wait<C: Cpu>(&self, ticket: u32, me: &mut Me<'_, C>) -> bool {
        let mut patience = me.patience();
        loop {
            let serving = self.serving.load(Ordering::SeqCst);
            let ahead = ticket.wrapping_sub(serving);
            match ahead.cast_signed() {
                0 => return true,
                ..0 => return false,
                _ => {}
            }
            let holder = named(self.turn.load(Ordering::Relaxed)).filter(|holder| *holder != me.id());
            if me.gives_up_on(holder, &mut patience) {
                me.park_if(&self.waiters, |_| {
                    ticket.wrapping_sub(self.serving.load(Ordering::SeqCst)).cast_signed() > 0
                });
                patience = me.patience();
                continue;
            }
            for _ in 0..ahead.min(LONGEST_BACKOFF) {
                me.spin(&mut patience);
            }
        }
    }

    /// The first ticket from `ticket` on whose taker can use its turn, and that taker. A ticket without a name, taken
    /// or not, ends the search.
    fn first_on_cpu<C: Cpu>(&self, mut ticket: u32, me: &Me<'_, C>) -> (u32, Option<VcpuId>) {
        while let Some(vcpu) = self.taker(ticket) {
            if !me.is_off_cpu(vcpu) && !me.lot.is_parked(vcpu) {
                return (ticket, Some(vcpu));
            }
            ticket = ticket.wrapping_add(1);
        }
        (ticket, None)
    }
}

impl Ticket {
    /// The ticket whose turn is next, and who has it, as far as known yet.
    fn choose_next<C: Cpu>(&self, me: &Me<'_, C>) -> (u32, Option<VcpuId>) {
        let next = self.serving.load(Ordering::Relaxed).wrapping_add(1);
        match me.strategy {
            Strategy::Byte { .. } => self.first_on_cpu(next, me),
            _ => (next, self.taker(next)),
        }
    }

    /// Makes it `next`'s turn.
    fn serve<C: Cpu>(&self, next: u32, taker: Option<VcpuId>, me: &mut Me<'_, C>) {
        self.turn.store(taker.map_or(FREE, name_of), Ordering::SeqCst);
        self.serving.swap(next, Ordering::SeqCst);
        // Who has its turn now may be halted, or about to. Asked once more: since we chose, somebody may have taken the
        // ticket, waited, and halted.
        if let Some(taker) = self.taker(next) {
            me.wake(taker);
        }
        if matches!(me.strategy, Strategy::Byte { .. }) {
            me.wake_longest(&self.waiters);
        }
    }
}

impl Default for Ticket {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Ticket {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        loop {
            let ticket = self.take_ticket(me);
            if self.wait(ticket, me) {
                break;
            }
            me.tally.queue_exits += 1;
        }
        self.turn.store(name_of(me.id()), Ordering::Relaxed);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        let (next, taker) = self.choose_next(me);
        self.serve(next, taker, me);
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use std::thread;

    use super::super::tests::{Machine, THRESHOLD, Thread};
    use super::*;
    use crate::park::Lot;

    /// The releasing vCPU is preempted between looking who is next and serving; meanwhile somebody comes, waits, halts.
    #[test]
    fn waiter_that_came_and_halted_while_the_turn_was_passed_on_is_woken() {
        let (machine, lot, lock) = (Machine::new(2), Lot::new(), Ticket::new());
        let me = |index| Me::new(Thread::new(&machine, VcpuId::new(index).unwrap()), THRESHOLD, &lot);
        let mut holder = me(0);
        lock.acquire(&mut holder);
        let (next, taker) = lock.choose_next(&holder);
        assert_eq!(taker, None);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut waiter = me(1);
                lock.acquire(&mut waiter);
                lock.release(&mut waiter);
            });
            while !lot.is_off_line(VcpuId::new(1).unwrap()) {
                thread::yield_now();
            }
            lock.serve(next, taker, &mut holder);
        });
        machine.assert_no_wake_up_was_lost();
    }
}
