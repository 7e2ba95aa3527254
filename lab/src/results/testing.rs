//! Results for unit tests: what a run that never took place would leave.

use std::time::Duration;

use protocol::payload::params::{Job, Workload};
use protocol::payload::report::Report;

use super::{
    CheckFigures, GuestFacts, OutcomeFacts, OutcomeKind, PublisherFacts, RunResult, SCHEMA, SchedFigures,
    WindowFigures,
};
use crate::guest::LabConfig;
use crate::policy::Needs;
use crate::sched::SchedOutcome;
use crate::sched::log::Log;
use crate::sched::mechanism::MechanismKind;
use crate::session::SessionResult;
use crate::window::Window;
use host::disturbance::Disturbance;
use host::facts::HostFacts;
use host::stats::CpuStats;
use steal_time::publisher::PublisherKind;

/// A report of zeros. It has a megabyte, too much for a test's stack.
static REPORT: Report = Report::new();

/// A measurement of `length` on two CPUs of which an outer hypervisor took `stolen`.
pub(crate) fn stolen(length: Duration, stolen: Duration) -> Disturbance {
    Disturbance::new(length, 2, Some(CpuStats { stolen, ..CpuStats::default() }))
}

/// The host of all results.
pub(crate) fn host() -> HostFacts {
    HostFacts { kernel: "6.1".to_owned(), processor: "a CPU".to_owned(), kvm_backend: "vmx", cpus: None }
}

/// A guest of two vCPUs that has counted nothing in its window, from which `disturbance` was taken.
pub(crate) fn run(job: Job, disturbance: Disturbance) -> RunResult {
    let workload = Workload { job, ..Workload::DEFAULT };
    let cpus: host::cpus::Cpus = "0-1".parse().unwrap();
    let config =
        LabConfig::embedded(2, cpus.clone(), PublisherKind::Off, String::new(), Duration::ZERO).guest;
    let window = Window { length: Duration::ZERO, disturbance, vcpus: Some(Vec::new()) };
    RunResult {
        schema: SCHEMA,
        host: host(),
        guest: GuestFacts { payload: "embedded".to_owned(), entry: "direct", vcpus: 2, memory_mib: 32, cpus },
        publisher: PublisherFacts {
            kind: PublisherKind::Off,
            requested: "off".to_owned(),
            why: "requested".to_owned(),
            faults: None,
            limits: Vec::new(),
        },
        workload: Some(workload),
        outcome: OutcomeFacts { kind: OutcomeKind::Reset, status: 0, crash: None, registers: None },
        began_monotonic_ns: 0,
        timings: Vec::new(),
        window: Some(WindowFigures::new(&REPORT, workload, &window, &config)),
        findings: Vec::new(),
        vcpus: Vec::new(),
        unclaimed_reads: 0,
        unclaimed_writes: 0,
        console_lost: 0,
    }
}

/// The result of [`run`] with figures in a window of half a second.
pub(crate) fn run_with_figures(job: Job, disturbance: Disturbance, value: f64) -> RunResult {
    let mut run = run(job, disturbance);
    let window = run.window.as_mut().unwrap();
    window.length_ns = 500_000_000;
    window.host.length_ns = 500_000_000;
    if let Some(lock) = &mut window.lock {
        (lock.per_second, lock.jain) = (value, value);
        let shares = &mut lock.shares;
        for share in [&mut shares.useful, &mut shares.spin, &mut shares.wasted, &mut shares.other] {
            *share = value;
        }
    }
    if let Some(preempted) = &mut window.preempted {
        (preempted.own_samples, preempted.other_samples) = (1000, 1000);
    }
    for CheckFigures { call_ns, chain_ns, spin_ns, folded_ns, .. } in &mut window.checks {
        (*call_ns, *chain_ns, *spin_ns, *folded_ns) = (value, value, value, value);
    }
    run
}

/// A session of one guest, `run`, under a policy that scheduled it for no time.
pub(crate) fn session(run: RunResult) -> SessionResult {
    let outcome = SchedOutcome {
        policy: "rr:slice=3ms".to_owned(),
        seed: 1,
        needs: Needs::default(),
        mechanism: MechanismKind::Class,
        mechanism_why: "requested".to_owned(),
        driver: "deadline",
        began_ns: 5,
        ended_ns: 5,
        cpus: vec![0, 1],
        vcpus: vec![2],
        stop_reason: None,
        log: Log::default(),
        switches: Some(vec![Vec::new(); 2]),
        left: vec![None; 2],
        lost_switches: 0,
        episodes: Vec::new(),
        lost_episodes: 0,
        samples: Vec::new(),
    };
    let sched = SchedFigures::new(&outcome, std::iter::empty());
    SessionResult { schema: SCHEMA, cpu_hog: None, sched: Some(sched), guests: vec![run] }
}
