//! The life of a vCPU thread: running, parked, finished.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use devices::Request;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use protocol::report::Milestone;

use super::exit::{self, CrashReason, Exit, PortData};
use super::{Crash, Ending, ExitCounts, Mark, Message, Outbox, Registers, Shared};
use crate::gate::Wanted;
use crate::host::account::{self, ThreadAccount};
use crate::host::cpus::CpuError;
use crate::host::thread::own_tid;
use crate::kick;
use crate::measure::Snapshot;
use crate::publisher::{Counts, PublisherError};
use crate::steal_time::msr::{Access, StealTimeMsr};
use crate::timings::GuestClock;

/// A guest may set marks as long as it likes; so many from one vCPU are told.
const MOST_MARKS: u32 = 64;

/// What an address without memory reads.
const FLOATING: u8 = 0xff;

/// A vCPU thread failed, by no fault of the guest.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refuses to run it.
    #[error("KVM cannot run vCPU {vcpu}")]
    Run {
        /// The vCPU.
        vcpu: VcpuId,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// KVM refuses its initial state.
    #[error("KVM refuses the initial state of vCPU {vcpu}")]
    Setup {
        /// The vCPU.
        vcpu: VcpuId,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// The kick signal cannot be arranged.
    #[error("Cannot set the signal mask of vCPU {vcpu}")]
    SignalMask {
        /// The vCPU.
        vcpu: VcpuId,
        /// The host's reason.
        source: io::Error,
    },
    /// The thread cannot be confined.
    #[error("Cannot place the thread of vCPU {vcpu}")]
    Place {
        /// The vCPU.
        vcpu: VcpuId,
        /// The host's reason.
        source: CpuError,
    },
    /// The publisher failed.
    #[error("Cannot publish steal time of vCPU {vcpu}")]
    Publish {
        /// The vCPU.
        vcpu: VcpuId,
        /// The publisher's reason.
        source: PublisherError,
    },
}

/// A vCPU and all that its thread owns.
#[derive(Debug)]
pub struct Vcpu<'p> {
    id: VcpuId,
    fd: VcpuFd,
    shared: Arc<Shared>,
    steal_time: StealTimeMsr<'p>,
    outbox: Outbox,
    exits: ExitCounts,
    marks: u32,
    /// How often its thread had been preempted when it began.
    preempted_before: u64,
}

/// What is left of a vCPU thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remains {
    /// Its exits.
    pub exits: ExitCounts,
    /// The scheduler's account of its thread.
    pub account: ThreadAccount,
    /// Times that its thread was preempted since it was attached to its publisher.
    pub preemptions: u64,
    /// What the publisher counted in the same time; `None` where nobody counts.
    pub counts: Option<Counts>,
    /// The guest's clock when the vCPU ended, where KVM tells it.
    pub clock: Option<GuestClock>,
}

/// What `IA32_TIME_STAMP_COUNTER` is called.
const MSR_TSC: u32 = 0x10;

/// The guest's TSC now, where KVM tells it.
fn guest_clock(fd: &VcpuFd) -> Option<GuestClock> {
    let entry = kvm_msr_entry { index: MSR_TSC, ..kvm_msr_entry::default() };
    let mut tsc = Msrs::from_entries(&[entry]).ok()?;
    let khz = fd.get_tsc_khz().ok()?;
    let at = Instant::now();
    let read = fd.get_msrs(&mut tsc).ok()?;
    let tsc = tsc.as_slice().first()?.data;
    (read == 1).then_some(GuestClock { at, tsc, khz })
}

enum State {
    Running,
    Parked,
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
        steal_time: StealTimeMsr<'p>,
        outbox: Outbox,
    ) -> Self {
        let exits = ExitCounts::default();
        Self { id, fd, shared, steal_time, outbox, exits, marks: 0, preempted_before: 0 }
    }

    /// Runs until the guest ends or the thread is sent home; tells the event loop which, and how it went.
    pub fn run(mut self) -> Remains {
        self.shared.gate.enter(self.id);
        self.preempted_before = account::own_involuntary_switches();
        let message = match self.run_to_the_end() {
            Ok(Ending::SentHome) => None,
            Ok(ending) => Some(Message::Ended { vcpu: self.id, ending }),
            Err(error) => Some(Message::Failed { vcpu: self.id, error }),
        };
        if let Some(message) = message {
            self.outbox.send(message);
        }
        self.shared.gate.leave(self.id);
        let account = ThreadAccount::read(own_tid()).unwrap_or_default();
        Remains {
            exits: self.exits,
            account,
            preemptions: account.involuntary_switches.saturating_sub(self.preempted_before),
            counts: self.steal_time.counts(),
            clock: guest_clock(&self.fd),
        }
    }

    fn run_to_the_end(&mut self) -> Result<Ending, VcpuError> {
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running()?,
                State::Parked => self.parked(),
                State::Finished(ending) => return Ok(ending),
            };
        }
    }

    fn running(&mut self) -> Result<State, VcpuError> {
        match self.shared.gate.wanted() {
            Wanted::Nothing => {}
            Wanted::Park => return Ok(State::Parked), // running -> parked: another vCPU needs to be alone
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

    /// Enters the guest, and deals with why it left.
    fn step(&mut self) -> Result<Step, VcpuError> {
        let vcpu = self.id;
        let exit = exit::run(&mut self.fd).map_err(|source| VcpuError::Run { vcpu, source })?;
        match exit {
            Exit::PortIn(PortData { port, width, data }) => {
                self.exits.port += 1;
                for unit in data.chunks_mut(width) {
                    self.shared.ports.read(port, unit);
                }
            }
            Exit::PortOut(PortData { port, width, data }) => {
                self.exits.port += 1;
                let request = data.chunks(width).find_map(|unit| self.shared.ports.write(port, unit));
                return Ok(self.carry_out(request));
            }
            Exit::MmioRead(data) => {
                self.exits.mmio += 1;
                data.fill(FLOATING);
            }
            Exit::MmioWrite => self.exits.mmio += 1,
            Exit::MsrRead(msr) => {
                self.exits.msr += 1;
                match self.steal_time.read(msr.index) {
                    Access::Done(value) => *msr.value = value,
                    Access::Fault => *msr.error = 1,
                }
            }
            Exit::MsrWrite(msr) => {
                self.exits.msr += 1;
                let write = self.steal_time.write(msr.index, *msr.value);
                match write.map_err(|source| VcpuError::Publish { vcpu, source })? {
                    Access::Done(()) => {}
                    Access::Fault => *msr.error = 1,
                }
            }
            Exit::Interrupted => {
                self.exits.interrupted += 1;
                kick::drain();
            }
            Exit::Crashed(reason) => return Ok(Step::Ended(self.crash(reason))),
        }
        Ok(Step::Handled)
    }

    fn carry_out(&mut self, request: Option<Request>) -> Step {
        match request {
            None => Step::Handled,
            Some(Request::Milestone(code)) => {
                self.mark(code);
                Step::Handled
            }
            Some(Request::Reset) => Step::Ended(Ending::Reset),
            Some(Request::Exit(status)) => Step::Ended(Ending::Exit(status)),
        }
    }

    /// Tells of a mark. The accounts are taken here and now: a moment later the guest may have ended.
    fn mark(&mut self, code: u8) {
        if self.marks == MOST_MARKS {
            return;
        }
        self.marks += 1;
        let wanted =
            matches!(Milestone::from_code(code), Some(Milestone::WindowOpens | Milestone::WindowCloses));
        let accounts = wanted.then(|| Snapshot::take(&self.shared.gate, &self.shared.cpus));
        self.outbox.send(Message::Milestone(Mark { code, at: Instant::now(), accounts }));
    }

    fn crash(&self, reason: CrashReason) -> Ending {
        let registers = self.fd.get_regs().ok().zip(self.fd.get_sregs().ok());
        let registers = registers.map(|(general, system)| Registers { general, system });
        Ending::Crash(Box::new(Crash { reason, registers }))
    }
}
