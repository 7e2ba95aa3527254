//! A CPU hog: threads that compete for CPUs with the threads under test.
//!
//! A hog thread spins for the busy time of a burst, sleeps for its idle time, and repeats. Benches
//! use it as background load, the accuracy measurement as the cause of preemptions.
//!
//! Hogs are threads of this process, so
//! [`CpuStats::other_tasks`](super::stats::CpuStats::other_tasks) does not count them as a
//! disturbance from outside.

use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cpus::Cpus;
use super::thread::{Class, set_own_class};
use super::ticker::Ticker;

/// A busy time followed by an idle time, repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Time for which the hog spins.
    pub busy: Duration,
    /// Time for which it then sleeps.
    pub idle: Duration,
    /// Number of times before the next burst of the list follows.
    pub repeat: u32,
}

impl Burst {
    /// Returns a burst that is busy for `busy`, and idle so long that it uses the share `duty` of a
    /// CPU (0 to 1).
    ///
    /// With a duty of 0 it sleeps for `busy` and never spins.
    pub fn with_duty(busy: Duration, duty: f64) -> Self {
        let duty = duty.clamp(0.0, 1.0);
        if duty == 0.0 {
            return Self { busy: Duration::ZERO, idle: busy, repeat: 1 };
        }
        let idle = busy.mul_f64((1.0 - duty) / duty.max(1e-3));
        Self { busy, idle, repeat: 1 }
    }
}

/// What a hog thread does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HogLoad {
    /// The bursts, which the thread runs through in order, again and again.
    pub bursts: Vec<Burst>,
    /// Whether to scale each time by a random factor from 0.5 to 1.5, from a fixed seed.
    pub jitter: bool,
    /// The scheduling class. If the host refuses it, the hog stays in `SCHED_OTHER`.
    pub class: Class,
}

impl HogLoad {
    /// Returns the busy and idle times of a hog thread, pair by pair: without end, unless there are
    /// no bursts.
    fn steps(self) -> impl Iterator<Item = (Duration, Duration)> + Send + 'static {
        let Self { bursts, jitter, .. } = self;
        let times =
            bursts.into_iter().flat_map(|burst| (0..burst.repeat).map(move |_| (burst.busy, burst.idle)));
        let mut random = SplitMix64(1);
        let mut scale = move |time: Duration| if jitter { time.mul_f64(0.5 + random.unit()) } else { time };
        times.cycle().map(move |(busy, idle)| (scale(busy), scale(idle)))
    }
}

/// The sleep of a hog without bursts.
const IDLE: Duration = Duration::from_millis(10);

/// Running hog threads. Dropping it ends them, also within a burst.
#[derive(Debug)]
pub struct CpuHog {
    is_over: Arc<AtomicBool>,
    _threads: Vec<Ticker>,
}

impl Drop for CpuHog {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl CpuHog {
    /// Starts one hog thread for each set of `placements`, pinned to that set.
    ///
    /// [`Cpus::each`] loads each CPU of a set; an array of one set starts one thread that the host
    /// moves between its CPUs.
    ///
    /// # Errors
    /// The host cannot create a thread.
    pub fn start(load: &HogLoad, placements: impl IntoIterator<Item = Cpus>) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let hog = |cpus: Cpus| {
            let (class, mut steps) = (load.class, load.clone().steps());
            let is_over = Arc::clone(&is_over);
            let begin = move || {
                let _ = cpus.pin_this_thread();
                let _ = set_own_class(class);
            };
            let tick = move || {
                let (busy, idle) = steps.next().unwrap_or((Duration::ZERO, IDLE));
                // The end of the hog unparks the thread.
                repeat_for(busy, &is_over, |_| hint::spin_loop());
                repeat_for(idle, &is_over, thread::park_timeout);
            };
            Ticker::start("cpu-hog", Duration::ZERO, begin, tick)
        };
        let threads = placements.into_iter().map(hog).collect::<io::Result<_>>()?;
        Ok(Self { is_over, _threads: threads })
    }
}

/// Calls `step` with the time that is left, until `time` has passed or `is_over`.
fn repeat_for(time: Duration, is_over: &AtomicBool, step: impl Fn(Duration)) {
    let began = Instant::now();
    while let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        step(left);
    }
}

/// `SplitMix64`, a small random number generator (Steele, Lea and Flood 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    /// Returns a number from 0 (inclusive) to 1 (exclusive).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // The upper 53 bits fit a double exactly
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn load(bursts: &[Burst], jitter: bool) -> HogLoad {
        HogLoad { bursts: bursts.to_vec(), jitter, class: Class::Fair }
    }

    #[test]
    fn burst_with_duty_is_idle_for_the_rest_of_its_period() {
        let burst = |duty| Burst::with_duty(us(1000), duty);
        assert_eq!((burst(0.25).busy, burst(0.25).idle), (us(1000), us(3000)));
        assert_eq!((burst(1.0).busy, burst(1.0).idle), (us(1000), Duration::ZERO));
        assert_eq!((burst(0.0).busy, burst(0.0).idle), (Duration::ZERO, us(1000)));
        assert_eq!(burst(7.0), burst(1.0));
    }

    #[test]
    fn hog_ends_within_a_burst_and_within_a_pause() {
        let day = Duration::from_secs(86_400);
        for (busy, idle) in [(day, Duration::ZERO), (Duration::ZERO, day)] {
            let bursts = [Burst { busy, idle, repeat: 1 }];
            drop(CpuHog::start(&load(&bursts, false), [Cpus::allowed().unwrap()]).unwrap());
        }
    }

    #[test]
    fn bursts_repeat_in_their_order() {
        let [fast, slow] = [(1, 2, 2), (30, 40, 1)].map(|(busy, idle, repeat)| Burst {
            busy: us(busy),
            idle: us(idle),
            repeat,
        });
        let steps: Vec<_> = load(&[fast, slow], false).steps().take(6).collect();
        let (fast, slow) = ((us(1), us(2)), (us(30), us(40)));
        assert_eq!(steps, [fast, fast, slow, fast, fast, slow]);
    }

    #[test]
    fn jitter_scales_each_time_by_half_to_one_and_a_half_and_keeps_the_mean() {
        let burst = Burst { busy: us(1000), idle: us(2000), repeat: 1 };
        let steps = || load(&[burst], true).steps().take(10_000);
        assert!(steps().all(|(busy, idle)| {
            (us(500)..=us(1500)).contains(&busy) && (us(1000)..=us(3000)).contains(&idle)
        }));
        let mean = |time: fn((Duration, Duration)) -> Duration| steps().map(time).sum::<Duration>() / 10_000;
        assert!(mean(|step| step.0).abs_diff(us(1000)) < us(20));
        assert!(mean(|step| step.1).abs_diff(us(2000)) < us(40));
        assert!(steps().eq(steps()), "the seed is fixed");
    }
}
