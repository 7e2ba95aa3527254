//! Lines: for each CPU, its vCPUs in the order in which they come next.

use std::collections::VecDeque;

use super::{Cpu, Scene, Vcpu};

/// See the module. Whoever runs stands at the end of its line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(Vec<VecDeque<Vcpu>>);

impl Lines {
    /// Every vCPU in the line of the CPU where it lives.
    pub fn by_home(scene: &Scene) -> Self {
        let mut lines = Self(vec![VecDeque::new(); scene.cpus.len()]);
        for (vcpu, view) in scene.vcpus.iter().enumerate() {
            lines.join(view.home, vcpu);
        }
        lines
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.0.len()
    }

    /// Those of `cpu`, the next first.
    pub fn of(&self, cpu: Cpu) -> impl Iterator<Item = Vcpu> + '_ {
        self.0.get(cpu).into_iter().flatten().copied()
    }

    /// `vcpu` stands last at `cpu`, and nowhere else.
    pub fn join(&mut self, cpu: Cpu, vcpu: Vcpu) {
        for line in &mut self.0 {
            line.retain(|other| *other != vcpu);
        }
        if let Some(line) = self.0.get_mut(cpu) {
            line.push_back(vcpu);
        }
    }

    /// The first of `cpu`'s line of whom `pick` holds; it then stands last.
    pub fn next(&mut self, cpu: Cpu, pick: impl Fn(Vcpu) -> bool) -> Option<Vcpu> {
        let line = self.0.get_mut(cpu)?;
        let vcpu = line.remove(line.iter().position(|vcpu| pick(*vcpu))?)?;
        line.push_back(vcpu);
        Some(vcpu)
    }
}
