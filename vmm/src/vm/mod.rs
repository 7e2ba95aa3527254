//! A running virtual machine: KVM's objects, the vCPU threads, and steal time.
//!
//! It can be paused ([`Vm::pause`]). While it is paused, no vCPU is inside the guest, every
//! emulated instruction is complete, and no record is written. Each `preempted` is 0: a thread that
//! sleeps is not preempted. Methods that need a paused machine take the proof, [`Paused`].

pub mod host_vm;
pub mod machine;

use std::sync::Arc;

use host::kick::KickHandle;
use protocol::VcpuId;
use steal_time::StealTime;
use steal_time::host_vm::HostVm;
use steal_time::publisher::record::GuestRecord;
use steal_time::publisher::{MsrOwner, Publisher};
use steal_time::saved::SavedStealTime;

use crate::error::VmmError;
use crate::vcpu::command::{VcpuCommand, VcpuSnapshot};
use crate::vcpu::control::{AlreadyPaused, VcpuControl};
use crate::vcpu::run::VcpuStats;
use crate::vcpu::threads::Threads;
use host_vm::GuestVm;
use machine::Machine;

/// Proof that a machine is paused. [`Vm::resume`] consumes it.
#[derive(Debug)]
#[must_use = "the machine stays paused until it is resumed"]
pub struct Paused(());

impl Paused {
    /// Creates the proof for a machine whose control is [`VcpuControl::paused`].
    pub(crate) fn from_the_start() -> Self {
        Self(())
    }
}

/// A virtual machine whose vCPU threads run.
#[derive(Debug)]
pub struct Vm {
    /// Dropped first: the threads use everything else.
    threads: Threads,
    control: Arc<VcpuControl>,
    steal_time: StealTime,
    machine: Machine,
}

impl Vm {
    /// Creates a virtual machine from its started `threads`, which `control` controls.
    pub fn new(machine: Machine, control: Arc<VcpuControl>, steal_time: StealTime, threads: Threads) -> Self {
        Self { threads, control, steal_time, machine }
    }

    /// Returns KVM's objects.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Pauses the machine, and returns when every vCPU is paused. The guest's clocks go on; the
    /// time is not steal.
    ///
    /// # Errors
    /// [`AlreadyPaused`].
    pub fn pause(&self) -> Result<Paused, AlreadyPaused> {
        self.control.pause().map(|()| Paused(()))
    }

    /// Resumes the machine. KVM reports the pause to a guest that uses kvmclock.
    pub fn resume(&self, _paused: Paused) {
        self.control.resume();
        self.threads.resume();
    }

    /// Deschedules `vcpu`: it stops running until [`schedule`](Self::schedule), `preempted` is set,
    /// and the time is steal. Returns whether there is such a vCPU.
    ///
    /// Returns at once; the vCPU leaves the guest a moment later.
    pub fn deschedule(&self, vcpu: VcpuId) -> bool {
        self.control.deschedule(vcpu)
    }

    /// Lets `vcpu` run again.
    pub fn schedule(&self, vcpu: VcpuId) {
        self.control.schedule(vcpu);
    }

    /// Returns the publisher of the steal-time records.
    pub fn publisher(&self) -> &dyn Publisher {
        self.steal_time.publisher()
    }

    /// Returns how many vCPUs were started.
    pub fn vcpu_count(&self) -> usize {
        self.threads.count()
    }

    /// Returns whether a vCPU thread has ended: the guest has ended, or the thread has failed.
    pub fn has_ended(&self) -> bool {
        self.threads.has_ended()
    }

    /// Returns the control of the vCPU threads.
    pub fn control(&self) -> &Arc<VcpuControl> {
        &self.control
    }

    /// Returns the machine as the steal-time library sees it.
    pub fn host_vm(&self) -> Arc<dyn HostVm> {
        Arc::new(GuestVm::new(self.machine.ram().clone(), Arc::clone(&self.control)))
    }

    /// Returns the record at `gpa`; `None` if `gpa` is misaligned or outside RAM.
    pub fn record(&self, gpa: u64) -> Option<GuestRecord> {
        GuestRecord::at(&self.host_vm(), gpa)
    }

    /// Returns the threads of the vCPUs that have not ended.
    pub fn threads(&self) -> Vec<(VcpuId, KickHandle)> {
        self.control.threads()
    }

    /// Returns the steal time of all vCPUs, to be saved beside guest memory.
    ///
    /// # Errors
    /// [`VmmError::VcpuEnded`].
    pub fn save_steal_time(&self, _paused: &Paused) -> Result<SavedStealTime, VmmError> {
        let saved = self.threads.command(|_, answer| VcpuCommand::Save(answer));
        let vcpus = saved.into_iter().map(|(vcpu, saved)| saved.ok_or(VmmError::VcpuEnded(vcpu)));
        Ok(self.steal_time.saved(vcpus.collect::<Result<_, _>>()?))
    }

    /// Restores the steal time of all vCPUs. Guest memory already holds the saved records.
    ///
    /// Afterwards each record is up to date: steal goes on from at least the saved value, and
    /// `preempted` is 0.
    ///
    /// # Errors
    /// [`VmmError::Publisher`] if `saved` does not fit; nothing has changed then.
    /// [`VmmError::Publish`] or [`VmmError::VcpuEnded`] for a vCPU that cannot restore its part.
    pub fn restore_steal_time(&self, _paused: &Paused, saved: &SavedStealTime) -> Result<(), VmmError> {
        let has_msr = self.steal_time.owner() != MsrOwner::Absent;
        saved.check(self.threads.count(), has_msr)?;
        let mut vcpus = saved.vcpus.iter().copied();
        let restored =
            self.threads.command(|_, answer| VcpuCommand::Restore(vcpus.next().unwrap_or_default(), answer));
        for (vcpu, restored) in restored {
            restored.ok_or(VmmError::VcpuEnded(vcpu))??;
        }
        Ok(())
    }

    /// Returns the state of each vCPU that has not ended.
    pub fn snapshot(&self, _paused: &Paused) -> Vec<VcpuSnapshot> {
        let snapshots = self.threads.command(|_, answer| VcpuCommand::Snapshot(answer));
        snapshots.into_iter().filter_map(|(_, snapshot)| snapshot).collect()
    }

    /// Ends the vCPU threads, paused or not. Returns the statistics of each vCPU.
    pub fn finish(&mut self) -> Vec<(VcpuId, VcpuStats)> {
        self.threads.finish()
    }
}
