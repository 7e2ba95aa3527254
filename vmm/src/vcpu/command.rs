//! Commands: what a vCPU thread does for others while the guest is paused.
//!
//! A vCPU's registers, its steal-time MSR and its publication belong to its thread. Another thread
//! pauses the guest, sends a command, and receives the answer on a channel.

use std::sync::mpsc;
use std::time::Instant;

use host::stats::ThreadStats;
use kvm_bindings::kvm_regs;
use protocol::VcpuId;
use steal_time::publisher::Counts;
use steal_time::publisher::record::RECORD_SIZE;
use steal_time::saved::SavedVcpu;

use super::ExitCounts;
use crate::error::VmmError;

/// A command to a paused vCPU thread.
#[derive(Debug)]
pub enum VcpuCommand {
    /// Report the vCPU's state.
    Snapshot(mpsc::Sender<VcpuSnapshot>),
    /// Return the vCPU's steal time, to be saved.
    Save(mpsc::Sender<SavedVcpu>),
    /// Replace the vCPU's steal time by a saved one.
    Restore(SavedVcpu, mpsc::Sender<Result<(), VmmError>>),
    /// Read the requests of the control again.
    Resume,
}

/// The state of a paused vCPU.
#[derive(Clone, Debug)]
pub struct VcpuSnapshot {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The steal-time MSR as the guest would read it; `None` where the access would fault.
    pub msr: Option<u64>,
    /// KVM's own copy of that MSR; `None` if KVM does not return it.
    pub kernel_msr: Option<u64>,
    /// The steal-time record; `None` if the guest registered none, or one outside RAM.
    pub record: Option<[u8; RECORD_SIZE]>,
    /// When the vCPU paused.
    pub since: Instant,
    /// The scheduler's statistics of its thread at that moment.
    pub account: Option<ThreadStats>,
    /// Run delay in `account` that is not steal: the thread accrued it while paused (ns).
    pub discarded_ns: u64,
    /// The vCPU's exits so far.
    pub exits: ExitCounts,
    /// Its general purpose registers; `None` if KVM does not return them.
    pub registers: Option<kvm_regs>,
    /// What the publisher counted so far; `None` if no publisher counts.
    pub counts: Option<Counts>,
}
