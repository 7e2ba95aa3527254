//! The vCPU threads of a guest: each prepares its vCPU, runs it, and says what is left of it.
//!
//! However a run ends, all of them are sent home and waited for. While the guest is paused they run commands.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use protocol::VcpuId;

use super::command::VcpuCommand;
use super::error::VcpuError;
use super::run::{Vcpu, VcpuStats};
use super::{EventSender, Message, Shared, signal_mask};
use crate::boot::{self, Entry};
use crate::cpuid::Supported;
use crate::vcpu::control::VcpuControl;
use steal_time::vcpu::VcpuStealTime;
use steal_time::vm::StealTime;

/// A vCPU thread runs a loop and reads a few files of `/proc`.
const THREAD_STACK: usize = 256 << 10;

/// What every vCPU thread needs.
#[derive(Clone, Debug)]
pub struct Common {
    /// How vCPUs begin.
    pub entry: Entry,
    /// What KVM supports in CPUID.
    pub supported: Supported,
    /// What the vCPUs share.
    pub shared: Arc<Shared>,
    /// Steal time of the VM.
    pub steal_time: StealTime,
}

/// The vCPU threads of one guest.
#[derive(Debug)]
pub struct Threads {
    control: Arc<VcpuControl>,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    vcpu: VcpuId,
    commands: mpsc::Sender<VcpuCommand>,
    handle: JoinHandle<VcpuStats>,
}

impl Threads {
    /// None yet. They will stop at `gate`.
    pub fn new(control: Arc<VcpuControl>) -> Self {
        Self { control, threads: Vec::new() }
    }

    /// Starts the thread of `vcpu`, which enters the guest and sends what happens to `event_sender`.
    ///
    /// # Errors
    /// The host's reason for giving no thread.
    pub fn start(
        &mut self,
        vcpu: VcpuId,
        fd: VcpuFd,
        common: Common,
        event_sender: EventSender,
    ) -> io::Result<()> {
        let (commands, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name(format!("vcpu{vcpu}")).stack_size(THREAD_STACK);
        let handle = thread.spawn(move || live(vcpu, fd, &common, event_sender, inbox))?;
        self.threads.push(Thread { vcpu, commands, handle });
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Has each thread, in the vCPUs' order, run the command that `command` makes for it, and gives the answers. `None` for
    /// one that has ended. The guest is paused.
    pub fn ask<T>(
        &self,
        mut command: impl FnMut(VcpuId, mpsc::Sender<T>) -> VcpuCommand,
    ) -> Vec<(VcpuId, Option<T>)> {
        let mut ask = |thread: &Thread| {
            let (sender, answer) = mpsc::channel();
            thread.commands.send(command(thread.vcpu, sender)).ok()?;
            answer.recv().ok()
        };
        self.threads.iter().map(|thread| (thread.vcpu, ask(thread))).collect()
    }

    /// Has all threads that rest look at the gate again.
    pub fn resume(&self) {
        for thread in &self.threads {
            // One that has ended needs not be told.
            let _ = thread.commands.send(VcpuCommand::Resume);
        }
    }

    /// Sends all of them home, and waits for them.
    pub fn finish(&mut self) -> Vec<(VcpuId, VcpuStats)> {
        self.control.end();
        self.resume();
        let home = |thread: Thread| (thread.vcpu, thread.handle.join().unwrap_or_default());
        self.threads.drain(..).map(home).collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.finish();
    }
}

fn live(
    vcpu: VcpuId,
    fd: VcpuFd,
    common: &Common,
    event_sender: EventSender,
    commands: mpsc::Receiver<VcpuCommand>,
) -> VcpuStats {
    match prepare(vcpu, &fd, common) {
        Ok(steal_time) => {
            Vcpu::new(vcpu, fd, Arc::clone(&common.shared), steal_time, event_sender, commands).run()
        }
        Err(error) => {
            event_sender.send(Message::Failed { vcpu, error });
            VcpuStats::default()
        }
    }
}

/// All that a vCPU needs before it first runs, from its own thread.
fn prepare<'c>(vcpu: VcpuId, fd: &VcpuFd, common: &'c Common) -> Result<VcpuStealTime<'c>, VcpuError> {
    common.shared.cpus.pin_this_thread().map_err(|source| VcpuError::CpuHandoff { vcpu, source })?;
    signal_mask::unblock_kick_in_run(fd).map_err(|source| VcpuError::SignalMask { vcpu, source })?;
    let setup = |source| VcpuError::Setup { vcpu, source };
    let mut cpuid = common.supported.of_vcpu(vcpu);
    common.steal_time.add_cpuid(&mut cpuid);
    fd.set_cpuid2(&cpuid).map_err(setup)?;
    boot::set_registers(fd, vcpu, common.entry).map_err(setup)?;
    common.steal_time.attach(vcpu).map_err(|source| VcpuError::Publish { vcpu, source })
}
