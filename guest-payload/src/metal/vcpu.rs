//! A vCPU, as the locks know CPUs.

use core::sync::atomic::AtomicU32;

use guest_payload::check::vcpu_is_preempted;
use guest_payload::cpu::Cpu;
use guest_payload::steal_time::record_of;
use protocol::VcpuId;

use super::{calls, clock, lapic};

/// The vCPU that this runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vcpu {
    /// Which one.
    pub(crate) id: VcpuId,
    /// The clock's rate.
    pub(crate) khz: u32,
}

impl Cpu for Vcpu {
    fn id(&self) -> VcpuId {
        self.id
    }

    #[inline]
    fn is_preempted(&self, vcpu: VcpuId) -> bool {
        vcpu_is_preempted(vcpu)
    }

    fn halt_while(&self, word: &AtomicU32, value: u32) {
        calls::halt_while(word, value);
    }

    fn kick(&self, vcpu: VcpuId) {
        lapic::kick(vcpu);
    }

    #[inline]
    fn cycles(&self) -> u64 {
        clock::now()
    }

    fn stolen(&self) -> u64 {
        clock::cycles(record_of(self.id).steal_ns().unwrap_or(0), self.khz)
    }

    /// A microsecond: a step of ours takes some tens of nanoseconds, and no interruption so little.
    #[inline]
    fn longest_step(&self) -> u64 {
        u64::from(self.khz / 1000)
    }

    #[inline]
    fn relax(&self) {
        core::hint::spin_loop();
    }
}
