//! Links: how a queue's members come to know who is behind them.
//!
//! Who enters makes itself the tail, and then writes its name where its predecessor will look. Between the two nobody can
//! name it; the absences that fall in there are counted. Four locks queue so, each with nodes and a tail of its own.

use protocol::VcpuId;

use super::{name_of, named};
use crate::cpu::Cpu;
use crate::park::Me;
use crate::patience::Patience;
use crate::sync::{AtomicU32, Ordering};

/// Enters a queue whose tail `swap_tail` exchanges and whose members look for who is behind them in `next_of`. Whom we are
/// behind, if anybody.
#[inline]
pub(super) fn enter<'q, C: Cpu>(
    me: &mut Me<'_, C>,
    swap_tail: impl FnOnce(u32) -> u32,
    next_of: impl FnOnce(VcpuId) -> &'q AtomicU32,
) -> Option<VcpuId> {
    me.unnamed(|me| {
        let name = name_of(me.id());
        let prev = named(swap_tail(name))?;
        next_of(prev).store(name, Ordering::SeqCst);
        Some(prev)
    })
}

/// Who is behind, after waiting for it to write its name into `next`. Somebody is about to.
#[inline]
pub(super) fn behind<C: Cpu>(next: &AtomicU32, me: &mut Me<'_, C>, patience: &mut Patience) -> VcpuId {
    loop {
        if let Some(next) = named(next.load(Ordering::Acquire)) {
            return next;
        }
        me.spin(patience);
    }
}
