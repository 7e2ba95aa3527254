//! Hints: shared pages between guests and the scheduler, and the host's accounts of vCPU threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::payload::hints::{Doorbell, GuestHints as HintsInMemory, HintPage};
use vmm_sys_util::eventfd::EventFd;

use super::waits::{VcpuReading, Waits};
use crate::guest::{ReportView, RunError};
use crate::policy::schedule::Schedule;
use crate::policy::{Assignment, Event, GuestHints, SchedState, Vcpu};
use host::thread_probe::{ThreadProbe, ThreadReading};
use vmm::guest_clock::GuestClock;
use vmm::vcpu::control::VcpuHandle;
use vmm::vcpu::{EventSender, Message};

/// A guest as the scheduler needs it.
#[derive(Debug)]
pub struct ScheduledGuest {
    /// The handles of its vCPU threads, in order.
    pub handles: Vec<Arc<VcpuHandle>>,
    /// Our payload's report, with the hint pages; `None` for a payload of another project.
    pub report: Option<ReportView>,
    /// Converts between guest TSC and host time.
    pub clock: Option<GuestClock>,
    /// Signalled when the guest writes its doorbell port; `None` without a doorbell.
    pub doorbell: Option<EventFd>,
    /// Receives a stop request when scheduling stops before the guest ends.
    pub event_sender: EventSender,
}

/// All guests. A [`Vcpu`] counts their vCPUs, one guest after the other.
#[derive(Debug)]
pub(super) struct Guests(Vec<Guest>);

#[derive(Debug)]
struct Guest {
    /// Its first vCPU.
    first: Vcpu,
    tids: Vec<libc::pid_t>,
    /// The threads of its vCPUs, if the policy needs their CPU times.
    threads: Vec<MeasuredThread>,
    report: Option<ReportView>,
    clock: Option<GuestClock>,
    event_sender: EventSender,
}

/// A vCPU's thread whose CPU time and waits are read.
#[derive(Debug)]
struct MeasuredThread {
    probe: ThreadProbe,
    handle: Arc<VcpuHandle>,
    waits: Waits,
}

/// A vCPU by its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestVcpu {
    /// Index of the guest.
    pub(super) guest: usize,
    /// Index of the vCPU in its guest.
    pub(super) index: usize,
}

impl Guests {
    /// Takes over `guests`. The CPU times of their vCPU threads can be read if `with_cpu_times`.
    ///
    /// # Errors
    /// [`RunError::CpuTime`].
    pub(super) fn new(guests: Vec<ScheduledGuest>, with_cpu_times: bool) -> Result<Self, RunError> {
        let mut next = 0;
        let guest = |guest: ScheduledGuest| {
            let tids: Vec<_> = guest.handles.iter().map(|handle| handle.kick_handle().tid()).collect();
            let first = next;
            next += tids.len();
            let measured = guest.handles.into_iter().filter(|_| with_cpu_times);
            let threads = measured.map(MeasuredThread::new).collect::<Result<_, _>>()?;
            let ScheduledGuest { report, clock, event_sender, .. } = guest;
            Ok(Guest { first, tids, threads, report, clock, event_sender })
        };
        guests.into_iter().map(guest).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the number of vCPUs of each guest.
    pub(super) fn vcpu_counts(&self) -> Vec<usize> {
        self.0.iter().map(|guest| guest.tids.len()).collect()
    }

    /// Returns the vCPU of `handle`.
    pub(super) fn vcpu_of(&self, handle: &VcpuHandle) -> Option<Vcpu> {
        let tid = handle.kick_handle().tid();
        let index = |guest: &Guest| Some(guest.first + guest.tids.iter().position(|other| *other == tid)?);
        self.0.iter().find_map(index)
    }

    /// Returns the guest of `vcpu`, and its index there.
    pub(super) fn locate(&self, vcpu: Vcpu) -> GuestVcpu {
        let guest = self.0.iter().rposition(|guest| guest.first <= vcpu).unwrap_or(0);
        GuestVcpu { guest, index: vcpu - self.0.get(guest).map_or(0, |guest| guest.first) }
    }

    /// Copies the guests' hints to `schedule`. Returns an event for each changed hint and, with
    /// `doorbell`, for each doorbell since the last call.
    pub(super) fn read_hints(&self, doorbell: bool, schedule: &mut Schedule) -> Vec<Event> {
        let mut events = Vec::new();
        for guest in &self.0 {
            let Some(report) = &guest.report else { continue };
            for (index, page) in report.hints.iter().enumerate().take(guest.tids.len()) {
                let vcpu = guest.first + index;
                if schedule.set_hints(vcpu, hints(&page.guest)) {
                    events.push(Event::Hint { vcpu });
                }
                if doorbell {
                    guest.read_doorbell(vcpu, page, &mut events);
                }
            }
        }
        events
    }

    /// Copies run time and waits of each vCPU to `schedule`.
    pub(super) fn read_cpu_times(&mut self, schedule: &mut Schedule) {
        for guest in &mut self.0 {
            for (index, thread) in guest.threads.iter_mut().enumerate() {
                // A thread that has exited keeps its last values.
                if let Ok(reading) = thread.read() {
                    let (waited, is_halted) = (thread.waits.add(reading), reading.is_halted());
                    schedule.set_cpu_time(guest.first + index, reading.ran, waited, is_halted);
                }
            }
        }
    }

    /// Writes the ends of the current slices (guest TSC) to the hint pages.
    pub(super) fn write_slice_ends(&self, state: &SchedState) {
        for cpu in &state.cpus {
            let Assignment::Vcpu(vcpu) = cpu.assignment else { continue };
            let GuestVcpu { guest, index } = self.locate(vcpu);
            let Some(guest) = self.0.get(guest) else { continue };
            let page = guest.report.as_ref().and_then(|report| report.hints.get(index));
            if let (Some(page), Some(clock)) = (page, &guest.clock) {
                page.host.slice_end.store(clock.tsc_at(cpu.until), Ordering::Relaxed);
            }
        }
    }

    /// Asks the threads that wait for the guests to end them.
    pub(super) fn request_stop(&self) {
        for guest in &self.0 {
            guest.event_sender.send(Message::StopRequested);
        }
    }
}

impl MeasuredThread {
    fn new(handle: Arc<VcpuHandle>) -> Result<Self, RunError> {
        let tid = handle.kick_handle().tid();
        let probe = ThreadProbe::of_thread(tid).map_err(|source| RunError::CpuTime { tid, source })?;
        Ok(Self { probe, handle, waits: Waits::default() })
    }

    fn read(&self) -> io::Result<VcpuReading> {
        let ThreadReading { at_ns, run_ns, run_delay_ns, sleeps, is_asleep } = self.probe.read()?;
        Ok(VcpuReading {
            at: at_ns,
            ran: run_ns,
            ended_waits: run_delay_ns + self.handle.descheduled_ns(),
            sleeps,
            is_asleep,
            descheduled_since: self.handle.is_descheduled().then(|| self.handle.requested_ns()),
        })
    }
}

impl Guest {
    /// Adds the events for which `vcpu` rang its doorbell since the last call.
    fn read_doorbell(&self, vcpu: Vcpu, page: &HintPage, events: &mut Vec<Event>) {
        if page.guest.doorbell.load(Ordering::Relaxed) == 0 {
            return;
        }
        let pending = page.guest.doorbell.swap(0, Ordering::AcqRel);
        let is_pending = |bit: Doorbell| pending & bit as u32 != 0;
        if is_pending(Doorbell::Halt) {
            events.push(Event::Halted { vcpu });
        }
        if is_pending(Doorbell::Wake) {
            events.push(Event::Woke { vcpu });
        }
        let to = page.guest.yield_to.load(Ordering::Relaxed) as usize;
        if is_pending(Doorbell::Yield) && to < self.tids.len() {
            events.push(Event::YieldTo { from: vcpu, to: self.first + to });
        }
    }
}

fn hints(page: &HintsInMemory) -> GuestHints {
    let since = page.waiting_since.load(Ordering::Relaxed);
    GuestHints {
        hint: u8::try_from(page.urgent.load(Ordering::Relaxed)).unwrap_or(u8::MAX),
        locks_held: page.locks_held.load(Ordering::Relaxed),
        waiting_since_tsc: (since != 0).then_some(since),
        is_halted: page.is_halted.load(Ordering::Relaxed) != 0,
    }
}
