//! The commands that a paused vCPU thread runs.

use protocol::kvm::MSR_STEAL_TIME;
use steal_time::kvm_msr;
use steal_time::saved::SavedVcpu;

use super::Vcpu;
use crate::error::VmmError;
use crate::vcpu::command::{VcpuCommand, VcpuSnapshot};

impl Vcpu<'_> {
    pub(super) fn run_command(&mut self, command: VcpuCommand) {
        // The requester may have gone; a failed answer is ignored.
        match command {
            VcpuCommand::Resume => {}
            VcpuCommand::Snapshot(answer) => drop(answer.send(self.snapshot())),
            VcpuCommand::Save(answer) => drop(answer.send(self.steal_time.save(&self.fd))),
            VcpuCommand::Restore(saved, answer) => drop(answer.send(self.restore(saved))),
        }
    }

    fn snapshot(&self) -> VcpuSnapshot {
        VcpuSnapshot {
            vcpu: self.id,
            msr: self.steal_time.msr(&self.fd),
            kernel_msr: kvm_msr::read(&self.fd, MSR_STEAL_TIME),
            record: self.steal_time.record(&self.fd).map(|record| record.bytes()),
            since: self.last_pause.since,
            account: self.last_pause.account,
            discarded_ns: self.last_pause.discarded_ns,
            exits: self.exits,
            registers: self.fd.get_regs().ok(),
            counts: self.steal_time.counts(),
        }
    }

    /// Restores `saved`, whose MSR value is one that a guest may write.
    fn restore(&mut self, saved: SavedVcpu) -> Result<(), VmmError> {
        self.steal_time.restore(&self.fd, saved).map_err(VmmError::publishing(self.id))
    }
}
