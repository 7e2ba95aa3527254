//! The board: what was decided for each CPU, and whether what is decided next makes sense.
//!
//! A policy's decisions on one event are posted together. The board takes all of them, and says what has to change
//! ([`Move`]), or it takes none, says why ([`Refusal`]), and what was planned goes on. It is pure: it is told what time it is.

use super::{Cpu, CpuView, Decision, Event, Ns, Plan, Scene, Told, Vcpu, VcpuView};

/// Where a policy gives no usable answer to a tick, what was planned goes on for so long (ns) before it is asked again.
pub const GRACE: Ns = 1_000_000;

/// Why decisions were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// What was decided lasts until a moment that has passed.
    #[error("it came too late")]
    Late,
    /// One vCPU on two CPUs, two decisions for one CPU, a parked vCPU that is to run.
    #[error("it contradicts itself")]
    Contradictory,
    /// A CPU or a vCPU that there is not, or one that is gone.
    #[error("it names what there is not")]
    Impossible,
}

/// What has to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Another one runs on a CPU.
    Switch {
        /// Where.
        cpu: Cpu,
        /// What was planned so far.
        from: Plan,
        /// What is now.
        to: Plan,
    },
    /// A vCPU must not run.
    Park(Vcpu),
    /// A vCPU may run again.
    Resume(Vcpu),
    /// A vCPU lives elsewhere.
    Place(Vcpu, Cpu),
    /// The host's scheduler is to treat a vCPU in another way.
    Tune(Vcpu, i8, Ns),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Board {
    scene: Scene,
    /// What was planned for each CPU on which one is boosted.
    under: Vec<Option<CpuView>>,
    /// In order.
    alarms: Vec<Ns>,
}

impl Board {
    /// A board for `cpus` CPUs and guests of so many vCPUs each. All CPUs are the host's to give. The vCPUs of a guest live on
    /// the CPUs in turn.
    pub fn new(cpus: usize, guests: &[usize]) -> Self {
        let mut vcpus = Vec::new();
        for (guest, count) in guests.iter().enumerate() {
            let view = |vcpu: usize| VcpuView { guest, home: vcpu % cpus.max(1), ..VcpuView::default() };
            vcpus.extend((0..*count).map(view));
        }
        let scene = Scene { now: 0, cpus: vec![CpuView::default(); cpus], vcpus };
        Self { scene, under: vec![None; cpus], alarms: Vec::new() }
    }

    /// The state of things.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// It is `now`.
    pub fn turn_to(&mut self, now: Ns) {
        self.scene.now = now;
    }

    /// Takes down what a guest says of `vcpu`. Gives whether its hint has changed.
    pub fn tell(&mut self, vcpu: Vcpu, told: Told) -> bool {
        let Some(view) = self.scene.vcpus.get_mut(vcpu) else { return false };
        let before = std::mem::replace(&mut view.told, told);
        before.hint != told.hint
    }

    /// Takes down how long `vcpu` has run, and has waited for a CPU, so far, and whether its thread sleeps.
    pub fn account(&mut self, vcpu: Vcpu, ran: Ns, waited: Ns, is_asleep: bool) {
        if let Some(view) = self.scene.vcpus.get_mut(vcpu) {
            (view.ran, view.waited, view.is_asleep) = (ran, waited, is_asleep);
        }
    }

    /// `vcpu` is gone for good. Where it was to run there is a tick at once.
    pub fn lose(&mut self, vcpu: Vcpu) {
        let now = self.scene.now;
        if let Some(view) = self.scene.vcpus.get_mut(vcpu) {
            view.is_gone = true;
        }
        if let Some(cpu) = self.scene.cpu_of(vcpu).and_then(|cpu| self.scene.cpus.get_mut(cpu)) {
            *cpu = CpuView { plan: Plan::Idle, until: now };
        }
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Ns> {
        let cpus = self.scene.cpus.iter().filter(|cpu| cpu.plan != Plan::Host).map(|cpu| cpu.until);
        cpus.chain(self.next_alarm()).min()
    }

    /// When there is an alarm next.
    pub fn next_alarm(&self) -> Option<Ns> {
        self.alarms.first().copied()
    }

    /// The next thing that is due, if one is: an event to ask the policy about. Boosts that are over are taken back on the way,
    /// which asks for `moves`.
    pub fn due(&mut self, moves: &mut Vec<Move>) -> Option<Event> {
        let now = self.scene.now;
        if self.alarms.first().is_some_and(|at| *at <= now) {
            return Some(Event::Alarm { due: self.alarms.remove(0) });
        }
        (0..self.scene.cpus.len()).find_map(|cpu| self.due_on(cpu, moves))
    }

    /// As [`Board::due`], on one CPU alone.
    pub fn due_on(&mut self, cpu: Cpu, moves: &mut Vec<Move>) -> Option<Event> {
        let now = self.scene.now;
        let view = self.scene.cpus.get(cpu).copied();
        let view = view.filter(|view| view.plan != Plan::Host && view.until <= now)?;
        let Some(under) = self.under[cpu].take() else { return Some(Event::Tick { cpu, due: view.until }) };
        let still_holds = match under.plan {
            Plan::Host => true,
            Plan::Idle => under.until > now,
            Plan::Runs(vcpu) => under.until > now && self.scene.may_run_on(cpu, vcpu),
        };
        if !still_holds {
            return Some(Event::Tick { cpu, due: under.until.min(now) });
        }
        self.scene.cpus[cpu] = under;
        if under.plan != view.plan {
            moves.push(Move::Switch { cpu, from: view.plan, to: under.plan });
        }
        None
    }

    /// The policy has been asked about `event`, and what it said `was_refused` or not. Where its answer was needed and there is
    /// none, what was planned goes on for [`GRACE`], and then it is asked again. Says whether that is so.
    pub fn settle(&mut self, event: Event, was_refused: bool) -> bool {
        let now = self.scene.now;
        match event {
            Event::Tick { cpu, .. } => match self.scene.cpus.get_mut(cpu) {
                Some(view) if view.plan != Plan::Host && view.until <= now => {
                    view.until = now + GRACE;
                    true
                }
                _ => false,
            },
            Event::Alarm { .. } if was_refused => {
                self.remind(now + GRACE);
                true
            }
            _ => false,
        }
    }

    /// Takes `decisions`, at the moment `now`, and adds what has to change to `moves`.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn post(&mut self, now: Ns, decisions: &[Decision], moves: &mut Vec<Move>) -> Result<(), Refusal> {
        let mut next = self.clone();
        let asked = std::mem::replace(&mut next.scene.now, now);
        let begin = moves.len();
        let posted = next.take(asked, decisions, moves).and_then(|()| next.check());
        match posted {
            Ok(()) => *self = next,
            Err(_) => moves.truncate(begin),
        }
        posted
    }

    fn take(&mut self, asked: Ns, decisions: &[Decision], moves: &mut Vec<Move>) -> Result<(), Refusal> {
        let mut planned = vec![false; self.scene.cpus.len()];
        let mut moved = vec![false; self.scene.vcpus.len()];
        let once = |done: &mut [bool], at: usize| match done.get_mut(at) {
            None => Err(Refusal::Impossible),
            Some(done) if *done => Err(Refusal::Contradictory),
            Some(done) => {
                *done = true;
                Ok(())
            }
        };
        for decision in decisions {
            match *decision {
                Decision::Run { cpu, vcpu, until } => {
                    once(&mut planned, cpu)?;
                    self.under[cpu] = None;
                    self.plan(cpu, Plan::Runs(vcpu), until, moves)?;
                }
                Decision::Idle { cpu, until } => {
                    once(&mut planned, cpu)?;
                    self.under[cpu] = None;
                    self.plan(cpu, Plan::Idle, until, moves)?;
                }
                Decision::Boost { cpu, vcpu, until } => {
                    once(&mut planned, cpu)?;
                    let before = self.scene.cpus[cpu];
                    // Where one was boosted already, what was planned before stays what is planned before.
                    self.under[cpu].get_or_insert(before);
                    self.plan(cpu, Plan::Runs(vcpu), until, moves)?;
                }
                Decision::Park { vcpu } => {
                    once(&mut moved, vcpu)?;
                    if !std::mem::replace(&mut self.scene.vcpus[vcpu].is_parked, true) {
                        moves.push(Move::Park(vcpu));
                    }
                }
                Decision::Resume { vcpu } => {
                    once(&mut moved, vcpu)?;
                    if std::mem::replace(&mut self.scene.vcpus[vcpu].is_parked, false) {
                        moves.push(Move::Resume(vcpu));
                    }
                }
                Decision::Place { vcpu, cpu } => {
                    let view = self.scene.vcpus.get_mut(vcpu).ok_or(Refusal::Impossible)?;
                    if cpu >= planned.len() {
                        return Err(Refusal::Impossible);
                    }
                    view.home = cpu;
                    moves.push(Move::Place(vcpu, cpu));
                }
                Decision::Tune { vcpu, nice, slice } => {
                    if vcpu >= moved.len() {
                        return Err(Refusal::Impossible);
                    }
                    moves.push(Move::Tune(vcpu, nice, slice));
                }
                // One that has come due while the policy was thinking is due.
                Decision::Alarm { at } if at <= asked => return Err(Refusal::Late),
                Decision::Alarm { at } => self.remind(at),
            }
        }
        Ok(())
    }

    /// There is to be an alarm at that moment.
    fn remind(&mut self, at: Ns) {
        let place = self.alarms.partition_point(|other| *other < at);
        if self.alarms.get(place) != Some(&at) {
            self.alarms.insert(place, at);
        }
    }

    fn plan(&mut self, cpu: Cpu, plan: Plan, until: Ns, moves: &mut Vec<Move>) -> Result<(), Refusal> {
        if until <= self.scene.now {
            return Err(Refusal::Late);
        }
        let view = self.scene.cpus.get_mut(cpu).ok_or(Refusal::Impossible)?;
        let from = std::mem::replace(view, CpuView { plan, until }).plan;
        if from != plan {
            moves.push(Move::Switch { cpu, from, to: plan });
        }
        Ok(())
    }

    /// That nobody runs who must not, or twice.
    fn check(&self) -> Result<(), Refusal> {
        let mut runs = vec![false; self.scene.vcpus.len()];
        for cpu in 0..self.scene.cpus.len() {
            let Some(vcpu) = self.scene.on(cpu) else { continue };
            let view = self.scene.vcpus.get(vcpu).filter(|view| !view.is_gone).ok_or(Refusal::Impossible)?;
            if view.is_parked || std::mem::replace(&mut runs[vcpu], true) {
                return Err(Refusal::Contradictory);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Ns = 1_000_000;

    fn board() -> Board {
        let mut board = Board::new(2, &[4]);
        let mut moves = Vec::new();
        let run = |cpu, vcpu| Decision::Run { cpu, vcpu, until: 3 * MS };
        board.post(0, &[run(0, 0), run(1, 1)], &mut moves).unwrap();
        let switch = |cpu, vcpu| Move::Switch { cpu, from: Plan::Host, to: Plan::Runs(vcpu) };
        assert_eq!(moves, [switch(0, 0), switch(1, 1)]);
        board
    }

    /// What `decisions` at 1 ms come to; a refusal must leave all as it was.
    fn post(board: &mut Board, decisions: &[Decision]) -> Result<Vec<Move>, Refusal> {
        let (mut moves, before) = (Vec::new(), board.scene().clone());
        let posted = board.post(MS, decisions, &mut moves);
        if posted.is_err() {
            assert!(moves.is_empty());
            assert_eq!(*board.scene(), before);
        }
        posted.map(|()| moves)
    }

    #[test]
    fn decisions_are_taken_together_or_not_at_all() {
        let run = |cpu, vcpu, until| Decision::Run { cpu, vcpu, until };
        let good = run(0, 2, 4 * MS);
        for (bad, refusal) in [
            (run(1, 3, MS), Refusal::Late),
            (Decision::Alarm { at: 0 }, Refusal::Late),
            (run(0, 3, 4 * MS), Refusal::Contradictory),
            (run(1, 2, 4 * MS), Refusal::Contradictory),
            (Decision::Park { vcpu: 2 }, Refusal::Contradictory),
            (Decision::Idle { cpu: 0, until: 4 * MS }, Refusal::Contradictory),
            (run(2, 3, 4 * MS), Refusal::Impossible),
            (run(1, 4, 4 * MS), Refusal::Impossible),
            (Decision::Park { vcpu: 4 }, Refusal::Impossible),
            (Decision::Place { vcpu: 0, cpu: 2 }, Refusal::Impossible),
            (Decision::Boost { cpu: 1, vcpu: 2, until: 4 * MS }, Refusal::Contradictory),
        ] {
            assert_eq!(post(&mut board(), &[good, bad]), Err(refusal), "{bad:?}");
            assert_eq!(post(&mut board(), &[bad, good]), Err(refusal), "{bad:?} first");
        }
        let switch = Move::Switch { cpu: 0, from: Plan::Runs(0), to: Plan::Runs(2) };
        assert_eq!(post(&mut board(), &[good]), Ok(vec![switch]));
    }

    #[test]
    fn alarm_that_comes_due_while_the_policy_thinks_is_taken_and_due() {
        let mut board = board();
        board.turn_to(MS);
        let alarm = [Decision::Alarm { at: MS + 1 }];
        assert_eq!(board.post(2 * MS, &alarm, &mut Vec::new()), Ok(()));
        board.turn_to(2 * MS);
        assert_eq!(board.due(&mut Vec::new()), Some(Event::Alarm { due: MS + 1 }));
    }

    #[test]
    fn vcpus_may_change_places_in_one_go_but_parked_and_gone_ones_do_not_run() {
        let mut board = board();
        let run = |cpu, vcpu| Decision::Run { cpu, vcpu, until: 4 * MS };
        assert_eq!(post(&mut board, &[run(0, 1), run(1, 0)]).unwrap().len(), 2);
        assert_eq!(post(&mut board, &[Decision::Park { vcpu: 3 }]), Ok(vec![Move::Park(3)]));
        assert_eq!(post(&mut board, &[run(0, 3)]), Err(Refusal::Contradictory));
        assert_eq!(post(&mut board, &[Decision::Resume { vcpu: 3 }, run(0, 3)]).unwrap().len(), 2);
        board.lose(3);
        assert_eq!(post(&mut board, &[run(0, 3)]), Err(Refusal::Impossible));
        assert_eq!(
            board.due(&mut Vec::new()),
            Some(Event::Tick { cpu: 0, due: MS }),
            "its CPU is free at once"
        );
    }

    #[test]
    fn boosted_one_gives_back_what_is_left_of_the_time() {
        let mut board = board();
        let boost = Decision::Boost { cpu: 0, vcpu: 2, until: 2 * MS };
        let there = Move::Switch { cpu: 0, from: Plan::Runs(0), to: Plan::Runs(2) };
        assert_eq!(post(&mut board, &[boost]), Ok(vec![there]));
        assert_eq!(board.next_due(), Some(2 * MS));
        let mut moves = Vec::new();
        board.turn_to(2 * MS);
        assert_eq!(board.due(&mut moves), None, "the policy need not be asked");
        assert_eq!(moves, [Move::Switch { cpu: 0, from: Plan::Runs(2), to: Plan::Runs(0) }]);
        assert_eq!(board.next_due(), Some(3 * MS));
    }

    #[test]
    fn boost_that_outlasts_the_plan_ends_in_a_tick_and_so_does_one_whose_place_is_taken() {
        let mut long = board();
        post(&mut long, &[Decision::Boost { cpu: 0, vcpu: 2, until: 5 * MS }]).unwrap();
        long.turn_to(5 * MS);
        let first = long.due(&mut Vec::new());
        assert_eq!(first, Some(Event::Tick { cpu: 0, due: 3 * MS }));
        let mut taken = board();
        post(&mut taken, &[Decision::Boost { cpu: 0, vcpu: 2, until: 2 * MS }]).unwrap();
        post(&mut taken, &[Decision::Run { cpu: 1, vcpu: 0, until: 3 * MS }]).unwrap();
        taken.turn_to(2 * MS);
        assert_eq!(taken.due(&mut Vec::new()), Some(Event::Tick { cpu: 0, due: 2 * MS }));
    }

    #[test]
    fn unanswered_tick_lets_the_plan_go_on_and_comes_again() {
        let mut board = board();
        board.turn_to(3 * MS);
        assert_eq!(board.due(&mut Vec::new()), Some(Event::Tick { cpu: 0, due: 3 * MS }));
        let tick = |cpu| Event::Tick { cpu, due: 3 * MS };
        assert!(board.settle(tick(0), false) && !board.settle(tick(0), false));
        assert_eq!(board.due(&mut Vec::new()), Some(Event::Tick { cpu: 1, due: 3 * MS }));
        board.turn_to(3 * MS + GRACE);
        assert_eq!(board.due(&mut Vec::new()), Some(Event::Tick { cpu: 0, due: 3 * MS + GRACE }));
    }

    #[test]
    fn alarms_come_in_order_and_once_and_again_where_the_answer_was_refused() {
        let mut board = board();
        let alarm = |at| Decision::Alarm { at: at * MS };
        post(&mut board, &[alarm(8), alarm(2), alarm(8)]).unwrap();
        assert_eq!(board.next_due(), Some(2 * MS));
        board.turn_to(2 * MS);
        assert_eq!(board.due(&mut Vec::new()), Some(Event::Alarm { due: 2 * MS }));
        assert_eq!(board.due(&mut Vec::new()), None);
        assert_eq!(board.alarms, [8 * MS]);
        let alarm = Event::Alarm { due: 2 * MS };
        assert!(!board.settle(alarm, false) && board.settle(alarm, true));
        assert_eq!(board.alarms, [2 * MS + GRACE, 8 * MS]);
    }
}
