//! The guest whose byte is judged: its boot vCPU runs, leaves, halts and comes back.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use libc::pid_t;
use protocol::VcpuId;
use protocol::payload::params::{Job, Workload};

use super::Setting;
use super::error::AccuracyError;
use crate::guest::{LabConfig, LabGuest, LabRun};
use crate::results::OutcomeFacts;
use host::cpus::Cpus;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

/// How long the guest may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two times that the vCPU is held, and for how long.
const BETWEEN_HOLDS: Duration = Duration::from_millis(9);
const HOLD: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Subject {
    pub(super) guest: LabGuest,
    /// The boot vCPU's thread.
    pub(super) tid: pid_t,
}

impl Subject {
    /// Starts one whose window is open when this returns: one vCPU on `cpus`, or each of several on one of them.
    pub(super) fn start(setting: &Setting<'_>, vcpus: usize, cpus: &Cpus) -> Result<Self, AccuracyError> {
        let config = config(setting, vcpus, cpus);
        let guest = LabGuest::start(&config, io::sink(), Timings::since(Instant::now()))?;
        if !guest.wait_for_window(PATIENCE) {
            return Err(AccuracyError::Idle("did not come up"));
        }
        let mut threads = guest.vm().threads();
        threads.sort_by_key(|(vcpu, _)| vcpu.index());
        if vcpus > 1 {
            for ((_, thread), cpu) in threads.iter().zip(cpus.each()) {
                cpu.pin_thread(thread.tid())?;
            }
        }
        let boot = threads.iter().find(|(vcpu, _)| *vcpu == VcpuId::BOOT);
        let tid = boot.map(|(_, thread)| thread.tid()).ok_or(AccuracyError::Idle("has ended"))?;
        Ok(Self { guest, tid })
    }

    /// Holds its boot vCPU now and then, for so long all in all.
    pub(super) fn hold_now_and_then(&self, length: Duration) {
        let began = Instant::now();
        while began.elapsed() < length {
            thread::sleep(BETWEEN_HOLDS);
            self.guest.vm().deschedule(VcpuId::BOOT);
            thread::sleep(HOLD);
            self.guest.vm().schedule(VcpuId::BOOT);
        }
    }

    /// Ends it.
    pub(super) fn end(self) -> Result<LabRun, AccuracyError> {
        self.guest.close();
        let run = self.guest.wait()?;
        match run.monitor.outcome {
            Outcome::Reset => Ok(run),
            Outcome::Interrupted => Err(AccuracyError::Interrupted),
            _ => {
                let facts = OutcomeFacts::new(&run.monitor.outcome, run.report.as_deref());
                Err(AccuracyError::Ended(facts.in_short().to_owned()))
            }
        }
    }
}

fn config(setting: &Setting<'_>, vcpus: usize, cpus: &Cpus) -> LabConfig {
    let duration_ms = setting.args.duration_ms.saturating_mul(2).saturating_add(60_000);
    let workload = Workload { job: Job::Mixed, warmup_ms: 20, duration_ms, ..Workload::DEFAULT };
    let timeout = 2 * setting.length() + 2 * PATIENCE;
    LabConfig {
        faults: setting.args.faults,
        ..LabConfig::embedded(vcpus, cpus.clone(), setting.publisher, workload.to_string(), timeout)
    }
}
