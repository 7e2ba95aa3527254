//! The vCPU, as the [`Cpu`] that the locks see.

use core::marker::PhantomData;

use guest_payload::check::Check;
use guest_payload::cpu::Cpu;
use guest_payload::steal_time::record_of;
use guest_payload::sync::AtomicU32;
use protocol::VcpuId;

use super::entry::REPORT;
use super::{calls, clock, hints, lapic, ports};

/// The present vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vcpu {
    /// The number of the vCPU.
    pub(crate) id: VcpuId,
    /// Rate of the clock (kHz).
    pub(crate) khz: u32,
}

/// The present vCPU with the form `K` of the check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockCpu<K>(pub(crate) Vcpu, pub(crate) PhantomData<K>);

impl Vcpu {
    /// A microsecond (cycles). An iteration takes some tens of ns, and an interruption more than 1
    /// us.
    #[inline]
    pub(crate) fn longest_step(self) -> u64 {
        u64::from(self.khz / 1000)
    }
}

impl<K: Check> Cpu for LockCpu<K> {
    fn id(&self) -> VcpuId {
        self.0.id
    }

    #[inline]
    fn is_preempted(&self, vcpu: VcpuId) -> bool {
        K::is_preempted(vcpu)
    }

    fn halt_while(&self, word: &AtomicU32, value: u32) {
        hints::halting(self.0.id);
        calls::halt_while(word, value);
        hints::woken(self.0.id);
    }

    fn kick(&self, vcpu: VcpuId) {
        hints::woken(vcpu);
        lapic::kick(vcpu);
    }

    fn yield_to(&self, vcpu: VcpuId) {
        if !hints::yield_to(self.0.id, vcpu) {
            ports::yield_to(vcpu);
        }
    }

    fn record_wake(&self, cycles: u64) {
        REPORT.vcpus[self.0.id.index()].record_wake(cycles);
    }

    #[inline]
    fn cycles(&self) -> u64 {
        clock::now()
    }

    fn stolen(&self) -> u64 {
        clock::cycles(record_of(self.0.id).steal_ns().unwrap_or(0), self.0.khz)
    }

    #[inline]
    fn longest_step(&self) -> u64 {
        self.0.longest_step()
    }

    #[inline]
    fn relax(&self) {
        core::hint::spin_loop();
    }
}
