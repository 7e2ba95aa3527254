//! The dispatcher's state, under its lock.

use std::time::Duration;

use super::Decided;
use super::watchdog::{Starved, Watchdog};
use crate::guest::RunError;
use crate::policy::schedule::{Change, Schedule};
use crate::policy::{Assignment, Cpu, Decision, Event, Needs, Ns, Policy, Vcpu};
use crate::sched::hints::{Guests, ScheduledGuest};
use crate::sched::log::{AssignmentChange, Log, ThrottleChange};
use crate::sched::mechanism::Mechanism;
use crate::sched::policy_call;
use crate::sched::stop_reason::StopReason;
use host::clock;

/// Maximum number of due events that one dispatch delivers.
const MAX_EVENTS: usize = 256;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) schedule: Schedule,
    pub(super) guests: Guests,
    policy: Box<dyn Policy>,
    needs: Needs,
    mechanism: Box<dyn Mechanism>,
    /// Whether the decisions on [`Event::Begin`] were accepted.
    has_begun: bool,
    watchdog: Watchdog,
    log: Log,
    decisions: Vec<Decision>,
    changes: Vec<Change>,
    /// vCPUs that lost their CPUs by the decisions on the current events.
    preempted: Vec<Vcpu>,
    /// When scheduling ended (ns), and why if the guests had not.
    over: Option<(Ns, Option<StopReason>)>,
}

impl Inner {
    pub(super) fn new(
        policy: Box<dyn Policy>,
        mechanism: Box<dyn Mechanism>,
        guests: Vec<ScheduledGuest>,
        cpus: usize,
        starvation: Duration,
    ) -> Result<Self, RunError> {
        let needs = policy.needs();
        let guests = Guests::new(guests, needs.cpu_time)?;
        let counts = guests.vcpu_counts();
        let vcpus = counts.iter().sum();
        Ok(Self {
            schedule: Schedule::new(cpus, &counts),
            guests,
            policy,
            needs,
            mechanism,
            has_begun: false,
            watchdog: Watchdog::new(vcpus, starvation, clock::monotonic_ns(), needs.guest_hints),
            log: Log::with_room(),
            decisions: Vec::with_capacity(64),
            changes: Vec::with_capacity(64),
            preempted: Vec::with_capacity(64),
            over: None,
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    pub(super) fn begin(&mut self) {
        self.schedule.advance_to(clock::monotonic_ns());
        self.read_cpu_times();
        for vcpu in 0..self.schedule.state().vcpus.len() {
            self.deliver(Event::Ready { vcpu });
        }
        self.has_begun = self.deliver(Event::Begin);
    }

    /// Delivers the events that are due on `cpu`, or on all CPUs, and those that the guests caused.
    pub(super) fn dispatch(&mut self, cpu: Option<Cpu>) {
        self.schedule.advance_to(clock::monotonic_ns());
        if !self.has_begun {
            self.has_begun = self.deliver(Event::Begin);
        }
        self.deliver_guest_events();
        // A policy of tiny slices is always late. The bound lets others take the lock meanwhile.
        for _ in 0..MAX_EVENTS {
            if self.is_over() {
                break;
            }
            let (count, now) = (self.changes.len(), self.schedule.state().now);
            let event = match cpu {
                Some(cpu) => self.schedule.pop_due_on(cpu, &mut self.changes),
                None => self.schedule.pop_due(&mut self.changes),
            };
            if self.changes.len() > count {
                self.apply_changes(now, now);
            }
            let Some(event) = event else { break };
            self.read_cpu_times();
            let is_refused = !self.deliver(event);
            if self.schedule.complete(event, is_refused) {
                self.log.unanswered_ticks += 1;
                // The extended slice needs a timer.
                self.apply_schedule();
            }
            self.schedule.advance_to(clock::monotonic_ns());
        }
        self.deliver_preempted_holders();
    }

    /// Removes the vCPUs of `guest`, whose threads exit.
    pub(super) fn remove_guest(&mut self, guest: usize) {
        self.schedule.advance_to(clock::monotonic_ns());
        let vcpus: Vec<_> = self.schedule.state().of_guest(guest).collect();
        for vcpu in vcpus {
            self.schedule.remove(vcpu);
            self.mechanism.remove(vcpu);
            self.deliver(Event::Exit { vcpu });
        }
        self.dispatch(None);
    }

    pub(super) fn finish(&mut self, reason: Option<StopReason>) {
        if self.is_over() {
            return;
        }
        self.mechanism.release_all();
        if reason.is_some() {
            self.guests.request_stop();
        }
        self.over = Some((clock::monotonic_ns(), reason));
    }

    pub(super) fn take(&mut self) -> Decided {
        let (ended_ns, stop_reason) = self.over.clone().unwrap_or((clock::monotonic_ns(), None));
        Decided { ended_ns, stop_reason, log: std::mem::take(&mut self.log) }
    }

    /// Reads the hints again of vCPUs that were just preempted, and reports lock holders: a lock
    /// that such a vCPU holds now stays held.
    fn deliver_preempted_holders(&mut self) {
        if self.preempted.is_empty() || self.is_over() {
            return;
        }
        self.schedule.advance_to(clock::monotonic_ns());
        let mut preempted = std::mem::take(&mut self.preempted);
        self.deliver_guest_events();
        preempted.retain(|vcpu| {
            let state = self.schedule.state();
            state.cpu_of(*vcpu).is_none() && state.hints(*vcpu).locks_held > 0
        });
        for vcpu in preempted.drain(..) {
            self.deliver(Event::HolderPreempted { vcpu });
        }
        // vCPUs preempted by these decisions are not reported, which bounds the recursion.
        self.preempted.clear();
    }

    /// Reads the guests' hints, and delivers the events that the guests caused.
    fn deliver_guest_events(&mut self) {
        if !self.needs.guest_hints {
            return;
        }
        let events = self.guests.read_hints(self.needs.doorbell, &mut self.schedule);
        self.log.guest_events += events.len() as u64;
        for event in events {
            self.deliver(event);
        }
    }

    /// Delivers `event` to the policy and applies its decisions; returns whether they were valid.
    fn deliver(&mut self, event: Event) -> bool {
        if self.is_over() {
            return true;
        }
        self.log.events += 1;
        self.decisions.clear();
        let state = self.schedule.state();
        if let Err(message) = policy_call::decide(&mut *self.policy, event, state, &mut self.decisions) {
            self.finish(Some(StopReason::Panicked(message)));
            return true;
        }
        let now = clock::monotonic_ns();
        match self.schedule.apply(now, &self.decisions, &mut self.changes) {
            Ok(()) => {
                let due = match event {
                    Event::Tick { due, .. } | Event::Alarm { due } => due,
                    _ => now,
                };
                // A slice with a new end is no change, but needs a new timer.
                if !self.changes.is_empty() || !self.decisions.is_empty() {
                    self.apply_changes(due, now);
                }
                true
            }
            Err(refusal) => {
                self.log.add_refusal(refusal);
                false
            }
        }
    }

    /// Makes the vCPU threads follow the schedule, unless they are the host's again.
    fn apply_schedule(&mut self) {
        if !self.is_over() {
            self.mechanism.apply(self.schedule.state());
        }
    }

    /// Makes the vCPU threads follow the changes, and logs these.
    fn apply_changes(&mut self, due_ns: Ns, decided_ns: Ns) {
        for change in &self.changes {
            match change {
                Change::Tune(vcpu, nice, slice) => self.mechanism.tune(*vcpu, *nice, *slice),
                Change::Migrate(vcpu, cpu) => self.mechanism.migrate(*vcpu, *cpu),
                _ => {}
            }
        }
        self.apply_schedule();
        let applied_ns = clock::monotonic_ns();
        if self.needs.slice_left {
            self.guests.write_slice_ends(self.schedule.state());
        }
        for change in self.changes.drain(..) {
            match change {
                Change::Switch { cpu, from, to } => {
                    let to_host = to == Assignment::Host;
                    let (from, to) = (from.vcpu(), to.vcpu());
                    self.preempted.extend(from.filter(|_| self.needs.guest_hints));
                    let change = AssignmentChange { due_ns, decided_ns, applied_ns, cpu, from, to, to_host };
                    self.log.add_assignment(change);
                }
                Change::Throttle(vcpu) => {
                    self.log.add_throttle(ThrottleChange { decided_ns, vcpu, is_throttled: true });
                }
                Change::Unthrottle(vcpu) => {
                    self.log.add_throttle(ThrottleChange { decided_ns, vcpu, is_throttled: false });
                }
                Change::Migrate(..) | Change::Tune(..) => {}
            }
        }
        self.watchdog.update(self.schedule.state(), decided_ns);
    }

    /// Reads the CPU times of the vCPU threads, if the policy needs them.
    fn read_cpu_times(&mut self) {
        if self.needs.cpu_time {
            self.guests.read_cpu_times(&mut self.schedule);
        }
    }

    /// Ends the session if the policy starves a vCPU. The process was stopped for `stopped_ns` so
    /// far.
    pub(super) fn check_starvation(&mut self, stopped_ns: Ns) {
        if let Some(Starved { vcpu, lasted }) = self.watchdog.check(self.schedule.state(), stopped_ns) {
            let place = self.guests.locate(vcpu);
            self.finish(Some(StopReason::Starved { guest: place.guest, vcpu: place.index, lasted }));
        }
    }
}
