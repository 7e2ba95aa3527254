//! The locks of the lab in a model checker, with the harness of [`crate::locks::models`].

use std::sync::Arc;

use super::{
    Cull, Malthusian, Mcs, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem, Variant, Virt,
};
use crate::cpu::Cpu;
use crate::locks::Lock;
#[cfg(feature = "shuttle")]
use crate::locks::models::checker;
use crate::locks::models::each_lock;
use crate::park::LockCtx;

each_lock! {
    virt_excludes_and_loses_no_wake_up: Virt::new(), false;
    preemptable_excludes_and_loses_no_wake_up: Preemptable::new(), false;
    pv_ticket_excludes_loses_no_wake_up_and_keeps_order: PvTicket::new(), true;
    mcs_excludes_loses_no_wake_up_and_keeps_order: Mcs::new(), true;
    qspin_excludes_loses_no_wake_up_and_keeps_order: Qspin::new(), true;
    pvq_excludes_loses_no_wake_up_and_keeps_order: Pvq::new(Variant::Plain), true;
    pvq_steal_excludes_and_loses_no_wake_up: Pvq::new(Variant::Steal), false;
    pvq_hybrid_excludes_and_loses_no_wake_up: Pvq::new(Variant::Hybrid), false;
    pvq_state_excludes_and_loses_no_wake_up: Pvq::new(Variant::State), false;
    pvq_byte_excludes_and_loses_no_wake_up: Pvq::new(Variant::Byte), false;
    rwsem_excludes_and_loses_no_wake_up: Rwsem::new(), false;
    owner_queue_excludes_and_loses_no_wake_up: OwnerQueue::new(), false;
    malthusian_excludes_and_loses_no_wake_up: Malthusian::new(), false;
    cull_excludes_and_loses_no_wake_up: Cull::new(), false;
}

/// A schedule in which one who counts himself for a sleeper that he then does not find is taken for
/// a contender by the last to leave: sleepers stayed behind a free lock.
#[cfg(feature = "shuttle")]
#[test]
fn cull_takes_nobody_for_a_contender_who_is_none() {
    checker::check_once(Cull::new, 6_778_116_418_438_103_887);
}

/// A [`PvQspin`] that owns its state.
struct Pvq(Arc<PvState>, Variant);

impl Pvq {
    fn new(variant: Variant) -> Self {
        Self(Arc::new(PvState::new()), variant)
    }
}

impl Lock for Pvq {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        PvQspin::new(&self.0, self.1).acquire(ctx);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        PvQspin::new(&self.0, self.1).release(ctx);
    }
}
