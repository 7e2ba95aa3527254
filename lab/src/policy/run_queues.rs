//! Run queues: for each CPU, its vCPUs in the order in which they run next.

use std::collections::VecDeque;

use super::{Cpu, SchedState, Vcpu};

/// One FIFO queue of vCPUs for each CPU. The running vCPU stays in its queue, at the tail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunQueues(Vec<VecDeque<Vcpu>>);

impl RunQueues {
    /// Queues each vCPU on its home CPU.
    pub fn by_home(state: &SchedState) -> Self {
        let mut queues = Self(vec![VecDeque::new(); state.cpus.len()]);
        for (vcpu, view) in state.vcpus.iter().enumerate() {
            queues.enqueue(view.home, vcpu);
        }
        queues
    }

    /// Number of CPUs.
    pub fn cpus(&self) -> usize {
        self.0.len()
    }

    /// The queue of `cpu`, head first.
    pub fn of(&self, cpu: Cpu) -> impl Iterator<Item = Vcpu> + '_ {
        self.0.get(cpu).into_iter().flatten().copied()
    }

    /// Moves `vcpu` to the tail of the queue of `cpu`, from whichever queue holds it.
    pub fn enqueue(&mut self, cpu: Cpu, vcpu: Vcpu) {
        for queue in &mut self.0 {
            queue.retain(|other| *other != vcpu);
        }
        if let Some(queue) = self.0.get_mut(cpu) {
            queue.push_back(vcpu);
        }
    }

    /// Returns the first vCPU of the queue of `cpu` for which `is_eligible` holds, and moves it to
    /// the tail.
    pub fn pick_next(&mut self, cpu: Cpu, is_eligible: impl Fn(Vcpu) -> bool) -> Option<Vcpu> {
        let queue = self.0.get_mut(cpu)?;
        let vcpu = queue.remove(queue.iter().position(|vcpu| is_eligible(*vcpu))?)?;
        queue.push_back(vcpu);
        Some(vcpu)
    }
}
