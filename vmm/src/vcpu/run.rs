//! The life of a vCPU thread: running, parked, held, resting, finished.

use std::sync::{Arc, mpsc};
use std::time::Instant;

use devices::{Request, Written};
use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use protocol::kvm::MSR_STEAL_TIME;

use super::command::{Errand, Look};
use super::error::VcpuError;
use super::exit::{self, CrashReason, Exit, PortData};
use super::{Crash, Ending, ExitCounts, Message, Outbox, Registers, Shared};
use crate::guest_clock::GuestClock;
use crate::hooks::{Descheduled, VcpuEvent};
use crate::vcpu::control::{Seat, Wanted};
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
    outbox: Outbox,
    errands: mpsc::Receiver<Errand>,
    exits: ExitCounts,
    /// KVM has an exit to complete, when it is next entered: until then the registers are those of before it.
    owes: bool,
    /// Its seat at the gate.
    seat: Arc<Seat>,
    /// When it last began to rest, the account of its thread then, and how much of the run delay was forgotten by then.
    at_rest: (Instant, ThreadStats, u64),
    /// How much run delay was forgotten, all told: its thread waited at rest (ns).
    forgotten_ns: u64,
    /// How often its thread had been preempted when it began.
    preempted_before: u64,
}

/// What is left of a vCPU thread.
#[derive(Clone, Debug, Default)]
pub struct Remains {
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
    Parked,
    Held,
    Resting,
    Finished(Ending),
}

/// What came of one stay in the guest.
enum Step {
    /// Dealt with.
    Handled,
    /// The guest ended, well or not.
    Ended(Ending),
}

impl<'p> Vcpu<'p> {
    /// A vCPU whose registers are set, on its own thread.
    pub fn new(
        id: VcpuId,
        fd: VcpuFd,
        shared: Arc<Shared>,
        steal_time: VcpuStealTime<'p>,
        outbox: Outbox,
        errands: mpsc::Receiver<Errand>,
    ) -> Self {
        let exits = ExitCounts::default();
        Self {
            id,
            fd,
            shared,
            steal_time,
            outbox,
            errands,
            exits,
            owes: false,
            seat: Arc::new(Seat::of_this_thread()),
            at_rest: (Instant::now(), ThreadStats::default(), 0),
            forgotten_ns: 0,
            preempted_before: 0,
        }
    }

    /// Runs until the guest ends or the thread is sent home; tells the event loop which, and how it went.
    pub fn run(mut self) -> Remains {
        self.seat = self.shared.gate.enter(self.id);
        self.preempted_before = stats::own_involuntary_switches();
        let message = match self.run_to_the_end() {
            Ok(Ending::SentHome) => None,
            Ok(ending) => Some(Message::Ended { vcpu: self.id, ending }),
            Err(error) => Some(Message::Failed { vcpu: self.id, error }),
        };
        if let Some(message) = message {
            self.outbox.send(message);
        }
        self.shared.gate.leave(self.id);
        let account = ThreadStats::read(own_tid()).unwrap_or_default();
        Remains {
            exits: self.exits,
            account,
            preemptions: account.involuntary_switches.saturating_sub(self.preempted_before),
            counts: self.steal_time.counts(),
            clock: GuestClock::read(&self.fd),
        }
    }

    fn run_to_the_end(&mut self) -> Result<Ending, VcpuError> {
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running()?,
                State::Parked => self.parked(),
                State::Held => self.held()?,
                State::Resting => self.resting()?,
                State::Finished(ending) => return Ok(ending),
            };
        }
    }

    fn running(&mut self) -> Result<State, VcpuError> {
        match self.shared.gate.wanted(&self.seat) {
            Wanted::Nothing => {}
            Wanted::Park => return Ok(State::Parked), // running -> parked: another vCPU needs to be alone
            Wanted::Rest => return Ok(State::Resting), // running -> resting: the guest is paused
            Wanted::Hold => return Ok(State::Held),   // running -> held: a policy wants it not to run
            Wanted::End => return Ok(State::Finished(Ending::SentHome)), // running -> finished: the run is over
        }
        self.steal_time.before_entry();
        match self.step()? {
            Step::Handled => Ok(State::Running),
            Step::Ended(ending) => Ok(State::Finished(ending)), // running -> finished: by the guest's own act
        }
    }

    fn parked(&mut self) -> State {
        self.shared.gate.park();
        State::Running // parked -> running: the other one is done
    }

    /// Does not run, though it wants to, until it is released. That is steal, and its byte says so.
    fn held(&mut self) -> Result<State, VcpuError> {
        if let Some(ending) = self.complete()? {
            return Ok(State::Finished(ending)); // held -> finished: what was owed ended the guest
        }
        let from_ns = clock::monotonic_ns();
        self.steal_time.deschedule();
        let published_ns = clock::monotonic_ns();
        let requested_ns = self.seat.held_ns();
        let wanted_to_run = self.shared.gate.wait_while_held(&self.seat);
        let descheduled_ns = wanted_to_run.saturating_sub(from_ns);
        let scheduled = self.steal_time.schedule(descheduled_ns);
        scheduled.map_err(|source| VcpuError::Publish { vcpu: self.id, source })?;
        let to_ns = clock::monotonic_ns();
        let interval = Descheduled { requested_ns, from_ns, published_ns, to_ns, descheduled_ns };
        self.shared.hooks.on_vcpu_event(self.id, &self.seat, VcpuEvent::Descheduled(interval));
        Ok(State::Running) // held -> running: it is released, or the gate wants something else of it first
    }

    /// Completes the guest's instruction that the monitor had a part in, which may end the guest.
    fn complete(&mut self) -> Result<Option<Ending>, VcpuError> {
        self.fd.set_kvm_immediate_exit(1);
        while self.owes {
            if let Step::Ended(ending) = self.step()? {
                return Ok(Some(ending));
            }
        }
        self.fd.set_kvm_immediate_exit(0);
        Ok(None)
    }

    /// Completes what KVM owes, rests, and runs errands, until the guest goes on.
    fn resting(&mut self) -> Result<State, VcpuError> {
        if let Some(ending) = self.complete()? {
            return Ok(State::Finished(ending)); // resting -> finished: what was owed ended the guest
        }
        self.steal_time.pause();
        let account = ThreadStats::read(own_tid()).unwrap_or_default();
        self.forget_waiting(account.run_delay_ns);
        self.at_rest = (Instant::now(), account, self.forgotten_ns);
        self.shared.gate.begin_rest();
        while self.shared.gate.wanted(&self.seat) == Wanted::Rest {
            match self.errands.recv() {
                // What the thread has waited for a CPU since it was told is the guest's: it wanted to go on.
                Ok(Errand::Rise) => {}
                Ok(errand) => {
                    if let Ok(run_delay_ns) = stats::own_run_delay_ns() {
                        self.forget_waiting(run_delay_ns);
                    }
                    self.run_errand(errand);
                }
                Err(mpsc::RecvError) => return Ok(State::Finished(Ending::SentHome)), // nobody is left to resume it
            }
        }
        self.shared.gate.end_rest();
        self.steal_time.resume().map_err(|source| VcpuError::Publish { vcpu: self.id, source })?;
        self.tell_paused()?;
        Ok(State::Running) // resting -> running: the guest goes on
    }

    /// What the thread has waited for a CPU at rest is no affair of the guest's.
    fn forget_waiting(&mut self, run_delay_ns: u64) {
        self.forgotten_ns += self.steal_time.discard_run_delay(run_delay_ns);
    }

    fn run_errand(&mut self, errand: Errand) {
        // Who does not wait for the answer any more does not need it.
        match errand {
            Errand::Rise => {}
            Errand::Look(answer) => drop(answer.send(self.look())),
            Errand::Save(answer) => drop(answer.send(self.steal_time.save(&self.fd))),
            Errand::Restore(saved, answer) => drop(answer.send(self.restore(saved))),
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

    fn look(&self) -> Look {
        let (since, account, forgotten_ns) = self.at_rest;
        Look {
            vcpu: self.id,
            msr: self.steal_time.msr(&self.fd),
            kernel_msr: kvm_msr::read(&self.fd, MSR_STEAL_TIME),
            record: self.steal_time.record(&self.fd).map(|record| record.bytes()),
            since,
            account,
            forgotten_ns,
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
                        Written::Request(Request::Reset) => return Ok(Step::Ended(Ending::Reset)),
                        Written::Request(Request::Exit(status)) => {
                            return Ok(Step::Ended(Ending::Exit(status)));
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
                self.shared.hooks.on_vcpu_event(vcpu, &self.seat, VcpuEvent::Kicked);
            }
            Exit::Crashed(reason) => return Ok(Step::Ended(self.crash(reason))),
        }
        Ok(Step::Handled)
    }

    fn crash(&self, reason: CrashReason) -> Ending {
        let registers = self.fd.get_regs().ok().zip(self.fd.get_sregs().ok());
        let registers = registers.map(|(general, system)| Registers { general, system });
        Ending::Crash(Box::new(Crash { reason, registers }))
    }
}
