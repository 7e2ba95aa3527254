//! Work: CPU time spent in a section, and between two.
//!
//! Work is a number of cycles for which this vCPU must run. It is not a deadline: with a deadline,
//! time off the CPU would count as work, and overcommitment would look free. So the loop reads the
//! clock, and does not count steps that are longer than [`Cpu::longest_step`].

use protocol::VcpuId;
use protocol::payload::params::Spread;

use crate::cpu::Cpu;

/// Runs for `cycles` of CPU time.
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

/// Random numbers from a seed (xorshift64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns the generator of one vCPU for one purpose. Each pair has its own sequence for a
    /// seed.
    pub fn new(seed: u64, vcpu: VcpuId, purpose: u64) -> Self {
        // Spread neighbouring seeds apart. The state of xorshift must not be 0.
        let spread = seed.wrapping_add(1 + vcpu.index() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((spread ^ purpose.wrapping_mul(0xd134_2543_de82_ef95)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `count`; 0 if `count` is 0.
    pub fn below(&mut self, count: u32) -> u32 {
        let high = self.next() >> 32;
        u32::try_from((high * u64::from(count)) >> 32).unwrap_or(0)
    }

    /// Returns a number from an exponential distribution with mean 1 << 32.
    ///
    /// It needs no logarithm, which `core` does not have. Draw while the numbers fall. If an odd
    /// number of them fell, the first is the fraction. If not, add one to the integer part and
    /// repeat. (von Neumann, "Various techniques used in connection with random digits", 1951.)
    fn exponential(&mut self) -> u64 {
        let mut whole = 0;
        loop {
            let first = self.next() >> 32;
            let (mut last, mut is_odd) = (first, true);
            loop {
                let next = self.next() >> 32;
                if next >= last {
                    break;
                }
                (last, is_odd) = (next, !is_odd);
            }
            // A run of 63 occurs only with a defective seed.
            if is_odd || whole == 63 {
                return (whole << 32) | first;
            }
            whole += 1;
        }
    }
}

/// Random durations of sections, or between them.
#[derive(Clone, Debug)]
pub struct Durations {
    draw: Random,
    mean: u64,
    spread: Spread,
}

impl Durations {
    /// Returns durations with this `mean`, in any unit.
    pub fn new(draw: Random, mean: u64, spread: Spread) -> Self {
        Self { draw, mean, spread }
    }

    /// Returns the next duration, in the unit of the mean.
    pub fn next_duration(&mut self) -> u64 {
        match self.spread {
            Spread::Fixed => self.mean,
            Spread::Uniform => self.mean / 2 + self.draw.next() % (self.mean + 1),
            Spread::Exponential => {
                let scaled = u128::from(self.mean) * u128::from(self.draw.exponential());
                u64::try_from(scaled >> 32).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use super::*;
    use crate::sync::AtomicU32;
    use core::cell::Cell;

    /// A clock that advances by 10 with each read, and by 1,000,000 with each seventh.
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
    fn time_off_the_cpu_does_not_count_as_work() {
        let clock = Clock { now: Cell::new(0), reads: Cell::new(0) };
        work(&clock, 600);
        // 60 counted steps, the long steps in between, and the first read.
        assert_eq!(clock.reads.get(), 1 + 60 + clock.reads.get() / 7);
    }

    fn draw(vcpu: usize) -> Random {
        Random::new(7, VcpuId::new(vcpu).unwrap(), 0)
    }

    #[test]
    fn durations_keep_mean_and_spread_and_differ_by_vcpu() {
        let times = |vcpu, spread| Durations::new(draw(vcpu), 1000, spread);
        assert_ne!(times(0, Spread::Uniform).next_duration(), times(1, Spread::Uniform).next_duration());
        // Second moment over the square of the mean: 1, 1 + 1/12, 2.
        for (spread, second) in [(Spread::Fixed, 1.0), (Spread::Uniform, 1.0833), (Spread::Exponential, 2.0)]
        {
            let mut times = times(0, spread);
            let drawn: Vec<f64> = (0..200_000).map(|_| times.next_duration() as f64).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let square = drawn.iter().map(|time| time * time).sum::<f64>() / drawn.len() as f64;
            assert!((990.0..=1010.0).contains(&mean), "{spread}: {mean}");
            assert!((square / (mean * mean) - second).abs() < 0.02 * second, "{spread}: {square}");
        }
        assert_eq!(Durations::new(draw(0), 0, Spread::Uniform).next_duration(), 0);
    }

    #[test]
    fn random_numbers_are_even_and_differ_by_purpose() {
        let mut draw = draw(0);
        let mut counts = [0_u32; 8];
        (0..80_000).for_each(|_| counts[draw.below(8) as usize] += 1);
        assert!(counts.iter().all(|count| (9_500..=10_500).contains(count)), "{counts:?}");
        assert_eq!(draw.below(0), 0);
        let (mut one, mut other) = (Random::new(7, VcpuId::BOOT, 1), Random::new(7, VcpuId::BOOT, 2));
        assert_ne!(one.next(), other.next());
    }
}
