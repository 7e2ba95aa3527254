//! One entry into the guest, and the emulation that its exit needs.

use devices::{Request, Written};
use host::kick;
use protocol::payload::machine::COM1;
use steal_time::Access;

use super::{Emulated, Vcpu};
use crate::error::VmmError;
use crate::hooks::VcpuEvent;
use crate::vcpu::exit::{self, CrashReason, Exit, PortData};
use crate::vcpu::{Crash, Registers, VcpuExit};

/// What an address without memory reads.
const OPEN_BUS: u8 = 0xff;

impl Vcpu<'_> {
    /// Enters the guest once and handles the exit.
    pub(super) fn run_emulation(&mut self) -> Result<Emulated, VmmError> {
        self.steal_time.before_entry();
        self.enter_guest()
    }

    /// Completes the instruction that caused the last exit, without running the guest any further.
    /// Returns how the guest ended if the instruction ends it.
    pub(super) fn complete_exit(&mut self) -> Result<Option<VcpuExit>, VmmError> {
        self.fd.set_kvm_immediate_exit(1);
        // A string instruction may cause several exits.
        while self.needs_completion {
            if let Emulated::Ended(exit) = self.enter_guest()? {
                return Ok(Some(exit));
            }
        }
        self.fd.set_kvm_immediate_exit(0);
        Ok(None)
    }

    fn enter_guest(&mut self) -> Result<Emulated, VmmError> {
        let vcpu = self.id;
        let exit = exit::run(&mut self.fd).map_err(VmmError::cannot_vcpu("run", vcpu))?;
        self.needs_completion = exit.needs_completion();
        self.has_transmitted = matches!(&exit, Exit::PortOut(PortData { port: COM1, .. }));
        match exit {
            Exit::PortIn(PortData { port, width, data }) => {
                self.exits.port += 1;
                for unit in data.chunks_mut(width) {
                    self.shared.ports.read(port, unit);
                }
            }
            Exit::PortOut(PortData { port, width, data }) => {
                self.exits.port += 1;
                for unit in data.chunks(width) {
                    match self.shared.ports.write(port, unit) {
                        Written::Handled => {}
                        Written::Request(Request::Reset) => return Ok(Emulated::Ended(VcpuExit::Reset)),
                        Written::Request(Request::Exit(status)) => {
                            return Ok(Emulated::Ended(VcpuExit::Exit(status)));
                        }
                        Written::Unclaimed => {
                            if !self.shared.hooks.on_exit(vcpu, port, unit) {
                                self.shared.ports.ignore_write(unit.len());
                            }
                        }
                    }
                }
            }
            Exit::MmioRead(data) => {
                self.exits.mmio += 1;
                data.fill(OPEN_BUS);
            }
            Exit::MmioWrite => self.exits.mmio += 1,
            Exit::MsrRead(msr) => {
                self.exits.msr += 1;
                match self.steal_time.rdmsr(msr.index) {
                    Access::Done(value) => *msr.value = value,
                    Access::Fault => *msr.error = 1,
                }
            }
            Exit::MsrWrite(msr) => {
                self.exits.msr += 1;
                let written = self.steal_time.wrmsr(msr.index, *msr.value);
                match written.map_err(VmmError::publishing(vcpu))? {
                    Access::Done(()) => {}
                    Access::Fault => *msr.error = 1,
                }
            }
            Exit::Interrupted => {
                self.exits.interrupted += 1;
                kick::drain();
                self.steal_time.after_interruption().map_err(VmmError::publishing(vcpu))?;
                self.shared.hooks.on_vcpu_event(vcpu, &self.handle, VcpuEvent::Kicked);
            }
            Exit::Crashed(reason) => return Ok(Emulated::Ended(self.crash(reason))),
        }
        Ok(Emulated::Handled)
    }

    fn crash(&self, reason: CrashReason) -> VcpuExit {
        let registers = self.fd.get_regs().ok().zip(self.fd.get_sregs().ok());
        let registers = registers.map(|(general, system)| Registers { general, system });
        VcpuExit::Crash(Box::new(Crash { reason, registers }))
    }
}
