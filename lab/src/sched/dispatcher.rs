//! The desk: where a policy is asked, and what it says is carried out.
//!
//! One at a time, whoever has an occasion: the driver thread, or, with `park`, a vCPU thread whose turn is over. Whatever a policy
//! does, it cannot hurt more than its own run: what makes no sense is refused, one that panics is asked no more, and one that
//! never lets a vCPU run ends the run.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ScheduledGuest;
use super::guests::Guests;
use super::log::{Chosen, Log, Stopped};
use super::mechanism::Mechanism;
use crate::guest::GuestScheduler;
use crate::policy::schedule::{Change, Schedule};
use crate::policy::{Assignment, Cpu, Decision, Event, Needs, Ns, Policy, Vcpu};
use host::clock;
use vmm::vcpu::control::VcpuHandle;

/// Why steering ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The policy panicked.
    Panicked(String),
    /// It did not let a vCPU run.
    Starved {
        /// Which guest's.
        guest: usize,
        /// Which.
        vcpu: usize,
        /// For how long it has not.
        lasted: Duration,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(why) => write!(f, "the policy panicked: {why}"),
            Self::Starved { guest, vcpu, lasted } => {
                write!(
                    f,
                    "the policy has not let vCPU {vcpu} of guest {guest} run for {:.1} s",
                    lasted.as_secs_f64()
                )
            }
        }
    }
}

thread_local! {
    /// Whether the calling thread is asking a policy.
    static ASKS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is asking a policy: a panic then is the policy's.
pub fn is_asking() -> bool {
    ASKS.get()
}

/// See the module.
#[derive(Debug)]
pub struct Dispatcher {
    /// When something is due next, for a look without the lock.
    next_due: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    policy: Box<dyn Policy>,
    needs: Needs,
    schedule: Schedule,
    mechanism: Box<dyn Mechanism>,
    guests: Guests,
    /// What the policy said to begin with was taken.
    has_begun: bool,
    starvation: Duration,
    /// When each vCPU could run last.
    could_run: Vec<Ns>,
    log: Log,
    out: Vec<Decision>,
    changes: Vec<Change>,
    /// Who has just lost his CPU.
    stopped: Vec<Vcpu>,
    /// When it was over, and why, if by itself.
    over: Option<(Ns, Option<End>)>,
}

impl Dispatcher {
    /// A desk at which nobody was asked yet.
    pub(super) fn new(
        policy: Box<dyn Policy>,
        mechanism: Box<dyn Mechanism>,
        guests: Vec<ScheduledGuest>,
        cpus: usize,
        starvation: Duration,
    ) -> Self {
        let guests = Guests::new(guests);
        let counts = guests.counts();
        let inner = Inner {
            needs: policy.needs(),
            policy,
            schedule: Schedule::new(cpus, &counts),
            mechanism,
            guests,
            has_begun: false,
            starvation,
            could_run: vec![clock::monotonic_ns(); counts.iter().sum()],
            log: Log::with_room(),
            out: Vec::with_capacity(64),
            changes: Vec::with_capacity(64),
            stopped: Vec::with_capacity(64),
            over: None,
        };
        Self { next_due: AtomicU64::new(u64::MAX), inner: Mutex::new(inner) }
    }

    /// Asks the policy for the first time.
    pub(super) fn begin(&self) {
        self.with(|inner| {
            inner.schedule.advance_to(clock::monotonic_ns());
            inner.read_accounts();
            for vcpu in 0..inner.schedule.state().vcpus.len() {
                inner.ask(Event::Ready { vcpu });
            }
            inner.has_begun = !inner.ask(Event::Begin);
        });
    }

    /// Sees to what is due, and to what the guests have rung for.
    pub(super) fn attend(&self) {
        self.with(|inner| inner.attend(None));
    }

    /// When something is due next (ns of the monotonic clock).
    pub(super) fn next_due(&self) -> Ns {
        self.next_due.load(Ordering::Relaxed)
    }

    /// When something is due next that no vCPU thread's own timer will see to.
    pub(super) fn next_untimed(&self, slack: Ns) -> Ns {
        let inner = self.lock();
        let state = inner.schedule.state();
        let due = |cpu: &crate::policy::CpuView| match cpu.assignment {
            Assignment::Host => Ns::MAX,
            Assignment::Idle => cpu.until,
            Assignment::Vcpu(_) => cpu.until.saturating_add(slack),
        };
        let alarm = inner.schedule.next_alarm().unwrap_or(Ns::MAX);
        state.cpus.iter().map(due).min().unwrap_or(Ns::MAX).min(alarm)
    }

    /// A guest is gone.
    pub(super) fn lose(&self, guest: usize) {
        self.with(|inner| {
            inner.schedule.advance_to(clock::monotonic_ns());
            let vcpus: Vec<_> = inner.schedule.state().of_guest(guest).collect();
            for vcpu in vcpus {
                inner.schedule.remove(vcpu);
                inner.mechanism.lose(vcpu);
                inner.ask(Event::Exit { vcpu });
            }
            inner.attend(None);
        });
    }

    /// Ends it: all vCPUs are the host's to run.
    pub(super) fn finish(&self, end: Option<End>) {
        self.lock().finish(end);
        self.next_due.store(u64::MAX, Ordering::Relaxed);
    }

    /// When it was over, why if by itself, and what was done.
    pub(super) fn take(&self) -> (Ns, Option<End>, Log) {
        let mut inner = self.lock();
        let (at, end) = inner.over.clone().unwrap_or((clock::monotonic_ns(), None));
        (at, end, std::mem::take(&mut inner.log))
    }

    fn with(&self, act: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        if inner.over.is_none() {
            act(&mut inner);
        }
        let due = if inner.over.is_some() { None } else { inner.schedule.next_due() };
        self.next_due.store(due.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dispatcher {
    /// The calling vCPU thread, whose handle it is, was kicked. Its slice may be over: then it finds itself descheduled.
    fn on_kick(&self, handle: &VcpuHandle) {
        // Most kicks are for other reasons.
        if clock::monotonic_ns() < self.next_due() {
            return;
        }
        // Each sees to its own turn: it is out of the guest, so what is said of it is so. The others come by themselves.
        self.with(|inner| {
            let cpu = inner.guests.vcpu_of(handle).and_then(|vcpu| inner.schedule.state().cpu_of(vcpu));
            if cpu.is_some() {
                inner.attend(cpu);
            }
        });
    }
}

/// One guest's part in the scheduling of all.
#[derive(Debug)]
pub(super) struct DeskOfGuest {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) guest: usize,
    /// Whether vCPU threads time their own slices.
    pub(super) times_slices: bool,
}

impl GuestScheduler for DeskOfGuest {
    fn on_kick(&self, handle: &VcpuHandle) {
        if self.times_slices {
            self.dispatcher.on_kick(handle);
        }
    }

    fn release_all(&self) {
        self.dispatcher.finish(None);
    }

    fn on_guest_end(&self) {
        self.dispatcher.lose(self.guest);
    }
}

impl Inner {
    /// Sees to what is due on `cpu`, or anywhere.
    fn attend(&mut self, cpu: Option<Cpu>) {
        self.schedule.advance_to(clock::monotonic_ns());
        if !self.has_begun {
            self.has_begun = !self.ask(Event::Begin);
        }
        self.listen();
        while self.over.is_none() {
            let (from, now) = (self.changes.len(), self.schedule.state().now);
            let event = match cpu {
                Some(cpu) => self.schedule.pop_due_on(cpu, &mut self.changes),
                None => self.schedule.pop_due(&mut self.changes),
            };
            if self.changes.len() > from {
                self.carry_out(now, now);
            }
            let Some(event) = event else { break };
            if matches!(event, Event::Alarm { .. }) {
                self.read_accounts();
            }
            let was_refused = self.ask(event);
            if self.schedule.complete(event, was_refused) {
                self.log.unanswered += 1;
                // What goes on has a new end, which is to be timed.
                self.make_it_so();
            }
            self.schedule.advance_to(clock::monotonic_ns());
        }
        self.find_preempted_holders();
        self.find_the_starved();
    }

    /// Looks once more at those who have lost their CPUs: what they hold now they hold for long.
    fn find_preempted_holders(&mut self) {
        if self.stopped.is_empty() || self.over.is_some() {
            return;
        }
        self.schedule.advance_to(clock::monotonic_ns());
        let mut stopped = std::mem::take(&mut self.stopped);
        self.listen();
        stopped.retain(|vcpu| {
            let state = self.schedule.state();
            state.cpu_of(*vcpu).is_none() && state.hints(*vcpu).locks_held > 0
        });
        for vcpu in stopped.drain(..) {
            self.ask(Event::HolderPreempted { vcpu });
        }
        // Those who lose it by this are of no more interest: it goes back and forth no further.
        self.stopped.clear();
    }

    /// Takes down what the guests tell, and asks about what they have rung for.
    fn listen(&mut self) {
        for event in self.read_pages() {
            self.ask(event);
        }
    }

    /// Takes down what the guests tell. Gives what they have rung for, and whose hint has changed.
    fn read_pages(&mut self) -> Vec<Event> {
        if !self.needs.guest_hints {
            return Vec::new();
        }
        let events = self.guests.read_pages(self.needs.doorbell, &mut self.schedule);
        self.log.rings += events.len() as u64;
        events
    }

    /// Asks the policy, and carries out what it says. Says whether that was refused.
    fn ask(&mut self, event: Event) -> bool {
        if self.over.is_some() {
            return false;
        }
        self.log.asked += 1;
        self.out.clear();
        let (policy, state, out) = (&mut self.policy, self.schedule.state(), &mut self.out);
        ASKS.set(true);
        // A policy that has panicked is not asked again, so nobody sees what it has left half done.
        let decided = catch_unwind(AssertUnwindSafe(|| policy.decide(event, state, out)));
        ASKS.set(false);
        if let Err(panic) = decided {
            self.finish(Some(End::Panicked(text_of(&*panic))));
            return false;
        }
        let now = clock::monotonic_ns();
        match self.schedule.apply(now, &self.out, &mut self.changes) {
            Ok(()) => {
                let due = match event {
                    Event::Tick { due, .. } | Event::Alarm { due } => due,
                    _ => now,
                };
                // A turn that was made longer or shorter is no move, but its end is another.
                if !self.changes.is_empty() || !self.out.is_empty() {
                    self.carry_out(due, now);
                }
                false
            }
            Err(refusal) => {
                self.log.refuse(refusal);
                true
            }
        }
    }

    /// Has the vCPU threads do what is on the board, unless they are the host's again.
    fn make_it_so(&mut self) {
        if self.over.is_none() {
            self.mechanism.settle(self.schedule.state());
        }
    }

    /// Makes what is on the board so, and notes what has moved.
    fn carry_out(&mut self, due_ns: Ns, decided_ns: Ns) {
        for change in &self.changes {
            match change {
                Change::Tune(vcpu, nice, slice) => self.mechanism.tune(*vcpu, *nice, *slice),
                Change::CpuHandoff(vcpu, cpu) => self.mechanism.place(*vcpu, *cpu),
                _ => {}
            }
        }
        self.make_it_so();
        let done_ns = clock::monotonic_ns();
        if self.needs.slice_left {
            self.guests.tell_turns(self.schedule.state());
        }
        let who = |plan| if let Assignment::Vcpu(vcpu) = plan { Some(vcpu) } else { None };
        for change in self.changes.drain(..) {
            match change {
                Change::Switch { cpu, from, to } => {
                    let is_hosts = to == Assignment::Host;
                    let (from, to) = (who(from), who(to));
                    self.stopped.extend(from.filter(|_| self.needs.guest_hints));
                    self.log.choose(Chosen { due_ns, decided_ns, done_ns, cpu, from, to, is_hosts });
                }
                Change::Throttle(vcpu) => {
                    self.log.stop(Stopped { at_ns: decided_ns, vcpu, is_stopped: true });
                }
                Change::Unthrottle(vcpu) => {
                    self.log.stop(Stopped { at_ns: decided_ns, vcpu, is_stopped: false });
                }
                Change::CpuHandoff(..) | Change::Tune(..) => {}
            }
        }
        self.note_who_can_run(decided_ns);
    }

    /// Takes down what each thread has run and waited, where that is wanted.
    fn read_accounts(&mut self) {
        if self.needs.cpu_time {
            self.guests.read_accounts(&mut self.schedule);
        }
    }

    fn note_who_can_run(&mut self, now: Ns) {
        let state = self.schedule.state();
        for (vcpu, last) in self.could_run.iter_mut().enumerate() {
            let Some(view) = state.vcpus.get(vcpu) else { continue };
            let is_hosts = state.cpus.get(view.home).is_some_and(|cpu| cpu.assignment == Assignment::Host);
            let has_nothing_to_do = self.needs.guest_hints && view.hints.is_halted;
            if state.cpu_of(vcpu).is_some()
                || is_hosts && !view.is_throttled
                || has_nothing_to_do
                || view.is_gone
            {
                *last = now;
            }
        }
    }

    /// Ends the run where a vCPU was not let run for too long.
    fn find_the_starved(&mut self) {
        let now = self.schedule.state().now;
        self.note_who_can_run(now);
        let starved = |last: &Ns| Duration::from_nanos(now.saturating_sub(*last));
        let found = self.could_run.iter().map(starved).enumerate().find(|(_, time)| *time > self.starvation);
        if let Some((vcpu, lasted)) = found {
            let (guest, vcpu) = self.guests.name_of(vcpu);
            self.finish(Some(End::Starved { guest, vcpu, lasted }));
        }
    }

    fn finish(&mut self, end: Option<End>) {
        if self.over.is_some() {
            return;
        }
        self.mechanism.release_all();
        if end.is_some() {
            self.guests.tell_the_end();
        }
        self.over = Some((clock::monotonic_ns(), end));
    }
}

/// What a panic said.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}
