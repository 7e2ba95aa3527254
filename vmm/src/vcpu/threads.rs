//! The vCPU threads of a guest, from their start until they are joined.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use steal_time::StealTime;
use steal_time::VcpuStealTime;

use super::command::VcpuCommand;
use super::control::VcpuControl;
use super::run::{Vcpu, VcpuStats};
use super::{EventSender, Message, Shared, signal_mask};
use crate::boot::{self, Entry};
use crate::cpuid::Supported;
use crate::error::VmmError;

/// Stack size of a vCPU thread (bytes). It runs a loop and reads a few files of `/proc`.
const STACK_BYTES: usize = 256 << 10;

/// What every vCPU thread needs.
#[derive(Clone, Debug)]
pub struct Common {
    /// How the vCPUs start.
    pub entry: Entry,
    /// The CPUID leaves that KVM supports.
    pub supported: Supported,
    /// What the vCPU threads share.
    pub shared: Arc<Shared>,
    /// Steal time of the VM.
    pub steal_time: StealTime,
}

/// The vCPU threads of one guest. Dropping it finishes and joins them.
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
    /// Creates an empty set of threads, which `control` will control.
    pub fn new(control: Arc<VcpuControl>) -> Self {
        Self { control, threads: Vec::new() }
    }

    /// Starts the thread of `vcpu`, which enters the guest and sends messages to `event_sender`.
    ///
    /// # Errors
    /// [`VmmError::Host`] if the host refuses a thread.
    pub fn start(
        &mut self,
        vcpu: VcpuId,
        fd: VcpuFd,
        common: Common,
        event_sender: EventSender,
    ) -> Result<(), VmmError> {
        let (commands, receiver) = mpsc::channel();
        let thread = thread::Builder::new().name(format!("vcpu{vcpu}")).stack_size(STACK_BYTES);
        let started = thread.spawn(move || run_thread(vcpu, fd, &common, event_sender, receiver));
        let handle = started.map_err(|error| {
            let action = format!("start a thread for vCPU {vcpu} (is the limit on processes reached?)");
            VmmError::cannot(action)(error)
        })?;
        self.threads.push(Thread { vcpu, commands, handle });
        Ok(())
    }

    /// Returns how many threads were started.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Returns whether a thread has ended. The others end soon, or have failed.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(|thread| thread.handle.is_finished())
    }

    /// Makes each thread of the paused guest run the command that `command` returns for it.
    ///
    /// Returns the answers in vCPU order; `None` for a thread that has ended.
    pub fn command<T>(
        &self,
        mut command: impl FnMut(VcpuId, mpsc::Sender<T>) -> VcpuCommand,
    ) -> Vec<(VcpuId, Option<T>)> {
        let mut run = |thread: &Thread| {
            let (sender, answer) = mpsc::channel();
            thread.commands.send(command(thread.vcpu, sender)).ok()?;
            answer.recv().ok()
        };
        self.threads.iter().map(|thread| (thread.vcpu, run(thread))).collect()
    }

    /// Makes all paused threads read their requests again.
    pub fn resume(&self) {
        for thread in &self.threads {
            // The thread may have ended.
            let _ = thread.commands.send(VcpuCommand::Resume);
        }
    }

    /// Finishes and joins all threads, paused or not. Returns their statistics in vCPU order.
    pub fn finish(&mut self) -> Vec<(VcpuId, VcpuStats)> {
        self.control.finish();
        self.resume();
        let join = |thread: Thread| (thread.vcpu, thread.handle.join().unwrap_or_default());
        self.threads.drain(..).map(join).collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.finish();
    }
}

fn run_thread(
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
            event_sender.send(Message::Failed(error));
            VcpuStats::default()
        }
    }
}

/// Prepares the calling thread and its vCPU for the first entry.
fn prepare<'c>(vcpu: VcpuId, fd: &VcpuFd, common: &'c Common) -> Result<VcpuStealTime<'c>, VmmError> {
    let pinned = common.shared.cpus.pin_this_thread();
    pinned.map_err(VmmError::cannot_vcpu("pin the thread of", vcpu))?;
    let unblocked = signal_mask::unblock_kick_in_run(fd);
    unblocked.map_err(VmmError::cannot_vcpu("set the signal mask of", vcpu))?;
    let mut cpuid = common.supported.of_vcpu(vcpu);
    common.steal_time.add_cpuid(&mut cpuid);
    let set = fd.set_cpuid2(&cpuid);
    set.map_err(VmmError::cannot_vcpu("set the CPUID of", vcpu))?;
    let set = boot::set_registers(fd, vcpu, common.entry);
    set.map_err(VmmError::cannot_vcpu("set the registers of", vcpu))?;
    let mut steal_time = common.steal_time.attach(vcpu).map_err(VmmError::publishing(vcpu))?;
    steal_time.watch_init(fd).map_err(VmmError::publishing(vcpu))?;
    Ok(steal_time)
}
