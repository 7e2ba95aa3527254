//! What tests of the lab share: the lab as a process, and guests in this process.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

pub(crate) mod bpf_ids;
#[path = "mod.rs"]
mod common;
pub(crate) mod terminal;

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use host::facts::HostFacts;
use host::stats::ThreadStats;
use lab::guest::{self, LabConfig, LabGuest, LabRun};
use lab::results::RunResult;
use steal_time::bpf::SwitchCounts;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

pub(crate) use common::*;

/// The lab, as a command.
pub(crate) fn vmm_lab<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-lab"));
    command.args(args).stdin(Stdio::null());
    command
}

/// The lab in a time namespace whose clocks are far ahead of the kernel's, as a command.
pub(crate) fn vmm_lab_in_time_namespace<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("unshare");
    command.args(has::SHIFTED_CLOCK).arg(env!("CARGO_BIN_EXE_vmm-lab")).args(args).stdin(Stdio::null());
    command
}

/// `vmm-lab run`, as a command.
pub(crate) fn vmm_run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = vmm_lab(["run"]);
    command.args(args);
    command
}

/// A guest with the embedded payload and these parameters.
pub(crate) fn guest(vcpus: usize, publisher: PublisherKind, params: &str) -> LabConfig {
    LabConfig::embedded(vcpus, cpus(), publisher, params.to_owned(), LIMIT)
}

/// Runs a guest in this process to its end.
pub(crate) fn run(config: &LabConfig) -> (LabRun, RunResult) {
    static FACTS: OnceLock<HostFacts> = OnceLock::new();
    let run = alone(|| guest::run(config, io::sink(), Timings::since(Instant::now())));
    let run = run.expect("the guest can be run");
    let result = RunResult::new(FACTS.get_or_init(HostFacts::probe).clone(), config, &run);
    (run, result)
}

/// Whether the host has what `publisher` needs.
pub(crate) fn has_publisher(publisher: PublisherKind) -> bool {
    match publisher {
        PublisherKind::Bpf => has::bpf(),
        PublisherKind::BpfClassic => has::classic_bpf(),
        PublisherKind::Perf => has::perf(),
        _ => has::kvm(),
    }
}

/// Starts a guest in this process, whose caller holds the CPUs.
pub(crate) fn start_guest(config: &LabConfig) -> LabGuest {
    LabGuest::start(config, io::sink(), Timings::since(Instant::now())).expect("the guest starts")
}

/// Starts a guest and waits until its window is open.
pub(crate) fn start_window(config: &LabConfig) -> LabGuest {
    let guest = start_guest(config);
    assert!(guest.wait_for_window(LIMIT), "the window does not open");
    guest
}

/// Closes the window of a guest and waits until it resets.
pub(crate) fn end_guest(guest: LabGuest) -> LabRun {
    guest.close();
    let run = guest.wait().expect("the guest ends");
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", run.monitor.outcome);
    run
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within [`LIMIT`].
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "it never came that {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// The steal (ns) in a record.
pub(crate) fn steal_ns(record: Option<&[u8; 64]>) -> u64 {
    let record = record.expect("the vCPU has a record");
    u64::from_le_bytes(*record.first_chunk().expect("64 bytes"))
}

/// What was counted of one vCPU, all at one moment at which its thread sleeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtRest {
    /// The kernel's statistics of the thread.
    pub(crate) stats: ThreadStats,
    /// The publisher's counts.
    pub(crate) counts: Option<SwitchCounts>,
    /// The steal in the record (ns).
    pub(crate) steal_ns: u64,
    /// The run delay of the guest (ns): the thread's, without what it accrued while paused.
    pub(crate) run_delay_ns: u64,
}

impl AtRest {
    /// Pauses a guest and reads the counts of each vCPU. Two counts of the same context switches
    /// can be compared only at rest: while the thread runs, a switch may come between the readings.
    pub(crate) fn of(guest: &LabGuest) -> Vec<Self> {
        let vm = guest.vm();
        let paused = vm.pause().expect("nothing else pauses the guest");
        let snapshots = vm.snapshot(&paused);
        let mut threads = vm.threads();
        threads.sort_by_key(|(vcpu, _)| vcpu.index());
        let at_rest = threads.iter().zip(&snapshots).map(|((vcpu, thread), snapshot)| {
            assert_eq!(snapshot.vcpu, *vcpu);
            let count = || vm.publisher().counts_at_rest(*vcpu);
            let read = ThreadStats::read_asleep(thread.tid(), count).expect("the thread lives");
            let (stats, counts) = read.expect("a paused vCPU sleeps");
            Self {
                stats,
                counts,
                steal_ns: steal_ns(snapshot.record.as_ref()),
                run_delay_ns: snapshot.account.expect("/proc is readable").run_delay_ns
                    - snapshot.discarded_ns,
            }
        });
        let at_rest = at_rest.collect();
        vm.resume(paused);
        at_rest
    }
}

/// Runs two vCPUs that spin on one CPU for half a second; returns what was counted before and
/// after, and the time between.
pub(crate) fn watch_on_one_cpu(publisher: PublisherKind) -> (Vec<AtRest>, Vec<AtRest>, Duration) {
    let config = guest(2, publisher, "job=watch warmup_ms=20 duration_ms=60000").on(cpus().first(1));
    let guest = start_window(&config);
    let before = AtRest::of(&guest);
    let began = Instant::now();
    thread::sleep(Duration::from_millis(500));
    let window = began.elapsed();
    let after = AtRest::of(&guest);
    end_guest(guest);
    (before, after, window)
}

/// Asserts that between two moments the publisher counted each preemption that the kernel counted.
pub(crate) fn assert_counts_preemptions(before: &[AtRest], after: &[AtRest]) {
    for (before, after) in before.iter().zip(after) {
        let preemptions = after.stats.since(before.stats).involuntary_switches;
        let (counts, earlier) = (after.counts.expect("it counts"), before.counts.expect("it counts"));
        assert!(preemptions > 20, "two vCPUs contend for one CPU: {after:?}");
        assert_eq!(counts.since(earlier).sched_out, preemptions, "{before:?} {after:?}");
    }
}

/// Asserts that between two moments steal grew by the run delay, and that this was 0.4 of the
/// `window` or more for all vCPUs together.
pub(crate) fn assert_steal_is_run_delay(before: &[AtRest], after: &[AtRest], window: Duration) {
    let mut total = 0;
    for (before, after) in before.iter().zip(after) {
        let steal = after.steal_ns - before.steal_ns;
        let run_delay = after.run_delay_ns - before.run_delay_ns;
        assert!(steal.abs_diff(run_delay) < 15_000_000, "steal {steal} ns, run delay {run_delay} ns");
        total += steal;
    }
    assert!(total as f64 > 0.4 * window.as_nanos() as f64, "{total} ns of steal in {window:?}");
}
