//! Credit: whoever has credit left comes before whoever has not.
//!
//! Each accounting period CPU time is shared out as credit, by weight; running costs it. On each CPU the first of those under
//! their credit runs for a `slice`, then the first of those over it. A vCPU that was woken while it had credit comes before
//! both (`boost=on`), but nobody is preempted before it has run for `rate`. `cap` is the most that a vCPU may use of a CPU, in
//! percent; 0 for no cap.
//!
//! Source: Xen's credit scheduler (wiki.xenproject.org, `Credit Scheduler`): slices of 30 ms, accounts of 30 ms.

use super::parameters::{ParameterError, Parameters};
use super::{Cpu, Decision, Event, Lines, Ns, Policy, Scene, Vcpu, Wants};

const ACCOUNTING: Ns = 30_000_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct Credit {
    weights: Vec<u32>,
    cap: u32,
    slice: Ns,
    rate: Ns,
    boosts: bool,
    lines: Lines,
    /// Credit of each vCPU (ns of CPU time).
    balances: Vec<i64>,
    /// What each ran in this accounting period.
    used: Vec<Ns>,
    /// Since when who has run on each CPU.
    since: Vec<Ns>,
}

impl Credit {
    /// `weight=256/512/...` by vCPU, the last for all others; `cap`, `slice`, `rate` and `boost`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            weights: parameters.numbers("weight")?,
            cap: parameters.number("cap", 0, 0..=100)?,
            slice: parameters.turn("slice", 30_000_000)?,
            rate: parameters.turn("rate", 1_000_000)?,
            boosts: parameters.switch("boost")?,
            lines: Lines::default(),
            balances: Vec::new(),
            used: Vec::new(),
            since: Vec::new(),
        })
    }

    fn weight(&self, vcpu: Vcpu) -> u64 {
        u64::from(self.weights.get(vcpu).or(self.weights.last()).copied().unwrap_or(256))
    }

    /// Charges who runs on `cpu` for what it ran since it was last charged.
    fn charge(&mut self, cpu: Cpu, scene: &Scene) {
        let Some(since) = self.since.get_mut(cpu) else { return };
        let ran = scene.now.saturating_sub(std::mem::replace(since, scene.now));
        let Some(vcpu) = scene.on(cpu).filter(|vcpu| *vcpu < self.balances.len()) else { return };
        self.balances[vcpu] = self.balances[vcpu].saturating_sub_unsigned(ran);
        self.used[vcpu] += ran;
    }

    /// Shares out the CPUs' time by weight, among those that live on each.
    fn account(&mut self, scene: &Scene) {
        for cpu in 0..scene.cpus.len() {
            self.charge(cpu, scene);
            let here: Vec<_> = self.lines.of(cpu).filter(|vcpu| scene.may_run(*vcpu)).collect();
            let total: u64 = here.iter().map(|vcpu| self.weight(*vcpu)).sum();
            for vcpu in here {
                let share = ACCOUNTING * self.weight(vcpu) / total.max(1);
                let most = i64::try_from(self.slice.max(ACCOUNTING)).unwrap_or(i64::MAX);
                // Whoever does not use its credit may not hoard it, and whoever overdraws is not punished for ever.
                self.balances[vcpu] = self.balances[vcpu].saturating_add_unsigned(share).clamp(-most, most);
            }
        }
        self.used.fill(0);
    }

    fn give(&mut self, cpu: Cpu, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        self.charge(cpu, scene);
        let most = ACCOUNTING * Ns::from(self.cap) / 100;
        let (credit, used, cap) = (&self.balances, &self.used, self.cap);
        let can =
            |vcpu: Vcpu| scene.may_run(vcpu) && (cap == 0 || used.get(vcpu).is_some_and(|used| *used < most));
        let has_credit = |vcpu: Vcpu| credit.get(vcpu).is_some_and(|credit| *credit > 0);
        let next =
            self.lines.next(cpu, |vcpu| can(vcpu) && has_credit(vcpu)).or_else(|| self.lines.next(cpu, can));
        out.push(match next {
            Some(vcpu) => {
                let left =
                    if cap == 0 { self.slice } else { most.saturating_sub(self.used[vcpu]).max(self.rate) };
                Decision::Run { cpu, vcpu, until: scene.after(due, self.slice.min(left)) }
            }
            None => Decision::Idle { cpu, until: scene.now + self.rate },
        });
    }
}

impl Policy for Credit {
    fn wants(&self) -> Wants {
        Wants { told: self.boosts, rings: self.boosts, ..Wants::default() }
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.lines = Lines::by_home(scene);
                self.balances = vec![0; scene.vcpus.len()];
                self.used = vec![0; scene.vcpus.len()];
                self.since = vec![scene.now; scene.cpus.len()];
                self.account(scene);
                (0..scene.cpus.len()).for_each(|cpu| self.give(cpu, scene.now, scene, out));
                out.push(Decision::Alarm { at: scene.now + ACCOUNTING });
            }
            Event::Tick { cpu, due } => self.give(cpu, due, scene, out),
            Event::Alarm { due } => {
                self.account(scene);
                out.push(Decision::Alarm { at: scene.after(due, ACCOUNTING) });
            }
            Event::Woke { vcpu } if self.boosts && scene.may_run(vcpu) && scene.cpu_of(vcpu).is_none() => {
                let cpu = scene.vcpus.get(vcpu).map_or(0, |view| view.home);
                let has_run =
                    self.since.get(cpu).is_some_and(|since| scene.now.saturating_sub(*since) >= self.rate);
                if has_run && self.balances.get(vcpu).is_some_and(|credit| *credit > 0) {
                    self.charge(cpu, scene);
                    out.push(Decision::Run { cpu, vcpu, until: scene.now + self.slice });
                }
            }
            _ => {}
        }
    }
}
