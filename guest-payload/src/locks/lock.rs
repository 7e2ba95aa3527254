//! What all locks share: the trait, and the encoding of a vCPU in a lock word.

use core::ops::Deref;

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::park::LockCtx;

/// A lock.
pub trait Lock: Sync {
    /// Whether a release may choose the next holder. If the chosen vCPU does not run, all others
    /// wait for it.
    const HANDS_OVER: bool;

    /// Whether readers hold the lock together. If not, [`Lock::acquire_shared`] equals
    /// [`Lock::acquire`].
    const HAS_READERS: bool = false;

    /// Waits for the lock and takes it.
    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>);

    /// Releases the lock. The caller must hold it.
    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>);

    /// Waits for the lock and takes it as a reader. The default takes it exclusively.
    fn acquire_shared<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.acquire(ctx);
    }

    /// Releases the lock after [`Lock::acquire_shared`].
    fn release_shared<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        self.release(ctx);
    }
}

/// Keeps a contended word on cache lines of its own.
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A word that names no vCPU. See [`encode`].
pub(crate) const FREE: u32 = 0;

/// Encodes a vCPU for a lock word: one more than its index, so that 0 is free.
pub(crate) fn encode(vcpu: VcpuId) -> u32 {
    u32::from(vcpu.apic_id()) + 1
}

/// Decodes a lock word. `None` means [`FREE`].
pub(crate) fn decode(word: u32) -> Option<VcpuId> {
    VcpuId::new(usize::try_from(word.checked_sub(1)?).ok()?)
}
