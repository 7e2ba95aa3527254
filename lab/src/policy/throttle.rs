//! Throttle: as the host likes, until the guest has used up the quota of a period. Then all of it stands still.
//!
//! That is the kernel's bandwidth control: `quota` of CPU time in each `period`, of which `burst` more can be saved up; what
//! was used is looked at each `slice`. A guest can be stopped with a lock held, and all its vCPUs with it.
//!
//! Source: Linux `Documentation/scheduler/sched-bwc.rst`.

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, Scene, Wants};

/// See the module.
#[derive(Clone, Debug)]
pub struct Throttle {
    quota: Ns,
    period: Ns,
    burst: Ns,
    slice: Ns,
    refill: Ns,
    guests: Vec<Purse>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Purse {
    /// What is left; less than nothing where it was overdrawn.
    left: i64,
    /// CPU time when it was last looked at.
    ran: Ns,
    is_throttled: bool,
}

impl Throttle {
    /// `quota`, `period`, `burst` and `slice`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        let period = parameters.time("period", 100_000_000)?;
        Ok(Self {
            quota: parameters.time("quota", period)?,
            period,
            burst: parameters.time("burst", 0)?,
            slice: parameters.time("slice", 5_000_000)?,
            refill: 0,
            guests: Vec::new(),
        })
    }

    fn look(&mut self, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        let is_refilled = scene.now >= self.refill;
        if is_refilled {
            self.refill = scene.after(self.refill, self.period);
        }
        for (guest, purse) in self.guests.iter_mut().enumerate() {
            let ran: Ns = scene.of_guest(guest).filter_map(|vcpu| Some(scene.vcpus.get(vcpu)?.ran)).sum();
            purse.left = purse.left.saturating_sub_unsigned(ran.saturating_sub(purse.ran));
            purse.ran = ran;
            if is_refilled {
                let most = i64::try_from(self.quota.saturating_add(self.burst)).unwrap_or(i64::MAX);
                purse.left = purse.left.saturating_add_unsigned(self.quota).min(most);
            }
            let is_throttled = purse.left <= 0;
            if std::mem::replace(&mut purse.is_throttled, is_throttled) != is_throttled {
                let change =
                    |vcpu| if is_throttled { Decision::Park { vcpu } } else { Decision::Resume { vcpu } };
                out.extend(scene.of_guest(guest).map(change));
            }
        }
        out.push(Decision::Alarm { at: scene.after(due, self.slice).min(self.refill) });
    }
}

impl Policy for Throttle {
    fn wants(&self) -> Wants {
        Wants { accounts: true, ..Wants::default() }
    }

    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let left = i64::try_from(self.quota).unwrap_or(i64::MAX);
                let ran =
                    |guest| scene.of_guest(guest).filter_map(|vcpu| Some(scene.vcpus.get(vcpu)?.ran)).sum();
                let purse = |guest| Purse { left, ran: ran(guest), is_throttled: false };
                self.guests = (0..scene.guests()).map(purse).collect();
                self.refill = scene.now + self.period;
                out.push(Decision::Alarm { at: scene.now + self.slice.min(self.period) });
            }
            Event::Alarm { due } => self.look(due, scene, out),
            _ => {}
        }
    }
}
