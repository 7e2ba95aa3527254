//! A timer that interrupts a CPU, whoever runs there.
//!
//! It is for those who look at what runs whenever a timer interrupts it, as the BPF program does: this makes sure that one
//! does, often enough. It belongs to the CPU and not to a thread, so a switch does not start or stop it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::sys;
use crate::cpus::Cpus;

/// See the module: on each of some CPUs. Dropping it ends it.
#[derive(Debug)]
pub struct CpuClock {
    _events: Vec<OwnedFd>,
}

impl CpuClock {
    /// Interrupts each of `cpus` once in `period`.
    ///
    /// # Errors
    /// The host does not allow it: where `perf_event_paranoid` is more than 0 it takes `CAP_PERFMON`.
    pub fn start(cpus: &Cpus, period: Duration) -> io::Result<Self> {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let events = cpus.iter().map(|cpu| sys::open_cpu_clock(cpu, period_ns)).collect::<Result<_, _>>()?;
        Ok(Self { _events: events })
    }
}
