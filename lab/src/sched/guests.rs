//! The guests, as the desk sees them: who is who, what their pages say, what the host's accounts say of them.

use std::sync::atomic::Ordering;

use protocol::payload::hints::{Doorbell, GuestHints as HintsInMemory, HintPage};

use super::ScheduledGuest;
use crate::guest::ReportView;
use crate::policy::schedule::Schedule;
use crate::policy::{Assignment, Event, GuestHints, SchedState, Vcpu};
use host::stats::{self, ThreadStats};
use vmm::guest_clock::GuestClock;
use vmm::vcpu::control::VcpuHandle;
use vmm::vcpu::{EventSender, Message};

/// See the module. Their vCPUs are numbered one guest after the other.
#[derive(Debug)]
pub(super) struct Guests(Vec<Guest>);

#[derive(Debug)]
struct Guest {
    /// The number of its first vCPU.
    first: Vcpu,
    tids: Vec<libc::pid_t>,
    report: Option<ReportView>,
    clock: Option<GuestClock>,
    event_sender: EventSender,
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

    /// How many vCPUs each has.
    pub(super) fn counts(&self) -> Vec<usize> {
        self.0.iter().map(|guest| guest.tids.len()).collect()
    }

    /// Who sits at `handle`.
    pub(super) fn vcpu_of(&self, handle: &VcpuHandle) -> Option<Vcpu> {
        let tid = handle.kick_handle().tid();
        let index = |guest: &Guest| Some(guest.first + guest.tids.iter().position(|other| *other == tid)?);
        self.0.iter().find_map(index)
    }

    /// Which guest's `vcpu` is, and its number there.
    pub(super) fn name_of(&self, vcpu: Vcpu) -> (usize, usize) {
        let guest = self.0.iter().rposition(|guest| guest.first <= vcpu).unwrap_or(0);
        (guest, vcpu - self.0.get(guest).map_or(0, |guest| guest.first))
    }

    /// Takes down on `schedule` what the guests tell. Gives whose hint has changed, and, where they are `heard`, what they have rung
    /// for.
    pub(super) fn read_pages(&self, is_heard: bool, schedule: &mut Schedule) -> Vec<Event> {
        let mut events = Vec::new();
        for guest in &self.0 {
            let Some(report) = &guest.report else { continue };
            for (index, page) in report.hints.iter().enumerate().take(guest.tids.len()) {
                let vcpu = guest.first + index;
                if schedule.set_hints(vcpu, hints(&page.guest)) {
                    events.push(Event::Hint { vcpu });
                }
                if is_heard {
                    guest.hear(vcpu, page, &mut events);
                }
            }
        }
        events
    }

    /// Takes down on `schedule` what each thread has run and has waited.
    pub(super) fn read_accounts(&self, schedule: &mut Schedule) {
        for guest in &self.0 {
            for (index, tid) in guest.tids.iter().enumerate() {
                // One that has ended has its last account.
                if let Ok((ran, waited)) = ThreadStats::read_times(*tid) {
                    let is_asleep = stats::is_asleep(*tid).unwrap_or(true);
                    schedule.set_cpu_time(guest.first + index, ran, waited, is_asleep);
                }
            }
        }
    }

    /// Tells the guests when the turns of those who run end.
    pub(super) fn tell_turns(&self, state: &SchedState) {
        for cpu in &state.cpus {
            let Assignment::Vcpu(vcpu) = cpu.assignment else { continue };
            let (guest, index) = self.name_of(vcpu);
            let Some(guest) = self.0.get(guest) else { continue };
            let page = guest.report.as_ref().and_then(|report| report.hints.get(index));
            if let (Some(page), Some(clock)) = (page, &guest.clock) {
                page.host.slice_end.store(clock.tsc_at(cpu.until), Ordering::Relaxed);
            }
        }
    }

    /// Tells those who wait for the guests' ends that steering has ended by itself.
    pub(super) fn tell_the_end(&self) {
        for guest in &self.0 {
            guest.event_sender.send(Message::StopRequested);
        }
    }
}

impl Guest {
    /// What `vcpu` has rung for since it was last heard.
    fn hear(&self, vcpu: Vcpu, page: &HintPage, events: &mut Vec<Event>) {
        if page.guest.doorbell.load(Ordering::Relaxed) == 0 {
            return;
        }
        let rung = page.guest.doorbell.swap(0, Ordering::AcqRel);
        let is_rung = |ring: Doorbell| rung & ring as u32 != 0;
        if is_rung(Doorbell::Halt) {
            events.push(Event::Halted { vcpu });
        }
        if is_rung(Doorbell::Wake) {
            events.push(Event::Woke { vcpu });
        }
        let to = page.guest.yield_to.load(Ordering::Relaxed) as usize;
        if is_rung(Doorbell::Yield) && to < self.tids.len() {
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
