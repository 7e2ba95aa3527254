//! The guest under test: its boot vCPU spins, exits to the monitor, halts and is woken.

use std::io;
use std::time::{Duration, Instant};

use libc::pid_t;
use protocol::VcpuId;
use protocol::payload::params::{Job, Workload};

use super::Setup;
use crate::error::{Error, pause};
use crate::guest::{LabConfig, LabGuest, LabRun};
use crate::results::OutcomeFacts;
use host::cpus::Cpus;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

/// The longest time that the guest may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two intervals in which the monitor deschedules the vCPU.
const BETWEEN_DESCHEDULES: Duration = Duration::from_millis(9);

/// Length of such an interval.
const DESCHEDULED: Duration = Duration::from_millis(1);

/// A running guest of one vCPU.
pub(super) struct TestGuest {
    pub(super) guest: LabGuest,
    /// The vCPU's thread.
    pub(super) tid: pid_t,
}

impl TestGuest {
    /// Starts the guest on `cpus`. Its measured window is open when this returns.
    pub(super) fn start(setup: &Setup<'_>, cpus: &Cpus) -> Result<Self, Error> {
        let guest = LabGuest::start(&config(setup, cpus), io::sink(), Timings::since(Instant::now()))?;
        let guest = guest.with_open_window(PATIENCE)?;
        let threads = guest.vm().threads();
        let boot = threads.iter().find(|(vcpu, _)| *vcpu == VcpuId::BOOT);
        let tid = boot.map(|(_, thread)| thread.tid()).ok_or_else(|| Error::test_guest("has ended"))?;
        Ok(Self { guest, tid })
    }

    /// Deschedules the vCPU again and again, for `length`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once termination is requested.
    pub(super) fn deschedule_repeatedly(&self, length: Duration) -> Result<(), Error> {
        let began = Instant::now();
        while began.elapsed() < length {
            pause(BETWEEN_DESCHEDULES)?;
            self.guest.vm().deschedule(VcpuId::BOOT);
            let paused = pause(DESCHEDULED);
            self.guest.vm().schedule(VcpuId::BOOT);
            paused?;
        }
        Ok(())
    }

    /// Ends the guest.
    pub(super) fn end(self) -> Result<LabRun, Error> {
        self.guest.close();
        let run = self.guest.wait()?;
        match run.monitor.outcome {
            Outcome::Reset => Ok(run),
            Outcome::Interrupted => Err(Error::Interrupted),
            _ => {
                let facts = OutcomeFacts::new(&run.monitor.outcome, run.report.as_deref());
                Err(Error::test_guest(format!("did not end by its own reset: {}", facts.in_short())))
            }
        }
    }
}

fn config(setup: &Setup<'_>, cpus: &Cpus) -> LabConfig {
    let duration_ms = setup.args.duration_ms.saturating_mul(2).saturating_add(60_000);
    let workload = Workload { job: Job::Mixed, warmup_ms: 20, duration_ms, ..Workload::DEFAULT };
    let timeout = 2 * setup.duration() + 2 * PATIENCE;
    LabConfig {
        faults: setup.args.faults,
        ..LabConfig::embedded(1, cpus.clone(), setup.publisher, workload.to_string(), timeout)
    }
}
