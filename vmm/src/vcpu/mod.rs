//! vCPUs: one thread each, which enters the guest and handles its exits.
//!
//! - [`threads`]: starts, commands and joins the vCPU threads of a guest.
//! - [`run`]: the run loop of a vCPU thread, a state machine.
//! - [`exit`]: why a vCPU left the guest, parsed once.
//! - [`command`]: what a vCPU thread does for others while the guest is paused.
//! - [`control`]: how vCPU threads are stopped, paused, descheduled and finished.
//!
//! [`host::kick`] makes a vCPU thread leave the guest.

pub mod command;
pub mod control;
pub mod exit;
pub mod run;
mod signal_mask;
pub mod threads;

use std::fmt;
use std::sync::{Arc, mpsc};

use devices::PortBus;
use host::cpus::Cpus;
use kvm_bindings::{kvm_regs, kvm_sregs};
use protocol::VcpuId;
use vmm_sys_util::eventfd::EventFd;

use crate::console::OutputBuffer;
use crate::error::VmmError;
use crate::hooks::RunHooks;
use control::VcpuControl;
use exit::CrashReason;

/// How a vCPU's run ended.
#[derive(Debug)]
pub enum VcpuExit {
    /// The guest pulsed the reset line.
    Reset,
    /// The guest wrote this status to the exit port.
    Exit(u8),
    /// The guest cannot go on.
    Crash(Box<Crash>),
    /// The monitor ended the run.
    Stopped,
}

/// A vCPU that cannot go on.
#[derive(Debug)]
pub struct Crash {
    /// The reason that KVM gave.
    pub reason: CrashReason,
    /// The vCPU's registers; `None` if KVM does not return them.
    pub registers: Option<Registers>,
}

/// The registers of a vCPU, formatted as a register dump.
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

/// What the vCPU threads of a guest share.
#[derive(Debug)]
pub struct Shared {
    /// The devices in port space.
    pub ports: PortBus,
    /// What COM1 transmitted and the console has not taken yet.
    pub output: Arc<OutputBuffer>,
    /// The control of the vCPU threads.
    pub control: Arc<VcpuControl>,
    /// Host CPUs that the vCPU threads may use.
    pub cpus: Cpus,
    /// Callbacks of the program that runs the guest.
    pub hooks: Arc<dyn RunHooks>,
}

/// A message to the event loop.
#[derive(Debug)]
pub enum Message {
    /// A vCPU ended the run.
    Ended {
        /// The vCPU.
        vcpu: VcpuId,
        /// How its run ended.
        exit: VcpuExit,
    },
    /// A run hook ends the run.
    StopRequested,
    /// A vCPU thread failed, by no fault of the guest.
    Failed(VmmError),
}

/// Sends messages to the event loop.
#[derive(Debug)]
pub struct EventSender {
    messages: mpsc::Sender<Message>,
    wake: EventFd,
}

impl EventSender {
    /// Creates a sender to the receiver of `messages`, which waits for `wake`.
    pub fn new(messages: mpsc::Sender<Message>, wake: EventFd) -> Self {
        Self { messages, wake }
    }

    /// Sends `message`. The event loop may have ended; the message is dropped then.
    pub fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            // The 64-bit counter of an eventfd does not overflow in steps of 1.
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
    /// Kicks, and returns from waiting for SIPI.
    pub interrupted: u64,
}
