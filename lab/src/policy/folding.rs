//! Folding: a guest runs on fewer vCPUs while the host has too few CPUs for all.
//!
//! Each `period` it looks at what part of the time that its running vCPUs wanted they could not have. Over `high` it folds one,
//! under `low` it unfolds one; `least` run always. A vCPU is folded when it neither holds a lock nor waits for one: whatever
//! waits for it then waits for nothing.
//!
//! Source: the steal governor (lkml, April to September 2026), which folds tasks in the guest; defaults from there.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, Scene, Vcpu, Wants};

/// How often it looks for a good moment to fold a vCPU.
const RETRY: Ns = 50_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct Folding {
    high: f64,
    low: f64,
    period: Ns,
    least: usize,
    /// When it looks at the accounts next.
    next: Ns,
    guests: Vec<Fold>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fold {
    /// What its vCPUs have run and have waited, at the last look.
    ran: Ns,
    waited: Ns,
    /// Whom it is about to fold.
    folds: Option<Vcpu>,
}

impl Folding {
    /// `high`, `low`, `period` and `least`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            high: parameters.share("high", 0.05)?,
            low: parameters.share("low", 0.02)?,
            period: parameters.time("period", 100_000_000)?,
            least: parameters.number("least", 1, 1..=255)?,
            next: 0,
            guests: Vec::new(),
        })
    }

    fn accounts(guest: usize, scene: &Scene) -> (Ns, Ns) {
        let views = || scene.vcpus.iter().filter(|view| view.guest == guest);
        (views().map(|view| view.ran).sum(), views().map(|view| view.waited).sum())
    }

    fn look(&mut self, guest: usize, scene: &Scene, out: &mut Vec<Decision>) {
        let (ran, waited) = Self::accounts(guest, scene);
        let Some(fold) = self.guests.get_mut(guest) else { return };
        let (ran_now, waited_now) = (ran.saturating_sub(fold.ran), waited.saturating_sub(fold.waited));
        (fold.ran, fold.waited) = (ran, waited);
        let steal = waited_now as f64 / ((ran_now + waited_now) as f64).max(1.0);
        let is_parked = |vcpu: &Vcpu| scene.vcpus.get(*vcpu).is_some_and(|view| view.is_parked);
        let running: Vec<_> = scene.of_guest(guest).filter(|vcpu| !is_parked(vcpu)).collect();
        fold.folds = None;
        if steal > self.high && running.len() > self.least {
            fold.folds = running.last().copied();
        } else if steal <= self.low
            && let Some(vcpu) = scene.of_guest(guest).find(is_parked)
        {
            out.push(Decision::Resume { vcpu });
        }
    }
}

impl Policy for Folding {
    fn wants(&self) -> Wants {
        Wants { told: true, accounts: true, ..Wants::default() }
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let fold = |guest| {
                    let (ran, waited) = Self::accounts(guest, scene);
                    Fold { ran, waited, folds: None }
                };
                self.guests = (0..scene.guests()).map(fold).collect();
                self.next = scene.now + self.period;
                out.push(Decision::Alarm { at: self.next });
            }
            Event::Alarm { .. } => {
                if scene.now >= self.next {
                    (0..self.guests.len()).for_each(|guest| self.look(guest, scene, out));
                    self.next = scene.after(self.next, self.period);
                }
                for fold in &mut self.guests {
                    let is_quiet = |vcpu: &Vcpu| {
                        let told = scene.told(*vcpu);
                        told.holds == 0 && told.waits_since.is_none()
                    };
                    if let Some(vcpu) = fold.folds.filter(is_quiet) {
                        fold.folds = None;
                        out.push(Decision::Park { vcpu });
                    }
                }
                let is_hunting = self.guests.iter().any(|fold| fold.folds.is_some());
                let at = if is_hunting { scene.now + RETRY } else { self.next };
                out.push(Decision::Alarm { at: at.min(self.next) });
            }
            _ => {}
        }
    }
}
