//! The vCPU threads of a guest: each prepares its vCPU, runs it, and says what is left of it.
//!
//! However a run ends, all of them are sent home and waited for.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use protocol::VcpuId;

use super::run::{Remains, Vcpu, VcpuError};
use super::{Message, Outbox, Shared};
use crate::boot::{self, Entry};
use crate::cpuid::Supported;
use crate::gate::Gate;
use crate::kick;
use crate::publisher::{MsrOwner, Publisher};
use crate::steal_time::msr::StealTimeMsr;

/// A vCPU thread runs a loop and reads a few files of `/proc`.
const THREAD_STACK: usize = 256 << 10;

/// What every vCPU thread needs.
#[derive(Clone, Debug)]
pub struct Common {
    /// How vCPUs begin.
    pub entry: Entry,
    /// Who answers for the steal-time MSR.
    pub owner: MsrOwner,
    /// What KVM supports in CPUID.
    pub supported: Supported,
    /// What the vCPUs share.
    pub shared: Arc<Shared>,
    /// Who keeps their records true.
    pub publisher: Arc<dyn Publisher>,
}

/// The vCPU threads of one guest.
#[derive(Debug)]
pub struct Threads {
    gate: Arc<Gate>,
    handles: Vec<(VcpuId, JoinHandle<Remains>)>,
}

impl Threads {
    /// None yet. They will stop at `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate, handles: Vec::new() }
    }

    /// Starts the thread of `vcpu`, which enters the guest and sends what happens to `outbox`.
    ///
    /// # Errors
    /// The host's reason for giving no thread.
    pub fn start(&mut self, vcpu: VcpuId, fd: VcpuFd, common: Common, outbox: Outbox) -> io::Result<()> {
        let thread = thread::Builder::new().name(format!("vcpu{vcpu}")).stack_size(THREAD_STACK);
        let handle = thread.spawn(move || live(vcpu, fd, &common, outbox))?;
        self.handles.push((vcpu, handle));
        Ok(())
    }

    /// Sends all of them home, and waits for them.
    pub fn finish(&mut self) -> Vec<(VcpuId, Remains)> {
        self.gate.end();
        self.handles.drain(..).map(|(vcpu, handle)| (vcpu, handle.join().unwrap_or_default())).collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.finish();
    }
}

fn live(vcpu: VcpuId, fd: VcpuFd, common: &Common, outbox: Outbox) -> Remains {
    match prepare(vcpu, &fd, common) {
        Ok(steal_time) => Vcpu::new(vcpu, fd, Arc::clone(&common.shared), steal_time, outbox).run(),
        Err(error) => {
            outbox.send(Message::Failed { vcpu, error });
            Remains::default()
        }
    }
}

/// All that a vCPU needs before it first runs, from its own thread.
fn prepare<'c>(vcpu: VcpuId, fd: &VcpuFd, common: &'c Common) -> Result<StealTimeMsr<'c>, VcpuError> {
    common.shared.cpus.confine_this_thread().map_err(|source| VcpuError::Place { vcpu, source })?;
    kick::open_inside_run(fd).map_err(|source| VcpuError::SignalMask { vcpu, source })?;
    let setup = |source| VcpuError::Setup { vcpu, source };
    fd.set_cpuid2(&common.supported.of_vcpu(vcpu, common.owner)).map_err(setup)?;
    boot::set_registers(fd, vcpu, common.entry).map_err(setup)?;
    let publication = common.publisher.attach(vcpu).map_err(|source| VcpuError::Publish { vcpu, source })?;
    Ok(StealTimeMsr::new(publication))
}
