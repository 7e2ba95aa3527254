//! The disturbance: a thread that takes a CPU, for a while, again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::host::cpus::Cpus;
use crate::host::thread::{Class, set_own_class};

/// Times that the CPU is taken fast before it is taken slowly, so that both take about as long.
const FAST_TO_SLOW: u32 = 16;

/// How long the CPU is taken, and left: fast and slow.
const FAST: (Duration, Duration) = (Duration::from_micros(150), Duration::from_micros(350));
const SLOW: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(4));

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Disturbance {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Disturbance {
    /// Begins to take `cpus`: from everybody, where a real-time class is allowed; otherwise in turn.
    pub(super) fn start(cpus: Cpus) -> std::io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread::Builder::new().name("disturbance".to_owned()).spawn(move || {
            let _ = cpus.confine_this_thread();
            let _ = set_own_class(Class::Fifo(3));
            let mut rng = Rng::with_seed(1);
            while !ends.load(Ordering::Relaxed) {
                for _ in 0..FAST_TO_SLOW {
                    take(FAST, &mut rng);
                }
                take(SLOW, &mut rng);
            }
        })?;
        Ok(Self { is_over, thread: Some(thread) })
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

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
