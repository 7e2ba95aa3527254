//! How members of a queue learn their successors.
//!
//! A vCPU that enters first swaps the tail, then writes its name where its predecessor looks. In
//! between no other vCPU can name it; absences there are counted. Three queues use this, each with
//! its own nodes.

use protocol::VcpuId;

use crate::cpu::Cpu;
use crate::locks::{decode, encode};
use crate::park::LockCtx;
use crate::spin_wait::SpinWait;
use crate::sync::{AtomicU32, Ordering};

/// Enters a queue: exchanges the tail by `swap_tail`, and links the caller into `next_of` its
/// predecessor. Returns the predecessor, if there is one.
#[inline]
pub(super) fn enter<'q, C: Cpu>(
    ctx: &mut LockCtx<'_, C>,
    swap_tail: impl FnOnce(u32) -> u32,
    next_of: impl FnOnce(VcpuId) -> &'q AtomicU32,
) -> Option<VcpuId> {
    ctx.count_unnamed(|ctx| {
        let name = encode(ctx.id());
        let prev = decode(swap_tail(name))?;
        next_of(prev).store(name, Ordering::SeqCst);
        Some(prev)
    })
}

/// Returns the successor, after waiting for it to write its name into `next`.
#[inline]
pub(super) fn wait_for_next<C: Cpu>(
    next: &AtomicU32,
    ctx: &mut LockCtx<'_, C>,
    wait: &mut SpinWait,
) -> VcpuId {
    loop {
        if let Some(next) = decode(next.load(Ordering::Acquire)) {
            return next;
        }
        ctx.spin(wait);
    }
}
