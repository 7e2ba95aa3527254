//! The life of a vCPU thread: running, parked, held, resting, finished.

use std::sync::{Arc, mpsc};
use std::time::Instant;

use devices::{Request, Written};
use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use protocol::kvm::MSR_STEAL_TIME;

use super::command::{VcpuCommand, VcpuSnapshot};
use super::error::VcpuError;
use super::exit::{self, CrashReason, Exit, PortData};
use super::{Crash, EventSender, ExitCounts, Message, Registers, Shared, VcpuExit};
use crate::guest_clock::GuestClock;
use crate::hooks::{Descheduled, VcpuEvent};
use crate::vcpu::control::{VcpuHandle, VcpuRequest};
use host::clock;
use host::kick;
use host::stats::{self, ThreadStats};
use host::thread::own_tid;
use steal_time::kvm_msr;
use steal_time::publisher::Counts;
use steal_time::saved::SavedVcpu;
use steal_time::vcpu::{Access, VcpuStealTime};

/// What an address without memory reads.
const FLOATING: u8 = 0xff;

/// A vCPU and all that its thread owns.
#[derive(Debug)]
pub struct Vcpu<'p> {
    id: VcpuId,
    fd: VcpuFd,
    shared: Arc<Shared>,
    steal_time: VcpuStealTime<'p>,
    event_sender: EventSender,
    commands: mpsc::Receiver<VcpuCommand>,
    exits: ExitCounts,
    /// KVM has an exit to complete, when it is next entered: until then the registers are those of before it.
    owes: bool,
    /// Its handle at the control.
    handle: Arc<VcpuHandle>,
    /// When it last began to rest, the account of its thread then, and how much of the run delay was forgotten by then.
    at_rest: (Instant, ThreadStats, u64),
    /// How much run delay was forgotten, all told: its thread waited at rest (ns).
    discarded_ns: u64,
    /// How often its thread had been preempted when it began.
    preempted_before: u64,
}

/// What is left of a vCPU thread.
#[derive(Clone, Debug, Default)]
pub struct VcpuStats {
    /// Its exits.
    pub exits: ExitCounts,
    /// The scheduler's account of its thread.
    pub account: ThreadStats,
    /// Times that its thread was preempted since it was attached to its publisher.
    pub preemptions: u64,
    /// What the publisher counted in the same time; `None` where nobody counts.
    pub counts: Option<Counts>,
    /// The guest's clock when the vCPU ended, where KVM tells it.
    pub clock: Option<GuestClock>,
}

enum State {
    Running,
    Stopped,
    Descheduled,
    Paused,
    Finished(VcpuExit),
}

/// What came of one stay in the guest.
enum Step {
    /// Dealt with.
    Handled,
    /// The guest ended, well or not.
    Ended(VcpuExit),
}

impl<'p> Vcpu<'p> {
    /// A vCPU whose registers are set, on its own thread.
    pub fn new(
        id: VcpuId,
        fd: VcpuFd,
        shared: Arc<Shared>,
        steal_time: VcpuStealTime<'p>,
        event_sender: EventSender,
        commands: mpsc::Receiver<VcpuCommand>,
    ) -> Self {
        let exits = ExitCounts::default();
        Self {
            id,
            fd,
            shared,
            steal_time,
            event_sender,
            commands,
            exits,
            owes: false,
            handle: Arc::new(VcpuHandle::of_this_thread()),
            at_rest: (Instant::now(), ThreadStats::default(), 0),
            discarded_ns: 0,
            preempted_before: 0,
        }
    }

    /// Runs until the guest ends or the thread is sent home; tells the event loop which, and how it went.
    pub fn run(mut self) -> VcpuStats {
        self.handle = self.shared.control.enter(self.id);
        self.preempted_before = stats::own_involuntary_switches();
        let message = match self.run_to_the_end() {
            Ok(VcpuExit::Stopped) => None,
            Ok(ending) => Some(Message::Ended { vcpu: self.id, ending }),
            Err(error) => Some(Message::Failed { vcpu: self.id, error }),
        };
        if let Some(message) = message {
            self.event_sender.send(message);
        }
        self.shared.control.leave(self.id);
        let account = ThreadStats::read(own_tid()).unwrap_or_default();
        VcpuStats {
            exits: self.exits,
            account,
            preemptions: account.involuntary_switches.saturating_sub(self.preempted_before),
            counts: self.steal_time.counts(),
            clock: GuestClock::read(&self.fd),
        }
    }

    fn run_to_the_end(&mut self) -> Result<VcpuExit, VcpuError> {
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running()?,
                State::Stopped => self.stopped(),
                State::Descheduled => self.descheduled()?,
                State::Paused => self.paused()?,
                State::Finished(ending) => return Ok(ending),
            };
        }
    }

    fn running(&mut self) -> Result<State, VcpuError> {
        match self.shared.control.request(&self.handle) {
            VcpuRequest::Run => {}
            VcpuRequest::Stop => return Ok(State::Stopped), // running -> parked: another vCPU needs to be alone
            VcpuRequest::Pause => return Ok(State::Paused), // running -> resting: the guest is paused
            VcpuRequest::Deschedule => return Ok(State::Descheduled), // running -> held: a policy wants it not to run
            VcpuRequest::Finish => return Ok(State::Finished(VcpuExit::Stopped)), // running -> finished: the run is over
        }
        self.steal_time.before_entry();
        match self.step()? {
            Step::Handled => Ok(State::Running),
            Step::Ended(ending) => Ok(State::Finished(ending)), // running -> finished: by the guest's own act
        }
    }

    fn stopped(&mut self) -> State {
        self.shared.control.wait_exclusive();
        State::Running // parked -> running: the other one is done
    }

    /// Does not run, though it wants to, until it is released. That is steal, and its byte says so.
    fn descheduled(&mut self) -> Result<State, VcpuError> {
        if let Some(ending) = self.complete()? {
            return Ok(State::Finished(ending)); // held -> finished: what was owed ended the guest
        }
        let from_ns = clock::monotonic_ns();
        self.steal_time.deschedule();
        let published_ns = clock::monotonic_ns();
        let requested_ns = self.handle.requested_ns();
        let wanted_to_run = self.shared.control.wait_while_descheduled(&self.handle);
        let descheduled_ns = wanted_to_run.saturating_sub(from_ns);
        let scheduled = self.steal_time.schedule(descheduled_ns);
        scheduled.map_err(|source| VcpuError::Publish { vcpu: self.id, source })?;
        let to_ns = clock::monotonic_ns();
        let interval = Descheduled { requested_ns, from_ns, published_ns, to_ns, descheduled_ns };
        self.shared.hooks.on_vcpu_event(self.id, &self.handle, VcpuEvent::Descheduled(interval));
        Ok(State::Running) // held -> running: it is released, or the gate wants something else of it first
    }

    /// Completes the guest's instruction that the monitor had a part in, which may end the guest.
    fn complete(&mut self) -> Result<Option<VcpuExit>, VcpuError> {
        self.fd.set_kvm_immediate_exit(1);
        while self.owes {
            if let Step::Ended(ending) = self.step()? {
                return Ok(Some(ending));
            }
        }
        self.fd.set_kvm_immediate_exit(0);
        Ok(None)
    }

    /// Completes what KVM owes, is_paused, and runs commands, until the guest goes on.
    fn paused(&mut self) -> Result<State, VcpuError> {
        if let Some(ending) = self.complete()? {
            return Ok(State::Finished(ending)); // resting -> finished: what was owed ended the guest
        }
        self.steal_time.pause();
        let account = ThreadStats::read(own_tid()).unwrap_or_default();
        self.discard_run_delay(account.run_delay_ns);
        self.at_rest = (Instant::now(), account, self.discarded_ns);
        self.shared.control.begin_pause();
        while self.shared.control.request(&self.handle) == VcpuRequest::Pause {
            match self.commands.recv() {
                // What the thread has waited for a CPU since it was told is the guest's: it wanted to go on.
                Ok(VcpuCommand::Resume) => {}
                Ok(command) => {
                    if let Ok(run_delay_ns) = stats::own_run_delay_ns() {
                        self.discard_run_delay(run_delay_ns);
                    }
                    self.run_command(command);
                }
                Err(mpsc::RecvError) => return Ok(State::Finished(VcpuExit::Stopped)), // nobody is left to resume it
            }
        }
        self.shared.control.end_pause();
        self.steal_time.resume().map_err(|source| VcpuError::Publish { vcpu: self.id, source })?;
        self.tell_paused()?;
        Ok(State::Running) // resting -> running: the guest goes on
    }

    /// What the thread has waited for a CPU at rest is no affair of the guest's.
    fn discard_run_delay(&mut self, run_delay_ns: u64) {
        self.discarded_ns += self.steal_time.discard_run_delay(run_delay_ns);
    }

    fn run_command(&mut self, command: VcpuCommand) {
        // Who does not wait for the answer any more does not need it.
        match command {
            VcpuCommand::Resume => {}
            VcpuCommand::Snapshot(answer) => drop(answer.send(self.snapshot())),
            VcpuCommand::Save(answer) => drop(answer.send(self.steal_time.save(&self.fd))),
            VcpuCommand::Restore(saved, answer) => drop(answer.send(self.restore(saved))),
        }
    }

    /// Has KVM note in the guest's own clock that it was paused: its watchdogs look there. A guest may have no such clock.
    fn tell_paused(&self) -> Result<(), VcpuError> {
        match self.fd.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => {
                Err(VcpuError::TellPaused { vcpu: self.id, source: error })
            }
            _ => Ok(()),
        }
    }

    fn snapshot(&self) -> VcpuSnapshot {
        let (since, account, discarded_ns) = self.at_rest;
        VcpuSnapshot {
            vcpu: self.id,
            msr: self.steal_time.msr(&self.fd),
            kernel_msr: kvm_msr::read(&self.fd, MSR_STEAL_TIME),
            record: self.steal_time.record(&self.fd).map(|record| record.bytes()),
            since,
            account,
            discarded_ns,
            exits: self.exits,
            registers: self.fd.get_regs().ok(),
            counts: self.steal_time.counts(),
        }
    }

    /// Takes `saved` for this vCPU's steal time. Its MSR value is one that a guest may write.
    fn restore(&mut self, saved: SavedVcpu) -> Result<(), VcpuError> {
        let restored = self.steal_time.restore(&self.fd, saved);
        restored.map_err(|source| VcpuError::Publish { vcpu: self.id, source })
    }

    /// Enters the guest, and deals with why it left.
    fn step(&mut self) -> Result<Step, VcpuError> {
        let vcpu = self.id;
        let exit = exit::run(&mut self.fd).map_err(|source| VcpuError::Run { vcpu, source })?;
        self.owes = exit.is_owed();
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
                        Written::Request(Request::Reset) => return Ok(Step::Ended(VcpuExit::Reset)),
                        Written::Request(Request::Exit(status)) => {
                            return Ok(Step::Ended(VcpuExit::Exit(status)));
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
                data.fill(FLOATING);
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
                let write = self.steal_time.wrmsr(msr.index, *msr.value);
                match write.map_err(|source| VcpuError::Publish { vcpu, source })? {
                    Access::Done(()) => {}
                    Access::Fault => *msr.error = 1,
                }
            }
            Exit::Interrupted => {
                self.exits.interrupted += 1;
                kick::drain();
                self.shared.hooks.on_vcpu_event(vcpu, &self.handle, VcpuEvent::Kicked);
            }
            Exit::Crashed(reason) => return Ok(Step::Ended(self.crash(reason))),
        }
        Ok(Step::Handled)
    }

    fn crash(&self, reason: CrashReason) -> VcpuExit {
        let registers = self.fd.get_regs().ok().zip(self.fd.get_sregs().ok());
        let registers = registers.map(|(general, system)| Registers { general, system });
        VcpuExit::Crash(Box::new(Crash { reason, registers }))
    }
}
