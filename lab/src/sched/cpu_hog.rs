//! Background load: a CPU hog on each CPU of the guests, which the scheduler does not control.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use crate::policy::parameters::{ParameterError, Parameters};
use host::cpu_hog::{Burst, CpuHog, HogLoad};
use host::cpus::Cpus;
use host::thread::Class;

/// Class of a hog that preempts all threads of the fair class.
const REALTIME: Class = Class::Fifo(5);

/// A load on each CPU.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Load {
    /// Share of the time in which it is busy (0 to 1).
    pub duty: f64,
    /// Length of a busy time (ns).
    pub burst_ns: u64,
    /// Whether it is a `SCHED_FIFO` thread, which preempts the fair class.
    pub is_fifo: bool,
}

impl Load {
    /// Starts the load on each of `cpus`, until the result is dropped.
    ///
    /// # Errors
    /// The host cannot create a thread.
    pub fn start(&self, cpus: &Cpus) -> io::Result<CpuHog> {
        let load = HogLoad {
            bursts: vec![Burst::with_duty(Duration::from_nanos(self.burst_ns), self.duty)],
            jitter: false,
            class: if self.is_fifo { REALTIME } else { Class::Fair },
        };
        CpuHog::start(&load, cpus.each())
    }
}

impl FromStr for Load {
    type Err = ParameterError;

    /// Parses `duty=SHARE,burst=TIME,class=fair|fifo`; every key is optional.
    fn from_str(text: &str) -> Result<Self, ParameterError> {
        let whole = format!("cpu_hog:{text}");
        let mut parameters = Parameters::split(&whole)?;
        let load = Self {
            duty: parameters.fraction("duty", 0.5)?,
            burst_ns: parameters.time("burst", 10_000_000)?,
            is_fifo: parameters.one_of("class", &["fair", "fifo"])? == "fifo",
        };
        parameters.finish()?;
        Ok(load)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.is_fifo { "fifo" } else { "fair" };
        write!(f, "duty={},burst={}ns,class={class}", self.duty, self.burst_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_parses_what_it_prints() {
        let load = Load { duty: 0.25, burst_ns: 2_000_000, is_fifo: true };
        assert_eq!("duty=25%,burst=2ms,class=fifo".parse(), Ok(load));
        assert_eq!(load.to_string().parse(), Ok(load));
        assert!("duty=2".parse::<Load>().is_err());
        assert!("speed=2".parse::<Load>().is_err());
    }
}
