//! The disturbance: a thread that takes a CPU, for a while, again and again.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use host::cpus::Cpus;
use host::thread::{Class, set_own_class};
use host::ticker::Ticker;

/// Times that the CPU is taken fast before it is taken slowly, so that both take about as long.
const FAST_TO_SLOW: u32 = 16;

/// How long the CPU is taken, and left: fast and slow.
const FAST: (Duration, Duration) = (Duration::from_micros(150), Duration::from_micros(350));
const SLOW: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(4));

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Disturbance {
    _ticker: Ticker,
}

impl Disturbance {
    /// Begins to take `cpus`: from everybody, where a real-time class is allowed; otherwise in turn.
    pub(super) fn start(cpus: Cpus) -> io::Result<Self> {
        let begin = move || {
            let _ = cpus.pin_this_thread();
            let _ = set_own_class(Class::Fifo(3));
        };
        let mut rng = Rng::with_seed(1);
        let tick = move || {
            for _ in 0..FAST_TO_SLOW {
                take(FAST, &mut rng);
            }
            take(SLOW, &mut rng);
        };
        // It sleeps by itself, between two takes.
        Ok(Self { _ticker: Ticker::start("disturbance", Duration::ZERO, begin, tick)? })
    }
}

fn take((taken, left): (Duration, Duration), rng: &mut Rng) {
    let about = |time: Duration, rng: &mut Rng| time.mul_f64(0.5 + rng.f64());
    thread::sleep(about(left, rng));
    let (began, taken) = (Instant::now(), about(taken, rng));
    while began.elapsed() < taken {
        std::hint::spin_loop();
    }
}
