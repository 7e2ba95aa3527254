//! What a lock needs from the machine.
//!
//! In the payload a [`Cpu`] is a vCPU: the check, `int3` to halt, the local APIC to kick. In tests
//! it is a thread.

use protocol::VcpuId;

use crate::sync::AtomicU32;

/// The CPU that a lock operation runs on.
pub trait Cpu {
    /// Returns the number of this CPU.
    fn id(&self) -> VcpuId;

    /// Returns whether the host has taken `vcpu` off its CPU although it wants to run.
    fn is_preempted(&self, vcpu: VcpuId) -> bool;

    /// Halts until kicked, unless `word` is not `value`. May return at any time without a reason.
    ///
    /// Test and halt are atomic: a kick between them ends the halt.
    fn halt_while(&self, word: &AtomicU32, value: u32);

    /// Ends the present halt of `vcpu`, or its next one.
    fn kick(&self, vcpu: VcpuId);

    /// Asks the host to run `vcpu`, which is preempted, in place of this CPU. Does nothing where
    /// the host does not support it.
    fn yield_to(&self, _vcpu: VcpuId) {}

    /// Records that a halt ended `cycles` after the kick that ended it.
    fn record_wake(&self, _cycles: u64) {}

    /// Returns the time (cycles). All CPUs share the clock. It advances while this CPU does not
    /// run.
    fn cycles(&self) -> u64;

    /// Returns the steal of this CPU so far (cycles), as far as the host publishes it. It never
    /// decreases.
    fn stolen(&self) -> u64;

    /// The longest step of the clock (cycles) that counts as CPU time. After a longer one, this CPU
    /// was off its CPU.
    fn longest_step(&self) -> u64;

    /// Hints to the processor that this is a spin loop.
    fn relax(&self);
}
