//! A reader-writer semaphore whose writers spin while the writer before them runs, in the shape of Linux' `rw_semaphore`.
//!
//! One word counts readers, or says that a writer is in; another names that writer. A writer that finds the semaphore taken
//! queues with the other spinners ([`super::osq`]), and spins for as long as the strategy lets it: it blames the writer. While
//! readers are in, there is nobody to blame, so the byte is not asked and only time counts. A reader spins on a writer
//! likewise, without queueing. Who gives up sleeps.
//!
//! Each release that leaves the semaphore free wakes the sleeper that has slept for longest, and a reader that comes in
//! wakes the next, so that those who slept go in together. A sleeper says that it is about to halt before it tries a last
//! time; so nobody sleeps for ever. A writer that was woken and came too late insists: while any does, no reader enters, and
//! a release wakes it first.
//!
//! Source: Linux kernel/locking/rwsem.c, `rwsem_spin_on_owner()` (whose loop [`crate::owner_spin`] is). What differs:
//! Linux' readers sleep at once, and its sleepers stand in one queue whose order the hand-off keeps.

use protocol::VcpuId;

use super::osq::Osq;
use super::{FREE, Lock, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::{Me, Waiters};
use crate::patience::Patience;
use crate::sync::{AtomicU32, Ordering, maker};

/// A writer is in. Otherwise the word is how many readers are.
const WRITER: u32 = 1 << 31;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Reader,
    Writer,
}

/// See the module.
pub struct Rwsem {
    count: Padded<AtomicU32>,
    /// The writer that is in, as far as known.
    writer: AtomicU32,
    /// Writers that have slept and come too late.
    insisting: Waiters,
    spinners: Osq,
    sleepers: Waiters,
}

impl Rwsem {
    maker! {
        /// A semaphore that nobody holds.
        pub fn new() -> Self {
            Self {
                count: Padded(AtomicU32::new(0)),
                writer: AtomicU32::new(FREE),
                insisting: Waiters::new(),
                spinners: Osq::new(),
                sleepers: Waiters::new(),
            }
        }
    }

    fn try_take<C: Cpu>(&self, side: Side, me: &Me<'_, C>) -> bool {
        let count = self.count.load(Ordering::SeqCst);
        let new = match side {
            Side::Reader if count & WRITER == 0 && self.insisting.is_empty() => count + 1,
            Side::Writer if count == 0 => WRITER,
            _ => return false,
        };
        let taken = self.count.compare_exchange(count, new, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if taken && side == Side::Writer {
            self.writer.store(name_of(me.id()), Ordering::Relaxed);
        }
        taken
    }

    /// Whether there is no sense in spinning for who is in.
    fn is_lost<C: Cpu>(&self, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        let writer: Option<VcpuId> = named(self.writer.load(Ordering::Relaxed));
        self.count.load(Ordering::Relaxed) != 0 && me.gives_up_on(writer, patience)
    }

    /// Spins until it is ours (`true`), or until there is no sense in it (`false`).
    fn spin_on_writer<C: Cpu>(&self, side: Side, me: &mut Me<'_, C>, patience: &mut Patience) -> bool {
        loop {
            if self.try_take(side, me) {
                return true;
            }
            if self.is_lost(me, patience) {
                return false;
            }
            me.spin(patience);
        }
    }

    /// Spins, writers one at a time. `false` when we must sleep.
    fn spin<C: Cpu>(&self, side: Side, me: &mut Me<'_, C>) -> bool {
        let mut patience = me.patience();
        match side {
            Side::Reader => self.spin_on_writer(side, me, &mut patience),
            Side::Writer => {
                if self.is_lost(me, &mut patience) || !self.spinners.acquire(me, &mut patience) {
                    return false;
                }
                let ours = self.spin_on_writer(side, me, &mut patience);
                self.spinners.release(me, &mut patience);
                ours
            }
        }
    }

    fn sleep<C: Cpu>(&self, side: Side, me: &mut Me<'_, C>) {
        loop {
            me.announce();
            self.sleepers.add(me.id());
            if self.try_take(side, me) {
                me.cancel();
                break;
            }
            me.halt();
            if self.spin_on_writer(side, me, &mut me.patience()) {
                break;
            }
            if side == Side::Writer {
                self.insisting.add(me.id());
            }
        }
        self.sleepers.remove(me.id());
        self.insisting.remove(me.id());
    }

    fn take<C: Cpu>(&self, side: Side, me: &mut Me<'_, C>) {
        if !self.try_take(side, me) && !self.spin(side, me) {
            self.sleep(side, me);
            if side == Side::Reader {
                self.wake_next(me);
            }
        }
    }

    fn wake_next<C: Cpu>(&self, me: &mut Me<'_, C>) {
        // While a writer insists, no reader could enter.
        let next = self.insisting.longest(me.lot).or_else(|| self.sleepers.longest(me.lot));
        if let Some(next) = next {
            me.wake(next);
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
    const SHARES: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.take(Side::Writer, me);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.writer.store(FREE, Ordering::Relaxed);
        self.count.swap(0, Ordering::SeqCst);
        self.wake_next(me);
    }

    fn acquire_shared<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.take(Side::Reader, me);
    }

    fn release_shared<C: Cpu>(&self, me: &mut Me<'_, C>) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake_next(me);
        }
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use super::super::tests::{Machine, THRESHOLD, Thread};
    use super::*;
    use crate::park::Lot;

    #[test]
    fn readers_are_in_together_and_writers_alone() {
        let (machine, lot, semaphore) = (Machine::new(3), Lot::new(), Rwsem::new());
        let me = |index| Me::new(Thread::new(&machine, VcpuId::new(index).unwrap()), THRESHOLD, &lot);
        let (mut one, mut other, writer) = (me(0), me(1), me(2));
        semaphore.acquire_shared(&mut one);
        semaphore.acquire_shared(&mut other);
        assert!(!semaphore.try_take(Side::Writer, &writer));
        semaphore.release_shared(&mut one);
        assert!(!semaphore.try_take(Side::Writer, &writer));
        semaphore.release_shared(&mut other);
        assert!(semaphore.try_take(Side::Writer, &writer));
        assert!(!semaphore.try_take(Side::Reader, &one));
    }

    #[test]
    fn reader_waits_while_a_writer_insists() {
        let (machine, lot, semaphore) = (Machine::new(1), Lot::new(), Rwsem::new());
        let me = Me::new(Thread::new(&machine, VcpuId::BOOT), THRESHOLD, &lot);
        semaphore.insisting.add(VcpuId::new(1).unwrap());
        assert!(!semaphore.try_take(Side::Reader, &me));
        semaphore.insisting.remove(VcpuId::new(1).unwrap());
        assert!(semaphore.try_take(Side::Reader, &me));
    }
}
