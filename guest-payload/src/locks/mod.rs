//! Locks: one trait, one file each.
//!
//! Each says in its documentation which kernel or paper it follows and what differs, which vCPU a waiter blames, what it
//! does when it gives up (see [`crate::patience`]), and why nobody sleeps for ever.
//!
//! | no order | in order | in order, loosely | a set of active waiters |
//! |---|---|---|---|
//! | [`Tas`], [`Virt`] | [`Ticket`], [`PvTicket`], [`Mcs`], [`Qspin`] | [`Preemptable`], [`PvQspin`], [`OwnerQueue`], [`Mutex`], [`Rwsem`] | [`Cull`], [`Malthusian`] |

mod cull;
mod links;
mod malthusian;
mod mcs;
mod mutex;
mod osq;
mod owner_queue;
mod owner_word;
mod preemptable;
mod pv_qspin;
mod pv_ticket;
mod qspin;
mod rwsem;
mod tas;
mod ticket;
mod virt;

pub use cull::Cull;
pub use malthusian::Malthusian;
pub use mcs::Mcs;
pub use mutex::Mutex;
pub use owner_queue::OwnerQueue;
pub use preemptable::Preemptable;
pub use pv_qspin::{PvQspin, PvState, Variant};
pub use pv_ticket::PvTicket;
pub use qspin::Qspin;
pub use rwsem::Rwsem;
pub use tas::Tas;
pub use ticket::Ticket;
pub use virt::Virt;

use core::ops::Deref;

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::park::Me;

/// A lock.
pub trait Lock: Sync {
    /// Whether a release can choose who has the lock next. Whoever is chosen, and not running, keeps everybody waiting.
    const HANDS_OVER: bool;

    /// Whether readers are let in together. For others [`Lock::acquire_shared`] is the same as [`Lock::acquire`].
    const SHARES: bool = false;

    /// Waits until the lock is ours.
    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>);

    /// Lets it go. Only who holds it may call this.
    fn release<C: Cpu>(&self, me: &mut Me<'_, C>);

    /// Waits until the lock is ours, or ours and other readers'. Most locks know no readers.
    fn acquire_shared<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.acquire(me);
    }

    /// Lets go what [`Lock::acquire_shared`] gave.
    fn release_shared<C: Cpu>(&self, me: &mut Me<'_, C>) {
        self.release(me);
    }
}

/// Keeps what everybody writes on cache lines of its own.
#[repr(align(128))]
struct Padded<T>(T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A word that names nobody. Otherwise it is one more than a vCPU's index.
const FREE: u32 = 0;

fn name_of(vcpu: VcpuId) -> u32 {
    u32::from(vcpu.apic_id()) + 1
}

fn named(word: u32) -> Option<VcpuId> {
    VcpuId::new(usize::try_from(word.checked_sub(1)?).ok()?)
}

#[cfg(test)]
#[cfg(modelled)]
mod models;
#[cfg(test)]
#[cfg(not(modelled))]
mod tests;
