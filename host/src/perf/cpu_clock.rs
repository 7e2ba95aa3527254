//! A periodic timer interrupt on a CPU.
//!
//! A BPF program at `hrtimer_expire_entry` runs in each timer interrupt. This timer bounds the time
//! between two of them. It belongs to the CPU and not to a thread, so a context switch neither
//! starts nor stops it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::sys;
use crate::cpus::Cpus;

/// Periodic timer interrupts on a set of CPUs, until dropped.
#[derive(Debug)]
pub struct CpuClock {
    _events: Vec<OwnedFd>,
}

impl CpuClock {
    /// Interrupts each of `cpus` once per `period`.
    ///
    /// # Errors
    /// `perf_event_open(2)` failed. If `kernel.perf_event_paranoid` is greater than 0 it needs
    /// `CAP_PERFMON`.
    pub fn start(cpus: &Cpus, period: Duration) -> io::Result<Self> {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let events = cpus.iter().map(|cpu| sys::open_cpu_clock(cpu, period_ns)).collect::<Result<_, _>>()?;
        Ok(Self { _events: events })
    }
}
