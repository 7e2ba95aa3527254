//! Errands: what a vCPU's thread does for others while it rests.
//!
//! The MSR and the publication of a vCPU live on its own thread, and so do its registers. Whoever wants something of them
//! pauses the guest, and sends the thread an command with a way to answer.

use std::sync::mpsc;
use std::time::Instant;

use kvm_bindings::kvm_regs;
use protocol::VcpuId;

use super::ExitCounts;
use super::error::VcpuError;
use host::stats::ThreadStats;
use steal_time::publisher::Counts;
use steal_time::publisher::record::RECORD_SIZE;
use steal_time::saved::SavedVcpu;

/// What a resting thread is asked for.
#[derive(Debug)]
pub enum VcpuCommand {
    /// To tell what there is to see.
    Snapshot(mpsc::Sender<VcpuSnapshot>),
    /// To tell its steal time.
    Save(mpsc::Sender<SavedVcpu>),
    /// To take this for its steal time.
    Restore(SavedVcpu, mpsc::Sender<Result<(), VcpuError>>),
    /// To look at the gate again.
    Resume,
}

/// A vCPU at rest, as its thread sees it.
#[derive(Clone, Debug)]
pub struct VcpuSnapshot {
    /// Which.
    pub vcpu: VcpuId,
    /// The steal-time MSR as the guest would read it; `None` where it would fault.
    pub msr: Option<u64>,
    /// KVM's own copy of it; `None` where KVM does not tell.
    pub kernel_msr: Option<u64>,
    /// Its record, if it has one in RAM.
    pub record: Option<[u8; RECORD_SIZE]>,
    /// When it began to rest.
    pub since: Instant,
    /// The scheduler's account of its thread at that moment.
    pub account: ThreadStats,
    /// How much of that account's run delay is no affair of the guest's: the thread waited at rest, to run commands (ns).
    pub discarded_ns: u64,
    /// Its exits so far.
    pub exits: ExitCounts,
    /// Its general purpose registers; `None` where KVM does not tell.
    pub registers: Option<kvm_regs>,
    /// What the publisher has counted so far; `None` where nobody counts.
    pub counts: Option<Counts>,
}
