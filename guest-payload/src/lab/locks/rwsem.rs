//! A reader-writer semaphore with optimistic spinning, in the shape of Linux' `rw_semaphore`.
//!
//! One word counts the readers, or says that a writer holds the semaphore; another names that
//! writer. A writer that finds it taken queues with the other spinners ([`Osq`]) and spins on the
//! writer. While readers hold it, no vCPU can be named, and only time counts. A reader spins on a
//! writer without queueing. A waiter that stops spinning sleeps.
//!
//! A release that leaves the semaphore free wakes the sleeper that has slept longest. A reader that
//! enters wakes the next, so that sleeping readers enter together. A sleeper announces that it
//! parks before it tries a last time, so no waiter sleeps forever. A writer that was woken too late
//! insists: until it enters, no reader does, and a release wakes it first.
//!
//! Source: Linux `kernel/locking/rwsem.c`; [`crate::lab::owner_spin`] is the loop of its
//! `rwsem_spin_on_owner()`. Two differences: Linux' readers sleep at once, and its sleepers stand
//! in one queue whose order the hand-off keeps.

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::locks::Osq;
use crate::locks::{FREE, Lock, Padded, decode, encode};
use crate::park::{LockCtx, WaiterSet};
use crate::spin_wait::SpinWait;
use crate::sync::{AtomicU32, Ordering, const_new};

/// A writer holds the semaphore. Otherwise the word is the number of readers.
const WRITER: u32 = 1 << 31;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Reader,
    Writer,
}

/// A reader-writer semaphore.
pub struct Rwsem {
    count: Padded<AtomicU32>,
    /// The writer that holds the semaphore, encoded, if known.
    writer: AtomicU32,
    /// Writers that have slept and were woken too late.
    insisting: WaiterSet,
    spinners: Osq,
    sleepers: WaiterSet,
}

impl Rwsem {
    const_new! {
        /// Returns a free semaphore.
        pub fn new() -> Self {
            Self {
                count: Padded(AtomicU32::new(0)),
                writer: AtomicU32::new(FREE),
                insisting: WaiterSet::new(),
                spinners: Osq::new(),
                sleepers: WaiterSet::new(),
            }
        }
    }

    fn try_lock<C: Cpu>(&self, side: Side, ctx: &LockCtx<'_, C>) -> bool {
        let count = self.count.load(Ordering::SeqCst);
        let new = match side {
            Side::Reader if count & WRITER == 0 && self.insisting.is_empty() => count + 1,
            Side::Writer if count == 0 => WRITER,
            _ => return false,
        };
        let taken = self.count.compare_exchange(count, new, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if taken && side == Side::Writer {
            self.writer.store(encode(ctx.id()), Ordering::Relaxed);
        }
        taken
    }

    /// Returns whether to stop spinning for the present holder.
    fn should_stop<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) -> bool {
        let writer: Option<VcpuId> = decode(self.writer.load(Ordering::Relaxed));
        self.count.load(Ordering::Relaxed) != 0 && ctx.should_stop_spinning(writer, wait)
    }

    /// Spins until the semaphore is taken (`true`), or until spinning is no longer worth it
    /// (`false`).
    fn spin_on_writer<C: Cpu>(&self, side: Side, ctx: &mut LockCtx<'_, C>, wait: &mut SpinWait) -> bool {
        loop {
            if self.try_lock(side, ctx) {
                return true;
            }
            if self.should_stop(ctx, wait) {
                return false;
            }
            ctx.spin(wait);
        }
    }

    /// Spins, writers one at a time. Returns `false` if the caller must sleep.
    fn spin<C: Cpu>(&self, side: Side, ctx: &mut LockCtx<'_, C>) -> bool {
        let mut wait = ctx.start_wait();
        match side {
            Side::Reader => self.spin_on_writer(side, ctx, &mut wait),
            Side::Writer => {
                if self.should_stop(ctx, &mut wait) || !self.spinners.acquire(ctx, &mut wait) {
                    return false;
                }
                let ours = self.spin_on_writer(side, ctx, &mut wait);
                self.spinners.release(ctx, &mut wait);
                ours
            }
        }
    }

    fn sleep<C: Cpu>(&self, side: Side, ctx: &mut LockCtx<'_, C>) {
        loop {
            ctx.prepare_to_park();
            self.sleepers.add(ctx.id());
            if self.try_lock(side, ctx) {
                ctx.cancel_park();
                break;
            }
            ctx.park();
            if self.spin_on_writer(side, ctx, &mut ctx.start_wait()) {
                break;
            }
            if side == Side::Writer {
                self.insisting.add(ctx.id());
            }
        }
        self.sleepers.remove(ctx.id());
        self.insisting.remove(ctx.id());
    }

    fn take<C: Cpu>(&self, side: Side, ctx: &mut LockCtx<'_, C>) {
        if !self.try_lock(side, ctx) && !self.spin(side, ctx) {
            self.sleep(side, ctx);
            if side == Side::Reader {
                self.wake_next(ctx);
            }
        }
    }

    fn wake_next<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        // While a writer insists, no reader could enter.
        let next = self.insisting.longest(ctx.lot).or_else(|| self.sleepers.longest(ctx.lot));
        if let Some(next) = next {
            ctx.wake(next);
        }
    }
}

impl Default for Rwsem {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock for Rwsem {
    const HANDS_OVER: bool = false;
    const HAS_READERS: bool = true;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.take(Side::Writer, ctx);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.writer.store(FREE, Ordering::Relaxed);
        self.count.swap(0, Ordering::SeqCst);
        self.wake_next(ctx);
    }

    fn acquire_shared<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.take(Side::Reader, ctx);
    }

    fn release_shared<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake_next(ctx);
        }
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use super::*;
    use crate::lab::locks::tests::{Machine, THRESHOLD, Thread};
    use crate::park::ParkingLot;

    #[test]
    fn readers_are_in_together_and_writers_alone() {
        let (machine, lot, semaphore) = (Machine::new(3), ParkingLot::new(), Rwsem::new());
        let ctx = |index| LockCtx::new(Thread::new(&machine, VcpuId::new(index).unwrap()), THRESHOLD, &lot);
        let (mut one, mut other, writer) = (ctx(0), ctx(1), ctx(2));
        semaphore.acquire_shared(&mut one);
        semaphore.acquire_shared(&mut other);
        assert!(!semaphore.try_lock(Side::Writer, &writer));
        semaphore.release_shared(&mut one);
        assert!(!semaphore.try_lock(Side::Writer, &writer));
        semaphore.release_shared(&mut other);
        assert!(semaphore.try_lock(Side::Writer, &writer));
        assert!(!semaphore.try_lock(Side::Reader, &one));
    }

    #[test]
    fn reader_waits_while_a_writer_insists() {
        let (machine, lot, semaphore) = (Machine::new(1), ParkingLot::new(), Rwsem::new());
        let ctx = LockCtx::new(Thread::new(&machine, VcpuId::BOOT), THRESHOLD, &lot);
        semaphore.insisting.add(VcpuId::new(1).unwrap());
        assert!(!semaphore.try_lock(Side::Reader, &ctx));
        semaphore.insisting.remove(VcpuId::new(1).unwrap());
        assert!(semaphore.try_lock(Side::Reader, &ctx));
    }
}
