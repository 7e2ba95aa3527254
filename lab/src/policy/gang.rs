//! Gang: the vCPUs of a guest run together or not at all.
//!
//! A guest with more vCPUs than there are CPUs is cut into gangs of as many as fit. CPUs that a gang does not fill stay idle
//! (`pad=idle`), so that whoever is not in it disturbs nobody, or are lent to others (`fill`).

use std::collections::VecDeque;

use super::parameters::{ParameterError, Parameters};
use super::{Decision, Event, Ns, Policy, Scene, Vcpu};

/// See the module.
#[derive(Clone, Debug)]
pub struct Gang {
    quantum: Ns,
    fills: bool,
    gangs: VecDeque<Vec<Vcpu>>,
    /// The ticks of all CPUs are one moment: this one has been answered.
    answered: Option<Ns>,
}

impl Gang {
    /// `quantum`, of a gang's turn; `pad=idle` or `fill`.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn from_parameters(parameters: &mut Parameters<'_>) -> Result<Self, ParameterError> {
        Ok(Self {
            quantum: parameters.turn("quantum", 3_000_000)?,
            fills: parameters.word("pad", &["idle", "fill"])? == "fill",
            gangs: VecDeque::new(),
            answered: None,
        })
    }

    fn turn(&mut self, due: Ns, scene: &Scene, out: &mut Vec<Decision>) {
        self.answered = Some(due);
        let until = scene.after(due, self.quantum);
        let can = |vcpu: &Vcpu| scene.may_run(*vcpu);
        let Some(at) = self.gangs.iter().position(|gang| gang.iter().any(can)) else {
            out.extend((0..scene.cpus.len()).map(|cpu| Decision::Idle { cpu, until }));
            return;
        };
        self.gangs.rotate_left(at);
        let mut chosen: Vec<_> = self.gangs.iter().take(1).flatten().copied().filter(can).collect();
        if self.fills {
            chosen.extend(self.gangs.iter().skip(1).flatten().copied().filter(can));
        }
        self.gangs.rotate_left(1);
        // Whoever can, runs where it lives; a CPU that is free takes whoever is left over.
        let mut cpus = vec![None; scene.cpus.len()];
        let mut left_over = VecDeque::new();
        for vcpu in chosen {
            let home = scene.vcpus.get(vcpu).and_then(|view| cpus.get_mut(view.home));
            match home {
                Some(place @ None) => *place = Some(vcpu),
                _ => left_over.push_back(vcpu),
            }
        }
        for (cpu, place) in cpus.into_iter().enumerate() {
            out.push(match place.or_else(|| left_over.pop_front()) {
                Some(vcpu) => Decision::Run { cpu, vcpu, until },
                None => Decision::Idle { cpu, until },
            });
        }
    }
}

impl Policy for Gang {
    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                let size = scene.cpus.len().max(1);
                self.gangs.clear();
                for guest in 0..scene.guests() {
                    let vcpus: Vec<_> = scene.of_guest(guest).collect();
                    self.gangs.extend(vcpus.chunks(size).map(<[Vcpu]>::to_vec));
                }
                self.turn(scene.now, scene, out);
            }
            Event::Tick { due, .. } if self.answered.is_none_or(|answered| answered < due) => {
                self.turn(due, scene, out);
            }
            // Its CPU ticks at once, perhaps at a moment that has been answered.
            Event::Exit { .. } => self.answered = None,
            _ => {}
        }
    }
}
