//! Hints: shared pages between guests and the scheduler, and the host's accounts of vCPU threads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::payload::hints::{Doorbell, GuestHints as HintsInMemory, HintPage};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::ReportView;
use crate::policy::schedule::Schedule;
use crate::policy::{Assignment, Event, GuestHints, SchedState, Vcpu};
use host::stats::{self, ThreadStats};
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
    report: Option<ReportView>,
    clock: Option<GuestClock>,
    event_sender: EventSender,
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
    pub(super) fn new(guests: Vec<ScheduledGuest>) -> Self {
        let mut next = 0;
        let guest = |guest: ScheduledGuest| {
            let tids: Vec<_> = guest.handles.iter().map(|handle| handle.kick_handle().tid()).collect();
            let first = next;
            next += tids.len();
            Guest { first, tids, report: guest.report, clock: guest.clock, event_sender: guest.event_sender }
        };
        Self(guests.into_iter().map(guest).collect())
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

    /// Copies run time and run delay of each vCPU thread to `schedule`.
    pub(super) fn read_cpu_times(&self, schedule: &mut Schedule) {
        for guest in &self.0 {
            for (index, tid) in guest.tids.iter().enumerate() {
                // A thread that has exited keeps its last values.
                if let Ok((ran, waited)) = ThreadStats::read_times(*tid) {
                    let is_asleep = stats::is_asleep(*tid).unwrap_or(true);
                    schedule.set_cpu_time(guest.first + index, ran, waited, is_asleep);
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
