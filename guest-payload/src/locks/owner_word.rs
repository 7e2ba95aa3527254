//! A lock word that names its holder from the compare-and-swap that takes it.
//!
//! There is no moment at which the lock is held and no waiter can name the holder.

use protocol::VcpuId;

use super::lock::{FREE, Padded, decode, encode};
use crate::cpu::Cpu;
use crate::park::LockCtx;
use crate::sync::{AtomicU32, Ordering, const_new};

/// A lock word: free, or the holder.
pub(crate) struct OwnerWord(Padded<AtomicU32>);

impl OwnerWord {
    const_new! {
        /// Returns a free word.
        pub(crate) fn new() -> Self {
            Self(Padded(AtomicU32::new(FREE)))
        }
    }

    /// Takes the lock if it is free. Returns whether it did.
    #[inline]
    pub(crate) fn try_lock<C: Cpu>(&self, ctx: &LockCtx<'_, C>) -> bool {
        self.0.load(Ordering::Relaxed) == FREE
            && self.0.compare_exchange(FREE, encode(ctx.id()), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Returns the holder.
    #[inline]
    pub(crate) fn holder(&self) -> Option<VcpuId> {
        decode(self.0.load(Ordering::SeqCst))
    }

    /// Releases the lock. The exchange is a full barrier: the release precedes the look at parked
    /// waiters.
    #[inline]
    pub(crate) fn unlock(&self) {
        self.0.swap(FREE, Ordering::SeqCst);
    }
}
