//! What a lock needs of the machine it runs on.
//!
//! On the metal this is a vCPU: the check, `int3` to halt, the local APIC to kick. In tests it is a thread.

use protocol::VcpuId;

use crate::sync::AtomicU32;

/// A CPU, as the locks see the one they run on.
pub trait Cpu {
    /// Which one this is.
    fn id(&self) -> VcpuId;

    /// Whether the host has taken `vcpu` off its CPU although it wants to run.
    fn is_preempted(&self, vcpu: VcpuId) -> bool;

    /// Halts until kicked, unless `word` is not `value` (any more); may return at any time, for no reason.
    ///
    /// The test and the halt are one: a kick that comes between them ends the halt.
    fn halt_while(&self, word: &AtomicU32, value: u32);

    /// Ends a halt of `vcpu`, or the next one.
    fn kick(&self, vcpu: VcpuId);

    /// Offers this CPU to `vcpu`, which the host has taken off its own: the host runs that one in our place for a moment, if
    /// it knows how. Where it does not, nothing happens.
    fn yield_to(&self, _vcpu: VcpuId) {}

    /// Takes note that a halt ended so many cycles after the kick that ended it.
    fn record_wake(&self, _cycles: u64) {}

    /// A clock in cycles, the same for all CPUs. It goes on while this CPU does not run.
    fn cycles(&self) -> u64;

    /// Cycles, so far, for which this CPU wanted to run and could not, as far as its host tells. It never shrinks.
    fn stolen(&self) -> u64;

    /// Cycles after which a step of the clock is not ours: this CPU was not running meanwhile.
    fn longest_step(&self) -> u64;

    /// Tells the processor that this is a spin loop.
    fn relax(&self);
}
