//! Schedule: validates the decisions of a policy, and keeps the assignment of each CPU.
//!
//! [`Schedule::apply`] takes the decisions on one event together. Either all are valid and it
//! returns the resulting [`Change`]s, or it refuses all with a [`Refusal`] and the schedule stays
//! as it is. It has no clock: the caller sets the time.

mod change;

pub use change::{Change, Refusal};

use super::{Assignment, Cpu, CpuView, Decision, Event, GuestHints, Ns, SchedState, Vcpu, VcpuView};

/// Time (ns) by which a slice is extended if the policy returns no valid decision at its end.
pub const GRACE: Ns = 1_000_000;

/// The assignments of all CPUs, and the pending timers.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    state: SchedState,
    /// For each CPU with a boosted vCPU: the assignment that the boost interrupted.
    interrupted: Vec<Option<CpuView>>,
    /// Expiries of timers (ns), sorted.
    alarms: Vec<Ns>,
}

impl Schedule {
    /// A schedule that leaves `cpus` CPUs to the host. `guests` holds the number of vCPUs of each
    /// guest, whose homes are assigned round robin.
    pub fn new(cpus: usize, guests: &[usize]) -> Self {
        let mut vcpus = Vec::new();
        for (guest, count) in guests.iter().enumerate() {
            let view = |vcpu: usize| VcpuView { guest, home: vcpu % cpus.max(1), ..VcpuView::default() };
            vcpus.extend((0..*count).map(view));
        }
        let state = SchedState { now: 0, cpus: vec![CpuView::default(); cpus], vcpus };
        Self { state, interrupted: vec![None; cpus], alarms: Vec::new() }
    }

    /// The state that policies decide on.
    pub fn state(&self) -> &SchedState {
        &self.state
    }

    /// Sets the current time to `now` (ns).
    pub fn advance_to(&mut self, now: Ns) {
        self.state.now = now;
    }

    /// Updates the hints about `vcpu`. Returns whether [`GuestHints::hint`] changed.
    pub fn set_hints(&mut self, vcpu: Vcpu, hints: GuestHints) -> bool {
        let Some(view) = self.state.vcpus.get_mut(vcpu) else { return false };
        let before = std::mem::replace(&mut view.hints, hints);
        before.hint != hints.hint
    }

    /// Updates the times (ns) that `vcpu` has run and waited so far, and whether its thread is
    /// blocked.
    pub fn set_cpu_time(&mut self, vcpu: Vcpu, ran: Ns, waited: Ns, is_asleep: bool) {
        if let Some(view) = self.state.vcpus.get_mut(vcpu) {
            (view.ran, view.waited, view.is_asleep) = (ran, waited, is_asleep);
        }
    }

    /// Marks `vcpu` as gone. The slice of its CPU ends at once.
    pub fn remove(&mut self, vcpu: Vcpu) {
        let now = self.state.now;
        if let Some(view) = self.state.vcpus.get_mut(vcpu) {
            view.is_gone = true;
        }
        if let Some(cpu) = self.state.cpu_of(vcpu).and_then(|cpu| self.state.cpus.get_mut(cpu)) {
            *cpu = CpuView { assignment: Assignment::Idle, until: now };
        }
    }

    /// The earliest end of a slice or expiry of a timer (ns).
    pub fn next_due(&self) -> Option<Ns> {
        let cpus = self.state.cpus.iter().filter(|cpu| cpu.assignment != Assignment::Host);
        cpus.map(|cpu| cpu.until).chain(self.next_alarm()).min()
    }

    /// The earliest expiry of a timer (ns).
    pub fn next_alarm(&self) -> Option<Ns> {
        self.alarms.first().copied()
    }

    /// Returns the next event that is due, for the policy to handle. Boosts that end on the way
    /// restore the interrupted assignment, which adds to `changes`.
    pub fn pop_due(&mut self, changes: &mut Vec<Change>) -> Option<Event> {
        let now = self.state.now;
        if self.alarms.first().is_some_and(|at| *at <= now) {
            return Some(Event::Alarm { due: self.alarms.remove(0) });
        }
        (0..self.state.cpus.len()).find_map(|cpu| self.pop_due_on(cpu, changes))
    }

    /// As [`Schedule::pop_due`], for the slice on one CPU.
    pub fn pop_due_on(&mut self, cpu: Cpu, changes: &mut Vec<Change>) -> Option<Event> {
        let now = self.state.now;
        let view = self.state.cpus.get(cpu).copied();
        let view = view.filter(|view| view.assignment != Assignment::Host && view.until <= now)?;
        let Some(interrupted) = self.interrupted[cpu].take() else {
            return Some(Event::Tick { cpu, due: view.until });
        };
        let is_valid = match interrupted.assignment {
            Assignment::Host => true,
            Assignment::Idle => interrupted.until > now,
            Assignment::Vcpu(vcpu) => interrupted.until > now && self.state.may_run_on(cpu, vcpu),
        };
        if !is_valid {
            return Some(Event::Tick { cpu, due: interrupted.until.min(now) });
        }
        self.state.cpus[cpu] = interrupted;
        if interrupted.assignment != view.assignment {
            changes.push(Change::Switch { cpu, from: view.assignment, to: interrupted.assignment });
        }
        None
    }

    /// Completes `event`, whose decisions `was_refused` or not. If the slice or timer needs an
    /// answer and has none, it is extended by [`GRACE`], after which the policy gets another event.
    /// Returns whether it was extended.
    pub fn complete(&mut self, event: Event, was_refused: bool) -> bool {
        let now = self.state.now;
        match event {
            Event::Tick { cpu, .. } => match self.state.cpus.get_mut(cpu) {
                Some(view) if view.assignment != Assignment::Host && view.until <= now => {
                    view.until = now + GRACE;
                    true
                }
                _ => false,
            },
            Event::Alarm { .. } if was_refused => {
                self.set_alarm(now + GRACE);
                true
            }
            _ => false,
        }
    }

    /// Applies `decisions` at time `now` (ns), and appends the resulting changes to `changes`.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn apply(
        &mut self,
        now: Ns,
        decisions: &[Decision],
        changes: &mut Vec<Change>,
    ) -> Result<(), Refusal> {
        let mut next = self.clone();
        let decided_at = std::mem::replace(&mut next.state.now, now);
        let begin = changes.len();
        let applied = next.apply_all(decided_at, decisions, changes).and_then(|()| next.validate());
        match applied {
            Ok(()) => *self = next,
            Err(_) => changes.truncate(begin),
        }
        applied
    }

    fn apply_all(
        &mut self,
        decided_at: Ns,
        decisions: &[Decision],
        changes: &mut Vec<Change>,
    ) -> Result<(), Refusal> {
        let mut assigned = vec![false; self.state.cpus.len()];
        let mut throttled = vec![false; self.state.vcpus.len()];
        for decision in decisions {
            match *decision {
                Decision::Run { cpu, vcpu, until } => {
                    mark_once(&mut assigned, cpu)?;
                    self.interrupted[cpu] = None;
                    self.assign(cpu, Assignment::Vcpu(vcpu), until, changes)?;
                }
                Decision::Idle { cpu, until } => {
                    mark_once(&mut assigned, cpu)?;
                    self.interrupted[cpu] = None;
                    self.assign(cpu, Assignment::Idle, until, changes)?;
                }
                Decision::Boost { cpu, vcpu, until } => {
                    mark_once(&mut assigned, cpu)?;
                    let before = self.state.cpus[cpu];
                    // A boost during a boost keeps the assignment that the first one interrupted.
                    self.interrupted[cpu].get_or_insert(before);
                    self.assign(cpu, Assignment::Vcpu(vcpu), until, changes)?;
                }
                Decision::Throttle { vcpu } => {
                    mark_once(&mut throttled, vcpu)?;
                    if !std::mem::replace(&mut self.state.vcpus[vcpu].is_throttled, true) {
                        changes.push(Change::Throttle(vcpu));
                    }
                }
                Decision::Unthrottle { vcpu } => {
                    mark_once(&mut throttled, vcpu)?;
                    if std::mem::replace(&mut self.state.vcpus[vcpu].is_throttled, false) {
                        changes.push(Change::Unthrottle(vcpu));
                    }
                }
                Decision::Migrate { vcpu, cpu } => {
                    let view = self.state.vcpus.get_mut(vcpu).ok_or(Refusal::Impossible)?;
                    if cpu >= assigned.len() {
                        return Err(Refusal::Impossible);
                    }
                    view.home = cpu;
                    changes.push(Change::Migrate(vcpu, cpu));
                }
                Decision::Tune { vcpu, nice, slice } => {
                    if vcpu >= throttled.len() {
                        return Err(Refusal::Impossible);
                    }
                    changes.push(Change::Tune(vcpu, nice, slice));
                }
                // A timer that expired while the policy was deciding is due, not late.
                Decision::Alarm { at } if at <= decided_at => return Err(Refusal::Late),
                Decision::Alarm { at } => self.set_alarm(at),
            }
        }
        Ok(())
    }

    fn set_alarm(&mut self, at: Ns) {
        let index = self.alarms.partition_point(|other| *other < at);
        if self.alarms.get(index) != Some(&at) {
            self.alarms.insert(index, at);
        }
    }

    fn assign(
        &mut self,
        cpu: Cpu,
        assignment: Assignment,
        until: Ns,
        changes: &mut Vec<Change>,
    ) -> Result<(), Refusal> {
        if until <= self.state.now {
            return Err(Refusal::Late);
        }
        let view = self.state.cpus.get_mut(cpu).ok_or(Refusal::Impossible)?;
        let from = std::mem::replace(view, CpuView { assignment, until }).assignment;
        if from != assignment {
            changes.push(Change::Switch { cpu, from, to: assignment });
        }
        Ok(())
    }

    /// Checks that each assigned vCPU exists, is not throttled, and is on one CPU only.
    fn validate(&self) -> Result<(), Refusal> {
        let mut runs = vec![false; self.state.vcpus.len()];
        for cpu in 0..self.state.cpus.len() {
            let Some(vcpu) = self.state.on(cpu) else { continue };
            let view = self.state.vcpus.get(vcpu).filter(|view| !view.is_gone);
            let view = view.ok_or(Refusal::Impossible)?;
            if view.is_throttled || std::mem::replace(&mut runs[vcpu], true) {
                return Err(Refusal::Contradictory);
            }
        }
        Ok(())
    }
}

/// Marks `index`; an error if it is marked already or does not exist.
fn mark_once(marks: &mut [bool], index: usize) -> Result<(), Refusal> {
    match marks.get_mut(index) {
        None => Err(Refusal::Impossible),
        Some(true) => Err(Refusal::Contradictory),
        Some(mark) => {
            *mark = true;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
