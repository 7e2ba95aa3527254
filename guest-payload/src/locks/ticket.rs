//! A ticket lock: first come, first served, among the vCPUs that run.
//!
//! The taker of a ticket writes its name beside it, so the releasing vCPU knows whose turn is next.
//! A waiter waits for the vCPU whose turn it is.
//!
//! - **Policies other than `preempted`**: strictly in order. A waiter that stops spinning halts
//!   until its turn; the release that serves its ticket wakes it.
//! - **`preempted`**: a waiter that is off its CPU when its turn comes loses the turn. The release
//!   passes it over, and the waiter takes a new ticket when it runs again. Order holds among the
//!   vCPUs that run. Otherwise each hand-over to a preempted waiter would cost a time slice. Each
//!   release also wakes the waiter that has been parked longest.
//!
//! Two cases need care, and both matter in measurements:
//!
//! - **A woken waiter without a CPU.** It slept, so its `preempted` is 0. The release therefore
//!   also reads whether it is blocked (see [`crate::park`]). After serving a ticket, the release
//!   looks whether its taker was about to halt, and wakes it.
//! - **No vCPU can be named.** A vCPU may be preempted between taking a ticket and writing its
//!   name. Its turn comes, it holds the lock, and no waiter can name it. These moments are counted
//!   (`unnamed`). The backstop of the policy `preempted` is for them: waiters halt after some time
//!   in any case.
//!
//! Linux had ticket locks until 4.1. The names and the passing over are ours.

use protocol::VcpuId;

use super::lock::{FREE, Lock, Padded, decode, encode};
use crate::cpu::Cpu;
use crate::park::{LockCtx, WaiterSet};
use crate::spin_wait::WaitPolicy;
use crate::sync::{AtomicU32, AtomicU64, Ordering, SLOTS, const_array, const_new};

/// Number of names kept. It exceeds the number of waiters, so no name in use is overwritten.
const NAMES: usize = SLOTS.next_power_of_two();

/// Longest backoff: spins between two reads of the ticket being served.
const LONGEST_BACKOFF: u32 = 16;

/// A ticket lock.
pub struct Ticket {
    next: Padded<AtomicU32>,
    serving: Padded<AtomicU32>,
    /// The vCPU whose turn it is, encoded, if known.
    turn: Padded<AtomicU32>,
    /// Ticket (upper half) and encoded taker (lower half).
    names: [Padded<AtomicU64>; NAMES],
    waiters: WaiterSet,
}

impl Ticket {
    const_new! {
        /// Returns a free lock.
        pub fn new() -> Self {
            Self {
                next: Padded(AtomicU32::new(0)),
                serving: Padded(AtomicU32::new(0)),
                turn: Padded(AtomicU32::new(FREE)),
                names: const_array![Padded(AtomicU64::new(0)); NAMES],
                waiters: WaiterSet::new(),
            }
        }
    }

    fn take_ticket<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) -> u32 {
        ctx.count_unnamed(|ctx| {
            let ticket = self.next.fetch_add(1, Ordering::SeqCst);
            self.name(ticket).store(u64::from(ticket) << 32 | u64::from(encode(ctx.id())), Ordering::SeqCst);
            ticket
        })
    }

    /// Returns the taker of `ticket`, if it was taken and its taker has written its name.
    fn taker(&self, ticket: u32) -> Option<VcpuId> {
        let name = self.name(ticket).load(Ordering::SeqCst);
        let (of, name) = (name >> 32, name & u64::from(u32::MAX));
        if of == u64::from(ticket) { decode(u32::try_from(name).ok()?) } else { None }
    }

    fn name(&self, ticket: u32) -> &AtomicU64 {
        &self.names[ticket as usize % NAMES]
    }

    /// Waits with `ticket`. Returns `false` if the turn came and was passed over.
    fn wait<C: Cpu>(&self, ticket: u32, ctx: &mut LockCtx<'_, C>) -> bool {
        let mut wait = ctx.start_wait();
        loop {
            let serving = self.serving.load(Ordering::SeqCst);
            let ahead = ticket.wrapping_sub(serving);
            match ahead.cast_signed() {
                0 => return true,
                ..0 => return false,
                _ => {}
            }
            let holder = decode(self.turn.load(Ordering::Relaxed)).filter(|holder| *holder != ctx.id());
            if ctx.should_stop_spinning(holder, &mut wait) {
                ctx.park_if(&self.waiters, |_| {
                    ticket.wrapping_sub(self.serving.load(Ordering::SeqCst)).cast_signed() > 0
                });
                wait = ctx.start_wait();
                continue;
            }
            for _ in 0..ahead.min(LONGEST_BACKOFF) {
                ctx.spin(&mut wait);
            }
        }
    }

    /// Returns the first ticket from `ticket` on whose taker is on its CPU, and that taker. A
    /// ticket without a name ends the search.
    fn first_on_cpu<C: Cpu>(&self, mut ticket: u32, ctx: &LockCtx<'_, C>) -> (u32, Option<VcpuId>) {
        while let Some(vcpu) = self.taker(ticket) {
            if !ctx.is_off_cpu(vcpu) && !ctx.lot.is_parked(vcpu) {
                return (ticket, Some(vcpu));
            }
            ticket = ticket.wrapping_add(1);
        }
        (ticket, None)
    }
}

impl Ticket {
    /// Chooses the ticket to serve next. Returns it with its taker, if known.
    fn choose_next<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> (u32, Option<VcpuId>) {
        let next = self.serving.load(Ordering::Relaxed).wrapping_add(1);
        match ctx.policy {
            WaitPolicy::Preempted { .. } => self.first_on_cpu(next, ctx),
            _ => (next, self.taker(next)),
        }
    }

    /// Serves the ticket `next`.
    fn serve<C: Cpu>(&self, next: u32, taker: Option<VcpuId>, ctx: &mut LockCtx<'_, C>) {
        self.turn.store(taker.map_or(FREE, encode), Ordering::SeqCst);
        self.serving.swap(next, Ordering::SeqCst);
        // The taker may have halted, or be about to. Read it again: since the choice, a vCPU may
        // have taken the ticket, waited and halted.
        if let Some(taker) = self.taker(next) {
            ctx.wake(taker);
        }
        if matches!(ctx.policy, WaitPolicy::Preempted { .. }) {
            ctx.wake_longest(&self.waiters);
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

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        loop {
            let ticket = self.take_ticket(ctx);
            if self.wait(ticket, ctx) {
                break;
            }
            ctx.stats.queue_exits += 1;
        }
        self.turn.store(encode(ctx.id()), Ordering::Relaxed);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        let (next, taker) = self.choose_next(ctx);
        self.serve(next, taker, ctx);
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use std::thread;

    use super::*;
    use crate::lab::locks::tests::{Machine, THRESHOLD, Thread};
    use crate::park::ParkingLot;

    /// Between choice and serving, the releasing vCPU is preempted; meanwhile a waiter comes and
    /// halts.
    #[test]
    fn waiter_that_arrives_and_halts_during_a_release_is_woken() {
        let (machine, lot, lock) = (Machine::new(2), ParkingLot::new(), Ticket::new());
        let ctx = |index| LockCtx::new(Thread::new(&machine, VcpuId::new(index).unwrap()), THRESHOLD, &lot);
        let mut holder = ctx(0);
        lock.acquire(&mut holder);
        let (next, taker) = lock.choose_next(&holder);
        assert_eq!(taker, None);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut waiter = ctx(1);
                lock.acquire(&mut waiter);
                lock.release(&mut waiter);
            });
            while !lot.is_blocked(VcpuId::new(1).unwrap()) {
                thread::yield_now();
            }
            lock.serve(next, taker, &mut holder);
        });
        machine.assert_no_wake_up_was_lost();
    }
}
