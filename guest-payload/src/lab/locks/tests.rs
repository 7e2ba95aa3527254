//! The locks of the lab on threads, with the harness of [`crate::locks::tests`].

use super::{
    Cull, Malthusian, Mcs, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem, Variant, Virt,
};
use crate::locks::tests::each_lock_excludes_and_wakes;

each_lock_excludes_and_wakes! {
    virt_excludes_and_wakes_with_random_preempted: Virt::new();
    preemptable_excludes_and_wakes_with_random_preempted: Preemptable::new();
    pv_ticket_excludes_and_wakes_with_random_preempted: PvTicket::new();
    mcs_excludes_and_wakes_with_random_preempted: Mcs::new();
    qspin_excludes_and_wakes_with_random_preempted: Qspin::new();
    pvq_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Plain);
    pvq_steal_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Steal);
    pvq_hybrid_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Hybrid);
    pvq_state_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::State);
    pvq_byte_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Byte);
    rwsem_excludes_and_wakes_with_random_preempted: Rwsem::new();
    owner_queue_excludes_and_wakes_with_random_preempted: OwnerQueue::new();
    malthusian_excludes_and_wakes_with_random_preempted: Malthusian::new();
    cull_excludes_and_wakes_with_random_preempted: Cull::new();
}
