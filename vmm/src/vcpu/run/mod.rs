//! The run loop of a vCPU thread.
//!
//! ```text
//! Running ---- stop_all ------> Stopped       another vCPU thread is exclusive
//! Running ---- deschedule ----> Descheduled   a policy keeps this vCPU off the CPU
//! Running ---- pause ---------> Paused        the whole guest is paused
//! Running ---- COM1 is full --> Throttled     this vCPU transmits faster than the console is read
//! Running ---- finish --------> Finished      the run is over, or the guest ended
//!
//! Stopped, Descheduled, Paused, Throttled ----> Running  reads its next request there
//! ```
//!
//! [`VcpuControl`](super::control::VcpuControl) makes the requests. A thread is inside the guest
//! only in `Running`.

mod commands;
mod emulation;

use std::sync::{Arc, mpsc};
use std::time::Instant;

use host::clock;
use host::stats::{self, ThreadStats};
use kvm_ioctls::VcpuFd;
use protocol::VcpuId;
use steal_time::VcpuStealTime;
use steal_time::publisher::Counts;

use super::command::VcpuCommand;
use super::control::{self, VcpuHandle, VcpuRequest};
use super::{EventSender, ExitCounts, Message, Shared, VcpuExit};
use crate::error::VmmError;
use crate::guest_clock::GuestClock;
use crate::hooks::{Descheduled, VcpuEvent};

/// A vCPU and what its thread owns.
#[derive(Debug)]
pub struct Vcpu<'p> {
    id: VcpuId,
    fd: VcpuFd,
    shared: Arc<Shared>,
    steal_time: VcpuStealTime<'p>,
    event_sender: EventSender,
    commands: mpsc::Receiver<VcpuCommand>,
    handle: Arc<VcpuHandle>,
    exits: ExitCounts,
    /// KVM completes the last exit at the next entry. Until then the registers are those of the
    /// instruction that caused the exit.
    needs_completion: bool,
    /// Whether the last exit wrote to COM1.
    has_transmitted: bool,
    last_pause: Pause,
    /// Run delay accrued while paused, in total (ns). It is not steal.
    discarded_ns: u64,
    /// Preemptions of the thread before it attached.
    preempted_before: u64,
}

/// The beginning of a pause.
#[derive(Debug)]
struct Pause {
    since: Instant,
    /// The scheduler's statistics of the thread at that moment; `None` if the host does not report
    /// them.
    account: Option<ThreadStats>,
    /// [`Vcpu::discarded_ns`] at that moment.
    discarded_ns: u64,
}

/// Statistics of a vCPU whose thread has ended.
#[derive(Clone, Debug, Default)]
pub struct VcpuStats {
    /// Its exits.
    pub exits: ExitCounts,
    /// The scheduler's statistics of its thread; `None` if the host does not report them.
    pub account: Option<ThreadStats>,
    /// Preemptions of its thread while attached to the publisher.
    pub preemptions: u64,
    /// What the publisher counted in the same time; `None` if no publisher counts.
    pub counts: Option<Counts>,
    /// The guest's clock when the vCPU ended; `None` if KVM does not report the TSC.
    pub clock: Option<GuestClock>,
}

/// The state of a vCPU thread.
enum State {
    /// In the guest, or handling an exit.
    Running,
    /// Outside the guest while another vCPU thread is exclusive.
    Stopped,
    /// Outside the guest until a policy schedules the vCPU.
    Descheduled,
    /// Outside the guest until the guest resumes; runs commands.
    Paused,
    /// Outside the guest until the console has room for what it transmits.
    Throttled,
    /// The run is over.
    Finished(VcpuExit),
}

/// The outcome of one entry into the guest.
enum Emulated {
    /// The exit is handled. The vCPU can enter again.
    Handled,
    /// The guest ended, or crashed.
    Ended(VcpuExit),
}

impl<'p> Vcpu<'p> {
    /// Creates a vCPU whose registers are set. The caller is the thread that will run it.
    pub fn new(
        id: VcpuId,
        fd: VcpuFd,
        shared: Arc<Shared>,
        steal_time: VcpuStealTime<'p>,
        event_sender: EventSender,
        commands: mpsc::Receiver<VcpuCommand>,
    ) -> Self {
        Self {
            id,
            fd,
            shared,
            steal_time,
            event_sender,
            commands,
            handle: Arc::new(VcpuHandle::of_this_thread()),
            exits: ExitCounts::default(),
            needs_completion: false,
            has_transmitted: false,
            last_pause: Pause { since: Instant::now(), account: None, discarded_ns: 0 },
            discarded_ns: 0,
            preempted_before: 0,
        }
    }

    /// Runs the vCPU until the guest or the monitor ends the run. Sends the event loop how the
    /// guest ended, or why the thread failed.
    pub fn run(mut self) -> VcpuStats {
        self.handle = self.shared.control.attach(self.id);
        self.preempted_before = stats::own_involuntary_switches();
        match self.run_until_finished() {
            Ok(VcpuExit::Stopped) => {}
            Ok(exit) => self.event_sender.send(Message::Ended { vcpu: self.id, exit }),
            Err(error) => self.event_sender.send(Message::Failed(error)),
        }
        self.shared.control.detach(self.id);
        VcpuStats {
            exits: self.exits,
            account: ThreadStats::of_this_thread().ok(),
            preemptions: stats::own_involuntary_switches().saturating_sub(self.preempted_before),
            counts: self.steal_time.counts(),
            clock: GuestClock::read(&self.fd),
        }
    }

    fn run_until_finished(&mut self) -> Result<VcpuExit, VmmError> {
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running()?,
                State::Stopped => self.stopped(),
                State::Descheduled => self.descheduled()?,
                State::Paused => self.paused()?,
                State::Throttled => self.throttled(),
                State::Finished(exit) => return Ok(exit),
            };
        }
    }

    /// Enters the guest once, unless the control requests otherwise.
    fn running(&mut self) -> Result<State, VmmError> {
        Ok(match self.shared.control.request(&self.handle) {
            // Running ---- COM1 is full ----> Throttled
            VcpuRequest::Run if self.has_transmitted && self.shared.output.must_wait() => State::Throttled,
            VcpuRequest::Run => match self.run_emulation()? {
                Emulated::Handled => State::Running,
                // Running ---- guest ends ----> Finished
                Emulated::Ended(exit) => State::Finished(exit),
            },
            // Running ---- stop_all ----> Stopped
            VcpuRequest::Stop => State::Stopped,
            // Running ---- deschedule ----> Descheduled
            VcpuRequest::Deschedule => State::Descheduled,
            // Running ---- pause ----> Paused
            VcpuRequest::Pause => State::Paused,
            // Running ---- finish ----> Finished
            VcpuRequest::Finish => State::Finished(VcpuExit::Stopped),
        })
    }

    /// Waits while another vCPU thread is exclusive.
    fn stopped(&mut self) -> State {
        self.shared.control.wait_exclusive();
        // Stopped ---- stop_all returns ----> Running
        State::Running
    }

    /// Waits until the console has room, or a kick comes. The time is not steal.
    fn throttled(&mut self) -> State {
        if self.shared.output.wait_for_room() {
            self.shared.hooks.on_vcpu_event(self.id, &self.handle, VcpuEvent::Kicked);
        }
        // Throttled ---- room, a stalled reader, or a request ----> Running
        State::Running
    }

    /// Waits until the vCPU is scheduled. `preempted` is set meanwhile, and the wait is steal: all
    /// but the thread's CPU time, and the time for which the process was stopped.
    fn descheduled(&mut self) -> Result<State, VmmError> {
        if let Some(exit) = self.complete_exit()? {
            // Descheduled ---- guest ends ----> Finished
            return Ok(State::Finished(exit));
        }
        // What the exit took is CPU time, or run delay.
        let begin = control::own_times();
        self.steal_time.deschedule();
        let published_ns = clock::monotonic_ns();
        let requested_ns = self.handle.requested_ns();
        // Each nanosecond off the CPU counts once: the kernel counts run delay, and this the sleep.
        let descheduled_ns = self.shared.control.wait_while_descheduled(&self.handle, begin).slept_ns();
        self.handle.add_descheduled(descheduled_ns);
        self.steal_time.schedule(descheduled_ns).map_err(VmmError::publishing(self.id))?;
        let (from_ns, to_ns) = (begin.at_ns, clock::monotonic_ns());
        let interval = Descheduled { requested_ns, from_ns, published_ns, to_ns, descheduled_ns };
        self.shared.hooks.on_vcpu_event(self.id, &self.handle, VcpuEvent::Descheduled(interval));
        // Descheduled ---- schedule, pause or finish ----> Running
        Ok(State::Running)
    }

    /// Pauses the vCPU and runs commands until the guest resumes. The time is not steal.
    fn paused(&mut self) -> Result<State, VmmError> {
        if let Some(exit) = self.complete_exit()? {
            // Paused ---- guest ends ----> Finished
            return Ok(State::Finished(exit));
        }
        self.steal_time.pause();
        let account = ThreadStats::of_this_thread().ok();
        if let Some(account) = account {
            self.discard_run_delay(account.run_delay_ns);
        }
        self.last_pause = Pause { since: Instant::now(), account, discarded_ns: self.discarded_ns };
        self.shared.control.begin_pause();
        while self.shared.control.request(&self.handle) == VcpuRequest::Pause {
            match self.commands.recv() {
                // Run delay since the wake-up is steal: the vCPU wants to run again.
                Ok(VcpuCommand::Resume) => {}
                Ok(command) => {
                    if let Ok(run_delay_ns) = stats::own_run_delay_ns() {
                        self.discard_run_delay(run_delay_ns);
                    }
                    self.run_command(command);
                }
                // No sender is left to resume it. Paused ---- finish ----> Finished
                Err(mpsc::RecvError) => return Ok(State::Finished(VcpuExit::Stopped)),
            }
        }
        self.shared.control.end_pause();
        self.steal_time.resume().map_err(VmmError::publishing(self.id))?;
        self.report_pause_to_guest()?;
        // Paused ---- resume or finish ----> Running
        Ok(State::Running)
    }

    /// Discards run delay accrued while paused: it is not steal.
    fn discard_run_delay(&mut self, run_delay_ns: u64) {
        self.discarded_ns += self.steal_time.discard_run_delay(run_delay_ns);
    }

    /// Sets the flag in the guest's kvmclock that its soft-lockup watchdog reads after a pause.
    fn report_pause_to_guest(&self) -> Result<(), VmmError> {
        match self.fd.kvmclock_ctrl() {
            // EINVAL: the guest does not use kvmclock.
            Err(error) if error.errno() != libc::EINVAL => {
                Err(VmmError::cannot_vcpu("report the pause to the guest on", self.id)(error))
            }
            _ => Ok(()),
        }
    }
}
