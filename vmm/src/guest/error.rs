//! Why a guest could not be run.

use std::io;

use protocol::{MAX_VCPUS, VcpuId};

use crate::event_loop::EventLoopError;
use crate::loader::LoadError;
use crate::memory::MemoryError;
use crate::supervise::ProgressError;
use crate::vcpu::error::VcpuError;
use crate::vm::machine::MachineError;
use steal_time::publisher::StealTimeError;

/// A guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The number of vCPUs is out of range.
    #[error("A guest has 1 to {MAX_VCPUS} vCPUs, and {0} were asked for")]
    VcpuCount(usize),
    /// PublisherLoading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The virtual machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The publisher.
    #[error(transparent)]
    Publisher(#[from] StealTimeError),
    /// The event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The guest, on its way.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// Standard input.
    #[error("Cannot connect standard input to the guest's COM1 (try </dev/null)")]
    Console(#[source] io::Error),
    /// The kick signal.
    #[error("Cannot block the kick signal")]
    Kick(#[source] io::Error),
    /// No more threads.
    #[error("Cannot start a thread for vCPU {vcpu} (is the limit on processes reached?)")]
    Thread {
        /// Whose.
        vcpu: VcpuId,
        /// The host's reason.
        source: io::Error,
    },
    /// The bus. A defect of ours.
    #[error(transparent)]
    Bus(#[from] devices::BusError),
}

impl GuestError {
    /// Whether the user asked for something that makes no sense, rather than the host refusing it.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::VcpuCount(_)
                | Self::Memory(MemoryError::Size(_))
                | Self::Machine(MachineError::TooManyVcpus { .. })
        )
    }
}

impl GuestError {
    /// Whether this host refuses the publisher that was asked for.
    pub fn is_of_the_publisher(&self) -> bool {
        matches!(self, Self::Publisher(_) | Self::Progress(ProgressError::Vcpu(VcpuError::Publish { .. })))
    }
}
