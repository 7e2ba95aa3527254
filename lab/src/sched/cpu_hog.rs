//! The cpu_hog: a load beside the guest, which knows nothing of it.
//!
//! On each CPU a thread works for a `burst` and sleeps, so that it works for `duty` of the time. It is a thread like any other,
//! or, with `class=fifo`, comes before vCPU threads of the fair class.

use std::fmt;
use std::hint;
use std::io;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use crate::policy::parameters::{ParameterError, Parameters};
use host::cpus::Cpus;
use host::thread::{Class, set_own_class};
use host::ticker::Ticker;

const FIRST: Class = Class::Fifo(5);

/// What it is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Load {
    /// Share of the time that it works.
    pub duty: f64,
    /// For how long at a stretch (ns).
    pub burst_ns: u64,
    /// Whether it comes before the fair class.
    pub is_first: bool,
}

impl FromStr for Load {
    type Err = ParameterError;

    fn from_str(text: &str) -> Result<Self, ParameterError> {
        let whole = format!("cpu_hog:{text}");
        let mut parameters = Parameters::split(&whole)?;
        let load = Self {
            duty: parameters.fraction("duty", 0.5)?,
            burst_ns: parameters.time("burst", 10_000_000)?,
            is_first: parameters.one_of("class", &["fair", "fifo"])? == "fifo",
        };
        parameters.finish()?;
        Ok(load)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.is_first { "fifo" } else { "fair" };
        write!(f, "duty={},burst={}ns,class={class}", self.duty, self.burst_ns)
    }
}

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub struct CpuHogThreads {
    _tickers: Vec<Ticker>,
}

impl CpuHogThreads {
    /// Begins to load each of `cpus`.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(load: Load, cpus: &Cpus) -> io::Result<Self> {
        let burst = Duration::from_nanos(load.burst_ns);
        let rest = burst.mul_f64((1.0 - load.duty) / load.duty.max(1e-3));
        let ticker = |cpu: Cpus| {
            let begin = move || {
                let _ = cpu.pin_this_thread();
                if load.is_first {
                    let _ = set_own_class(FIRST);
                }
            };
            let tick = move || {
                if load.duty > 0.0 {
                    let began = Instant::now();
                    while began.elapsed() < burst {
                        hint::spin_loop();
                    }
                }
                thread::sleep(rest);
            };
            Ticker::start("cpu_hog", Duration::ZERO, begin, tick)
        };
        Ok(Self { _tickers: cpus.each().map(ticker).collect::<io::Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_read_as_it_is_written() {
        let load = Load { duty: 0.25, burst_ns: 2_000_000, is_first: true };
        assert_eq!("duty=25%,burst=2ms,class=fifo".parse(), Ok(load));
        assert_eq!(load.to_string().parse(), Ok(load));
        assert!("duty=2".parse::<Load>().is_err());
        assert!("speed=2".parse::<Load>().is_err());
    }
}
