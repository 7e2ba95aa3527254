//! Locks: one trait, one file each.
//!
//! Each lock waits in three ways (see [`crate::patience`]), and each says in its documentation which vCPU a waiter blames,
//! what it does then, and why nobody sleeps for ever.

mod mutex;
mod osq;
mod tas;
mod ticket;

pub use mutex::Mutex;
pub use tas::Tas;
pub use ticket::Ticket;

use core::ops::Deref;

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::park::Me;

/// A lock.
pub trait Lock: Sync {
    /// Waits until the lock is ours.
    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>);

    /// Lets it go. Only who holds it may call this.
    fn release<C: Cpu>(&self, me: &mut Me<'_, C>);
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

/// A lock word that names its holder: 0, or one more than the vCPU's index.
const FREE: u32 = 0;

fn name_of(vcpu: VcpuId) -> u32 {
    u32::from(vcpu.apic_id()) + 1
}

fn named(word: u32) -> Option<VcpuId> {
    VcpuId::new(usize::try_from(word.checked_sub(1)?).ok()?)
}

#[cfg(test)]
mod tests;
