//! The virtual machine under way: KVM's side of it, the threads of its vCPUs, and who publishes for them.
//!
//! It can be made to stand still ([`Vm::pause`]). Then no vCPU is in the guest, every instruction that the monitor had a
//! part in is complete, nothing is written to any record, and each byte is 0: the threads sleep, and a thread that sleeps
//! has not lost its CPU to anybody. What is only to be had while it stands still takes the proof of that, [`Paused`].

pub mod host_vm;
pub mod machine;

use std::sync::Arc;

use protocol::VcpuId;

use crate::vcpu::command::{VcpuCommand, VcpuSnapshot};
use crate::vcpu::control::{AlreadyPaused, VcpuControl};
use crate::vcpu::error::VcpuError;
use crate::vcpu::run::VcpuStats;
use crate::vcpu::threads::Threads;
use host::kick::KickHandle;
use host_vm::GuestVm;
use machine::Machine;
use steal_time::host_vm::HostVm;
use steal_time::publisher::record::GuestRecord;
use steal_time::publisher::{MsrOwner, Publisher};
use steal_time::saved::{SavedError, SavedStealTime};
use steal_time::vm::StealTime;

/// Proof that a machine stands still, until it is resumed with it.
#[derive(Debug)]
#[must_use = "the machine stands still until it is resumed"]
pub struct Paused(());

impl Paused {
    /// The proof for a machine whose gate was made by [`VcpuControl::paused`].
    pub(crate) fn from_the_start() -> Self {
        Self(())
    }
}

/// The state of a machine cannot be had, or not be set.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A vCPU has ended the run, or failed.
    #[error("vCPU {0} has ended, and its state with it")]
    Ended(VcpuId),
    /// What was saved does not belong here.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A vCPU cannot take it.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// See the module.
#[derive(Debug)]
pub struct Vm {
    /// They end first: they use all else.
    threads: Threads,
    control: Arc<VcpuControl>,
    steal_time: StealTime,
    machine: Machine,
}

impl Vm {
    /// A machine whose vCPUs' threads are started, and stop at `gate`.
    pub fn new(machine: Machine, control: Arc<VcpuControl>, steal_time: StealTime, threads: Threads) -> Self {
        Self { threads, control, steal_time, machine }
    }

    /// KVM's side of it.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Makes it stand still, and waits until it does. Time passes for the guest all the same, and none of it is steal.
    ///
    /// # Errors
    /// [`AlreadyPaused`].
    pub fn pause(&self) -> Result<Paused, AlreadyPaused> {
        self.control.pause().map(|()| Paused(()))
    }

    /// Lets it go on. A guest that keeps time by kvmclock finds noted there that it was paused.
    pub fn resume(&self, _paused: Paused) {
        self.control.resume();
        self.threads.resume();
    }

    /// Who publishes for it.
    pub fn publisher(&self) -> &dyn Publisher {
        self.steal_time.publisher()
    }

    /// Keeps `vcpu` from running, until it is released. Its byte is set, and the time is steal. Says whether there is such
    /// a vCPU. It takes a moment: the thread leaves the guest first.
    pub fn deschedule(&self, vcpu: VcpuId) -> bool {
        self.control.deschedule(vcpu)
    }

    /// Lets `vcpu` run again.
    pub fn schedule(&self, vcpu: VcpuId) {
        self.control.schedule(vcpu);
    }

    /// How many vCPUs were started.
    pub fn vcpu_count(&self) -> usize {
        self.threads.count()
    }

    /// Control of its vCPUs' threads.
    pub fn control(&self) -> &Arc<VcpuControl> {
        &self.control
    }

    /// The machine as the steal-time library sees it.
    pub fn host_vm(&self) -> Arc<dyn HostVm> {
        Arc::new(GuestVm::new(self.machine.ram().clone(), Arc::clone(&self.control)))
    }

    /// The record at `gpa`; `None` if `gpa` is misaligned or outside RAM.
    pub fn record(&self, gpa: u64) -> Option<GuestRecord> {
        GuestRecord::at(&self.host_vm(), gpa)
    }

    /// The threads of the vCPUs that have not ended.
    pub fn threads(&self) -> Vec<(VcpuId, KickHandle)> {
        self.control.threads()
    }

    /// The steal time of all vCPUs, to be saved beside guest memory.
    ///
    /// # Errors
    /// [`StateError::Ended`].
    pub fn save_steal_time(&self, _paused: &Paused) -> Result<SavedStealTime, StateError> {
        let saved = self.threads.ask(|_, answer| VcpuCommand::Save(answer));
        let vcpus = saved.into_iter().map(|(vcpu, saved)| saved.ok_or(StateError::Ended(vcpu)));
        Ok(self.steal_time.saved(vcpus.collect::<Result<_, _>>()?))
    }

    /// Takes `saved` for the steal time of all vCPUs. Guest memory holds what was saved of it already.
    ///
    /// Each record is true when this returns: steal is no less than it was, and goes on from there; the byte is 0.
    ///
    /// # Errors
    /// [`StateError`]. Unless a vCPU could not take it, nothing has changed then.
    pub fn restore_steal_time(&self, _paused: &Paused, saved: &SavedStealTime) -> Result<(), StateError> {
        let exists = self.steal_time.owner() != MsrOwner::Nobody;
        saved.check(self.threads.count(), exists)?;
        let mut vcpus = saved.vcpus.iter().copied();
        let restored =
            self.threads.ask(|_, answer| VcpuCommand::Restore(vcpus.next().unwrap_or_default(), answer));
        for (vcpu, restored) in restored {
            restored.ok_or(StateError::Ended(vcpu))??;
        }
        Ok(())
    }

    /// What there is to see of each vCPU that has not ended.
    pub fn snapshot(&self, _paused: &Paused) -> Vec<VcpuSnapshot> {
        let looks = self.threads.ask(|_, answer| VcpuCommand::Snapshot(answer));
        looks.into_iter().filter_map(|(_, look)| look).collect()
    }

    /// Sends the threads home, whether it stands still or not, and gives what is left of each vCPU.
    pub fn finish(&mut self) -> Vec<(VcpuId, VcpuStats)> {
        self.threads.finish()
    }
}
