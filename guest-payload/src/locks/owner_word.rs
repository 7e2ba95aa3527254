//! A lock word that names its holder, from the very compare-and-swap that takes it.
//!
//! So there is no moment at which the lock is held and nobody can say by whom.

use protocol::VcpuId;

use super::{FREE, Padded, name_of, named};
use crate::cpu::Cpu;
use crate::park::Me;
use crate::sync::{AtomicU32, Ordering, maker};

/// See the module.
pub(super) struct OwnerWord(Padded<AtomicU32>);

impl OwnerWord {
    maker! {
        /// Nobody's.
        pub(super) fn new() -> Self {
            Self(Padded(AtomicU32::new(FREE)))
        }
    }

    /// Takes it, if it is nobody's.
    #[inline]
    pub(super) fn try_take<C: Cpu>(&self, me: &Me<'_, C>) -> bool {
        self.0.load(Ordering::Relaxed) == FREE
            && self.0.compare_exchange(FREE, name_of(me.id()), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Whose it is.
    #[inline]
    pub(super) fn holder(&self) -> Option<VcpuId> {
        named(self.0.load(Ordering::SeqCst))
    }

    /// Lets it go. A full barrier: it is nobody's before we look who is parked.
    #[inline]
    pub(super) fn let_go(&self) {
        self.0.swap(FREE, Ordering::SeqCst);
    }
}
