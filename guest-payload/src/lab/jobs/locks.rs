//! Selects the lock and the check of [`contend`] from all that there are.

use guest_payload::check::{Check, Save0};
use guest_payload::lab::check_forms::{Call, Inline, Pointer, Save1, Save2, Thunk};
use guest_payload::lab::locks::{
    Cull, Malthusian, Mcs, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem, Variant, Virt,
};
use protocol::payload::params::{self, Lock};

use crate::jobs::contend::{self, Contended, LOCKS, contend_for};
use crate::jobs::frame::Part;

/// Runs [`contend`] with the check and the lock of the workload.
pub(crate) fn run(part: Part) {
    match part.workload.check {
        params::Check::Thunk => run_with::<Thunk>(part),
        params::Check::Call => run_with::<Call>(part),
        params::Check::Save2 => run_with::<Save2>(part),
        params::Check::Save1 => run_with::<Save1>(part),
        params::Check::Save0 => run_with::<Save0>(part),
        params::Check::Inline => run_with::<Inline>(part),
        params::Check::Pointer => run_with::<Pointer>(part),
    }
}

fn run_with<K: Check>(part: Part) {
    match part.workload.lock {
        Lock::Tas | Lock::Ticket | Lock::Mutex => contend::run_core::<K>(part),
        Lock::Virt => contend_for!(K, part, Virt),
        Lock::Preemptable => contend_for!(K, part, Preemptable),
        Lock::PvTicket => contend_for!(K, part, PvTicket),
        Lock::Mcs => contend_for!(K, part, Mcs),
        Lock::Qspin => contend_for!(K, part, Qspin),
        Lock::PvqPlain => run_pv_qspin::<K>(part, Variant::Plain),
        Lock::PvqSteal => run_pv_qspin::<K>(part, Variant::Steal),
        Lock::PvqHybrid => run_pv_qspin::<K>(part, Variant::Hybrid),
        Lock::PvqState => run_pv_qspin::<K>(part, Variant::State),
        Lock::PvqPreempted => run_pv_qspin::<K>(part, Variant::Preempted),
        Lock::Rwsem => contend_for!(K, part, Rwsem),
        Lock::OwnerQueue => contend_for!(K, part, OwnerQueue),
        Lock::Malthusian => contend_for!(K, part, Malthusian),
        Lock::Cull => contend_for!(K, part, Cull),
    }
}

fn run_pv_qspin<K: Check>(part: Part, variant: Variant) {
    static STATES: [PvState; LOCKS] = [const { PvState::new() }; LOCKS];
    let locks = STATES.each_ref().map(|state| PvQspin::new(state, variant));
    contend::run::<K>(part, locks.each_ref().map(|lock| lock as &dyn Contended<K>));
}
