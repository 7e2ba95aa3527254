//! vCPUs: a thread each, which enters the guest and answers for it when it comes out.
//!
//! - [`threads`]: all of a guest's, from their start to what is left of them.
//! - [`run`]: the thread's life, a loop over three states.
//! - [`exit`]: why the guest was left, parsed once.
//! - [`command`]: what a thread does for others while the guest is paused.
//!
//! How a thread is made to leave the guest, and where it stops, alone or for all: [`host::kick`], [`crate::vcpu::control`].

pub mod command;
pub mod control;
pub mod error;
pub mod exit;
pub mod run;
mod signal_mask;
pub mod threads;

use std::fmt;
use std::sync::{Arc, mpsc};

use devices::PortBus;
use kvm_bindings::{kvm_regs, kvm_sregs};
use protocol::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use crate::hooks::RunHooks;
use crate::vcpu::control::VcpuControl;
use exit::CrashReason;
use host::cpus::Cpus;

/// How a vCPU thread ended the run, or that it was sent home.
#[derive(Debug)]
pub enum VcpuExit {
    /// The guest pulsed the reset line.
    Reset,
    /// The guest wrote this to the exit port.
    Exit(u8),
    /// The guest cannot go on.
    Crash(Box<Crash>),
    /// The run was over.
    Stopped,
}

/// A vCPU that cannot go on, as KVM left it.
#[derive(Debug)]
pub struct Crash {
    /// Why.
    pub reason: CrashReason,
    /// Its registers, where KVM would still tell them.
    pub registers: Option<Registers>,
}

/// A vCPU's registers, to be shown.
#[derive(Debug)]
pub struct Registers {
    /// General purpose registers.
    pub general: kvm_regs,
    /// System registers.
    pub system: kvm_sregs,
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { general: g, system: s } = self;
        writeln!(f, "rip {:016x}  rsp {:016x}  rflags {:08x}", g.rip, g.rsp, g.rflags)?;
        writeln!(f, "rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}", g.rax, g.rbx, g.rcx, g.rdx)?;
        writeln!(f, "rsi {:016x}  rdi {:016x}  rbp {:016x}  r8  {:016x}", g.rsi, g.rdi, g.rbp, g.r8)?;
        writeln!(f, "r9  {:016x}  r10 {:016x}  r11 {:016x}  r12 {:016x}", g.r9, g.r10, g.r11, g.r12)?;
        writeln!(f, "r13 {:016x}  r14 {:016x}  r15 {:016x}", g.r13, g.r14, g.r15)?;
        writeln!(
            f,
            "cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
            s.cr0, s.cr2, s.cr3, s.cr4, s.efer
        )?;
        write!(f, "cs {:04x}  ss {:04x}  gs base {:016x}  ", s.cs.selector, s.ss.selector, s.gs.base)?;
        write!(f, "gdt {:08x}  idt {:08x}", s.gdt.base, s.idt.base)
    }
}

/// What the vCPUs of a guest share.
#[derive(Debug)]
pub struct Shared {
    /// Who answers at a port.
    pub ports: PortBus,
    /// Where their threads stop.
    pub control: Arc<VcpuControl>,
    /// Host CPUs that their threads may use.
    pub cpus: Cpus,
    /// Callbacks of the program that runs the guest.
    pub hooks: Arc<dyn RunHooks>,
}

/// What a vCPU thread tells the event loop.
#[derive(Debug)]
pub enum Message {
    /// The run is over.
    Ended {
        /// By which vCPU.
        vcpu: VcpuId,
        /// How.
        ending: VcpuExit,
    },
    /// A run hook wants the run to end.
    StopRequested,
    /// The monitor failed.
    Failed {
        /// At which vCPU.
        vcpu: VcpuId,
        /// Why.
        error: error::VcpuError,
    },
}

/// The way from a vCPU thread to the event loop.
#[derive(Debug)]
pub struct EventSender {
    messages: mpsc::Sender<Message>,
    wake: EventFd,
}

impl EventSender {
    /// A way that wakes by `wake` whoever receives.
    pub fn new(messages: mpsc::Sender<Message>, wake: EventFd) -> Self {
        Self { messages, wake }
    }

    /// Sends. A loop that has ended needs no message.
    pub fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            // The counter of an eventfd cannot overflow by ones.
            let _ = self.wake.write(1);
        }
    }
}

/// How often a vCPU left the guest, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExitCounts {
    /// Port reads and writes.
    pub port: u64,
    /// Accesses to addresses without memory.
    pub mmio: u64,
    /// Accesses to the steal-time MSR.
    pub msr: u64,
    /// Kicks, and the end of waiting for SIPI.
    pub interrupted: u64,
}
