//! Work: CPU time spent, in a section and between two.
//!
//! Work is a number of cycles that this vCPU must run for. It is not a deadline: with one, time off the CPU would count
//! as work done, and overcommitment would look free. So the clock is read again and again, and steps that are too long to
//! be ours do not count.

use protocol::VcpuId;
use protocol::words::Spread;

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

/// Numbers drawn from a seed (xorshift64).
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// What one vCPU draws for one purpose. Different ones with the same seed draw differently.
    pub fn new(seed: u64, vcpu: VcpuId, purpose: u64) -> Self {
        // Spread what lies close together; xorshift must not start at 0.
        let spread = seed.wrapping_add(1 + vcpu.index() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((spread ^ purpose.wrapping_mul(0xd134_2543_de82_ef95)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One of 0 to `count` - 1; 0 if there is none.
    pub fn below(&mut self, count: u32) -> u32 {
        let high = self.next() >> 32;
        u32::try_from((high * u64::from(count)) >> 32).unwrap_or(0)
    }

    /// From an exponential distribution whose mean is 1 << 32.
    ///
    /// By comparisons alone, since there is no logarithm without `std`: draw as long as the numbers fall. If an odd number
    /// of them did, the first is the fraction; if not, it is one whole more, and again. (von Neumann, "Various techniques
    /// used in connection with random digits", 1951.)
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
            // A run of sixty-three is a defect of the seed.
            if is_odd || whole == 63 {
                return (whole << 32) | first;
            }
            whole += 1;
        }
    }
}

/// Times of sections, or between them, from a seed.
#[derive(Clone, Debug)]
pub struct Times {
    draw: Draw,
    mean: u64,
    spread: Spread,
}

impl Times {
    /// Times with this `mean`.
    pub fn new(draw: Draw, mean: u64, spread: Spread) -> Self {
        Self { draw, mean, spread }
    }

    /// The next one, in the unit of the mean.
    pub fn next_time(&mut self) -> u64 {
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

    fn draw(vcpu: usize) -> Draw {
        Draw::new(7, VcpuId::new(vcpu).unwrap(), 0)
    }

    #[test]
    fn times_keep_their_mean_and_spread_and_differ_between_vcpus() {
        let times = |vcpu, spread| Times::new(draw(vcpu), 1000, spread);
        assert_ne!(times(0, Spread::Uniform).next_time(), times(1, Spread::Uniform).next_time());
        // The second moment over the square of the mean: 1, 1 + 1/12, 2.
        for (spread, second) in [(Spread::Fixed, 1.0), (Spread::Uniform, 1.0833), (Spread::Exponential, 2.0)]
        {
            let mut times = times(0, spread);
            let drawn: Vec<f64> = (0..200_000).map(|_| times.next_time() as f64).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let square = drawn.iter().map(|time| time * time).sum::<f64>() / drawn.len() as f64;
            assert!((990.0..=1010.0).contains(&mean), "{spread}: {mean}");
            assert!((square / (mean * mean) - second).abs() < 0.02 * second, "{spread}: {square}");
        }
        assert_eq!(Times::new(draw(0), 0, Spread::Uniform).next_time(), 0);
    }

    #[test]
    fn choices_are_even_and_purposes_draw_differently() {
        let mut draw = draw(0);
        let mut counts = [0_u32; 8];
        (0..80_000).for_each(|_| counts[draw.below(8) as usize] += 1);
        assert!(counts.iter().all(|count| (9_500..=10_500).contains(count)), "{counts:?}");
        assert_eq!(draw.below(0), 0);
        let (mut one, mut other) = (Draw::new(7, VcpuId::BOOT, 1), Draw::new(7, VcpuId::BOOT, 2));
        assert_ne!(one.next(), other.next());
    }
}
