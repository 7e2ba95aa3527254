//! Work: CPU time spent, in a section and between two.
//!
//! Work is a number of cycles that this vCPU must run for. It is not a deadline: with one, time off the CPU would count
//! as work done, and overcommitment would look free. So the clock is read again and again, and steps that are too long to
//! be ours do not count.

use crate::cpu::Cpu;

/// Uses `cycles` of CPU time.
pub fn work(cpu: &impl Cpu, cycles: u64) {
    if cycles == 0 {
        return;
    }
    let (mut done, mut last) = (0, cpu.cycles());
    while done < cycles {
        let now = cpu.cycles();
        let step = now.wrapping_sub(last);
        last = now;
        if step <= cpu.longest_step() {
            done += step;
        }
    }
}

/// Times between sections: uniform between half and one and a half of their mean, from a seed (xorshift64).
#[derive(Clone, Debug)]
pub struct ThinkTimes {
    state: u64,
    mean: u64,
}

impl ThinkTimes {
    /// The times of one vCPU. Different vCPUs with the same seed get different ones.
    pub fn new(seed: u64, vcpu: protocol::VcpuId, mean: u64) -> Self {
        // Spread what lies close together; xorshift must not start at 0.
        let spread = seed.wrapping_add(1 + vcpu.index() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { state: spread | 1, mean }
    }

    /// The next one, in the unit of the mean.
    pub fn next_time(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.mean / 2 + self.state % (self.mean + 1)
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::sync::atomic::AtomicU32;

    use protocol::VcpuId;

    use super::*;

    /// A clock that steps by 10, and now and then by a lot.
    struct Clock {
        now: Cell<u64>,
        reads: Cell<u64>,
    }

    impl Cpu for Clock {
        fn id(&self) -> VcpuId {
            VcpuId::BOOT
        }
        fn is_preempted(&self, _vcpu: VcpuId) -> bool {
            false
        }
        fn halt_while(&self, _word: &AtomicU32, _value: u32) {}
        fn kick(&self, _vcpu: VcpuId) {}
        fn cycles(&self) -> u64 {
            self.reads.set(self.reads.get() + 1);
            self.now.set(self.now.get() + if self.reads.get().is_multiple_of(7) { 1_000_000 } else { 10 });
            self.now.get()
        }
        fn stolen(&self) -> u64 {
            0
        }
        fn longest_step(&self) -> u64 {
            1000
        }
        fn relax(&self) {}
    }

    #[test]
    fn time_off_the_cpu_is_no_work() {
        let clock = Clock { now: Cell::new(0), reads: Cell::new(0) };
        work(&clock, 600);
        // 60 steps of ours, the others in between, and the first reading.
        assert_eq!(clock.reads.get(), 1 + 60 + clock.reads.get() / 7);
    }

    #[test]
    fn think_times_are_uniform_around_their_mean_and_differ_between_vcpus() {
        let times = |vcpu| ThinkTimes::new(7, VcpuId::new(vcpu).unwrap(), 1000);
        let (mut first, mut second) = (times(0), times(1));
        assert_ne!(first.next_time(), second.next_time());
        let drawn: Vec<_> = (0..100_000).map(|_| first.next_time()).collect();
        assert!(drawn.iter().all(|time| (500..=1500).contains(time)));
        let mean = drawn.iter().sum::<u64>() / drawn.len() as u64;
        assert!((990..=1010).contains(&mean), "{mean}");
        assert_eq!(ThinkTimes::new(0, VcpuId::BOOT, 0).next_time(), 0);
    }
}
