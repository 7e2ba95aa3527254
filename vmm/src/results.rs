//! Results: one run, as one document.
//!
//! Everything that is ever printed of a run is rendered from its [`RunResult`]; the JSON document is the same thing.
//! Times are in ns; shares are of the CPUs that the vCPU threads may use, over the window.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::VcpuId;
use protocol::histogram::{BUCKETS, bucket_floor};
use protocol::report::{Crash as CrashReport, RegisterRule, Report, VECTOR_PANIC, VcpuReport};
use protocol::words::{Job, Workload};
use serde::{Serialize, Serializer};

use crate::boot::Entry;
use crate::guest::{GuestConfig, GuestRun, Outcome, PayloadSource};
use crate::host::account::ThreadAccount;
use crate::host::facts::HostFacts;
use crate::measure::Window;
use crate::publisher::{Counts, PublisherKind};
use crate::timings::{Mark, cycles_to_duration};
use crate::vcpu::ExitCounts;
use crate::vcpu::run::Remains;

/// Version of the document. It changes when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where.
    pub host: HostFacts,
    /// What ran.
    pub guest: GuestFacts,
    /// Who published.
    pub publisher: PublisherFacts,
    /// What our payload was asked to do; `None` for a foreign one.
    #[serde(serialize_with = "words_as_map")]
    pub workload: Option<Workload>,
    /// How it ended.
    pub outcome: OutcomeFacts,
    /// When the monitor's clock for the marks below began, by the host's monotonic clock.
    pub began_monotonic_ns: u64,
    /// Where the time of the monitor went.
    pub timings: Vec<Mark>,
    /// What happened while the window was open, if it opened and closed.
    pub window: Option<WindowFigures>,
    /// Which rules of the MSR held, for [`Job::Registers`].
    pub rules: Option<Vec<RuleFigures>>,
    /// Each vCPU, over the whole run.
    pub vcpus: Vec<VcpuFigures>,
    /// Port bytes read that nobody answers for.
    pub unclaimed_reads: u64,
    /// Port bytes written that nobody answers for.
    pub unclaimed_writes: u64,
}

/// The guest, as results name it.
#[derive(Clone, Debug, Serialize)]
pub struct GuestFacts {
    /// Its payload: `embedded`, or the file.
    pub payload: String,
    /// How it was entered: `direct`, `pvh` or `long`.
    pub entry: &'static str,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Its memory.
    pub memory_mib: u64,
    /// Host CPUs that the vCPU threads may use.
    pub cpus: crate::host::cpus::Cpus,
}

/// The publisher, as results name it.
#[derive(Clone, Debug, Serialize)]
pub struct PublisherFacts {
    /// Which.
    pub kind: PublisherKind,
    /// What was asked for.
    pub asked: String,
    /// Why this one.
    pub why: String,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct OutcomeFacts {
    /// `reset`, `exit`, `crash`, `timed_out` or `interrupted`.
    pub kind: &'static str,
    /// The exit status that tells of it.
    pub status: u8,
    /// What crashed where, in one line.
    pub crash: Option<String>,
    /// The registers of a vCPU that KVM gave up on.
    pub registers: Option<String>,
}

/// What happened while the window was open.
#[derive(Clone, Debug, Serialize)]
pub struct WindowFigures {
    /// Its length, by the guest's clock.
    pub length_ns: u64,
    /// What the host says.
    pub host: HostFigures,
    /// Growth of all records' steal, as the guest read it.
    pub guest_steal_ns: u64,
    /// The lock, for [`Job::Contend`].
    pub lock: Option<LockFigures>,
    /// The byte, for [`Job::Watch`].
    pub byte: Option<ByteFigures>,
}

/// What the host says of a window.
#[derive(Clone, Debug, Serialize)]
pub struct HostFigures {
    /// Its length, by the host's clock.
    pub length_ns: u64,
    /// CPU time of the vCPU threads.
    pub run_ns: u64,
    /// Time that they wanted to run and could not.
    pub run_delay_ns: u64,
    /// Times that the host took a vCPU thread off its CPU.
    pub preemptions: u64,
    /// Times that one gave it up.
    pub sleeps: u64,
    /// CPUs' worth of time that other processes used.
    pub strangers_cpus: f64,
    /// CPUs' worth of time that an outer hypervisor took.
    pub stolen_cpus: f64,
    /// Whether strangers or the outer hypervisor took so much that the figures should not be believed.
    pub disturbed: bool,
}

/// What the lock gave.
#[derive(Clone, Debug, Serialize)]
pub struct LockFigures {
    /// Acquisitions.
    pub acquisitions: u64,
    /// Acquisitions in a second.
    pub per_second: f64,
    /// Jain's index of fairness over the vCPUs: 1 is equal shares.
    pub jain: f64,
    /// Half of the waits were not longer.
    pub wait_p50_ns: u64,
    /// 99 in 100 waits were not longer.
    pub wait_p99_ns: u64,
    /// The longest wait.
    pub wait_longest_ns: u64,
    /// The longest time in which nobody got through.
    pub longest_gap_ns: u64,
    /// Waiters that halted.
    pub halts: u64,
    /// Interrupts sent to wake them.
    pub kicks: u64,
    /// Times that a waiter saw the byte of the vCPU it waited for.
    pub preempted_seen: u64,
    /// Times that a waiter left the queue of spinners.
    pub queue_exits: u64,
    /// Where the CPU time went.
    pub shares: Shares,
}

/// Where CPU time went, as shares of all CPU time there was. They sum up to 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shares {
    /// In sections and between them.
    pub useful: f64,
    /// Spinning.
    pub spin: f64,
    /// Sending kicks. Without steal time, a kick that cost its sender the CPU counts until the sender was back.
    pub kicks: f64,
    /// Halting, waking, switching, exits, the loop itself.
    pub rest: f64,
    /// No vCPU thread ran.
    pub idle: f64,
}

/// What vCPUs saw of each other's bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ByteFigures {
    /// Samples of the own byte.
    pub own_samples: u64,
    /// Of these, set.
    pub own_set: u64,
    /// Samples of other vCPUs' bytes.
    pub other_samples: u64,
    /// Of these, set.
    pub other_set: u64,
}

impl ByteFigures {
    /// Share of samples in which another vCPU's byte was set.
    pub fn other_share(&self) -> f64 {
        ratio(self.other_set, self.other_samples)
    }
}

/// A rule of the MSR.
#[derive(Clone, Debug, Serialize)]
pub struct RuleFigures {
    /// The rule.
    pub rule: String,
    /// Whether it was tried.
    pub tried: bool,
    /// Whether it held.
    pub held: bool,
}

/// One vCPU, over the whole run.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuFigures {
    /// Its id.
    pub id: u8,
    /// Its exits.
    pub exits: ExitCounts,
    /// CPU time of its thread.
    pub run_ns: u64,
    /// Time that its thread wanted to run and could not.
    pub run_delay_ns: u64,
    /// Times that the host took its thread off its CPU.
    pub preemptions: u64,
    /// What the publisher counted.
    pub publication: Option<Counts>,
    /// Acquisitions in the window.
    pub acquisitions: u64,
}

impl RunResult {
    /// The document of a run.
    pub fn new(host: HostFacts, config: &GuestConfig, run: &GuestRun) -> Self {
        let report = run.report.as_deref();
        let figures = |(id, remains): &(VcpuId, Remains)| {
            let vcpu = report.and_then(|report| report.vcpus.get(id.index()));
            VcpuFigures {
                id: id.apic_id(),
                exits: remains.exits,
                run_ns: remains.account.run_ns,
                run_delay_ns: remains.account.run_delay_ns,
                preemptions: remains.account.involuntary_switches,
                publication: remains.counts,
                acquisitions: vcpu.map_or(0, |vcpu| read(&vcpu.acquisitions)),
            }
        };
        Self {
            schema: SCHEMA,
            host,
            guest: GuestFacts {
                payload: match &config.payload {
                    PayloadSource::Embedded => "embedded".to_owned(),
                    PayloadSource::File { path, .. } => path.display().to_string(),
                },
                entry: match run.entry {
                    Entry::Direct(_) => "direct",
                    Entry::Pvh(_) => "pvh",
                    Entry::Long(_) => "long",
                },
                vcpus: config.vcpus,
                memory_mib: config.memory_mib,
                cpus: config.cpus.clone(),
            },
            publisher: PublisherFacts {
                kind: run.publisher,
                asked: config.publisher.to_string(),
                why: run.publisher_why.clone(),
            },
            workload: run.workload,
            outcome: OutcomeFacts::new(&run.outcome, report),
            began_monotonic_ns: u64::try_from(run.timings.began_monotonic().as_nanos()).unwrap_or(u64::MAX),
            timings: run.timings.marks().to_vec(),
            window: report
                .zip(run.workload)
                .zip(run.window.as_ref())
                .map(|((report, workload), window)| WindowFigures::new(report, workload, window, config)),
            rules: report.filter(|report| report.header.rules_tried.load(Ordering::Relaxed) != 0).map(rules),
            vcpus: run.vcpus.iter().map(figures).collect(),
            unclaimed_reads: run.unclaimed.reads,
            unclaimed_writes: run.unclaimed.writes,
        }
    }
}

impl OutcomeFacts {
    fn new(outcome: &Outcome, report: Option<&Report>) -> Self {
        let kind = match outcome {
            Outcome::Reset => "reset",
            Outcome::Exit(_) => "exit",
            Outcome::Crash { .. } => "crash",
            Outcome::TimedOut => "timed_out",
            Outcome::Interrupted => "interrupted",
        };
        let (crash, registers) = match outcome {
            Outcome::Crash { vcpu, crash } => (
                Some(format!("vCPU {vcpu}: {}", crash.reason)),
                crash.registers.as_ref().map(ToString::to_string),
            ),
            _ => (report.and_then(|report| describe_crash(&report.header.crash)), None),
        };
        Self { kind, status: outcome.status(), crash, registers }
    }
}

/// The crash that the payload reports, if it does.
fn describe_crash(crash: &CrashReport) -> Option<String> {
    // 2: the fields are complete.
    if crash.state.load(Ordering::Acquire) != 2 {
        return None;
    }
    let vcpu = crash.vcpu.load(Ordering::Relaxed);
    let vector = crash.vector.load(Ordering::Relaxed);
    if vector == VECTOR_PANIC {
        return Some(format!("vCPU {vcpu}: panic at line {}", crash.line.load(Ordering::Relaxed)));
    }
    let (rip, error) = (read(&crash.rip), read(&crash.error));
    let mut text = format!("vCPU {vcpu}: exception {vector} at rip {rip:#x}, error code {error:#x}");
    if vector == 14 {
        let _ = write!(text, ", address {:#x}", read(&crash.address));
    }
    Some(text)
}

impl WindowFigures {
    fn new(report: &Report, workload: Workload, window: &Window, config: &GuestConfig) -> Self {
        let vcpus = report.vcpus.get(..config.vcpus).unwrap_or(&report.vcpus);
        let header = &report.header;
        let khz = header.tsc_khz.load(Ordering::Relaxed);
        let length = read(&header.window_closes).saturating_sub(read(&header.window_opens));
        let length_ns = ns(length, khz);
        let accounts = || window.vcpus.iter().map(|(_, account)| account);
        let total = |field: fn(&ThreadAccount) -> u64| accounts().map(field).sum();
        let host = HostFigures {
            length_ns: u64::try_from(window.length.as_nanos()).unwrap_or(u64::MAX),
            run_ns: total(|account| account.run_ns),
            run_delay_ns: total(|account| account.run_delay_ns),
            preemptions: total(|account| account.involuntary_switches),
            sleeps: total(|account| account.voluntary_switches),
            strangers_cpus: window.strangers(),
            stolen_cpus: window.stolen(),
            disturbed: window.is_disturbed(),
        };
        let lock = (workload.job == Job::Contend).then(|| {
            let cpu_time = config.cpus.count() as f64 * host.length_ns as f64;
            LockFigures::new(vcpus, khz, length_ns, workload, ratio_f(host.run_ns as f64, cpu_time), cpu_time)
        });
        let byte = (workload.job == Job::Watch).then(|| ByteFigures {
            own_samples: sum(vcpus, |vcpu| &vcpu.own_samples),
            own_set: sum(vcpus, |vcpu| &vcpu.own_set),
            other_samples: sum(vcpus, |vcpu| &vcpu.other_samples),
            other_set: sum(vcpus, |vcpu| &vcpu.other_set),
        });
        let closed = sum(vcpus, |vcpu| &vcpu.steal_at_close);
        let guest_steal_ns = closed.saturating_sub(sum(vcpus, |vcpu| &vcpu.steal_at_open));
        Self { length_ns, host, guest_steal_ns, lock, byte }
    }
}

impl LockFigures {
    fn new(
        vcpus: &[VcpuReport],
        khz: u32,
        length_ns: u64,
        workload: Workload,
        busy: f64,
        cpu_time_ns: f64,
    ) -> Self {
        let acquisitions = sum(vcpus, |vcpu| &vcpu.acquisitions);
        let waits = merged_waits(vcpus);
        let longest = |field: fn(&VcpuReport) -> &AtomicU64| vcpus.iter().map(|vcpu| read(field(vcpu))).max();
        let share = |cycles| ratio_f(ns(cycles, khz) as f64, cpu_time_ns);
        let work_ns = f64::from(workload.section_ns) + f64::from(workload.think_ns);
        let useful = ratio_f(acquisitions as f64 * work_ns, cpu_time_ns);
        let spin = share(sum(vcpus, |vcpu| &vcpu.spin_cycles));
        let kicks = share(sum(vcpus, |vcpu| &vcpu.kick_cycles));
        Self {
            acquisitions,
            per_second: ratio_f(acquisitions as f64 * 1e9, length_ns as f64),
            jain: jain(vcpus.iter().map(|vcpu| read(&vcpu.acquisitions) as f64)),
            wait_p50_ns: ns(quantile(&waits, 0.5), khz),
            wait_p99_ns: ns(quantile(&waits, 0.99), khz),
            wait_longest_ns: ns(longest(|vcpu| &vcpu.longest_wait).unwrap_or(0), khz),
            longest_gap_ns: ns(longest(|vcpu| &vcpu.longest_gap).unwrap_or(0), khz),
            halts: sum(vcpus, |vcpu| &vcpu.halts),
            kicks: sum(vcpus, |vcpu| &vcpu.kicks),
            preempted_seen: sum(vcpus, |vcpu| &vcpu.preempted_seen),
            queue_exits: sum(vcpus, |vcpu| &vcpu.queue_exits),
            shares: Shares { useful, spin, kicks, rest: busy - useful - spin - kicks, idle: 1.0 - busy },
        }
    }
}

fn rules(report: &Report) -> Vec<RuleFigures> {
    let tried = report.header.rules_tried.load(Ordering::Relaxed);
    let held = report.header.rules_held.load(Ordering::Relaxed);
    let rules = RegisterRule::ALL.iter();
    rules
        .map(|rule| RuleFigures {
            rule: format!("{rule:?}"),
            tried: tried & rule.bit() != 0,
            held: held & rule.bit() != 0,
        })
        .collect()
}

/// A workload's words, `key=value`, as a map.
#[expect(clippy::ref_option, reason = "serde hands over the field")]
fn words_as_map<S: Serializer>(workload: &Option<Workload>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(workload) = workload else { return serializer.serialize_none() };
    let words = workload.to_string();
    serializer.collect_map(words.split(' ').filter_map(|word| word.split_once('=')))
}

/// Whatever has a word, as that word.
///
/// # Errors
/// The serializer's.
pub fn as_word<T: Display, S: Serializer>(item: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(item)
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn sum(vcpus: &[VcpuReport], field: fn(&VcpuReport) -> &AtomicU64) -> u64 {
    vcpus.iter().fold(0, |sum, vcpu| sum.saturating_add(read(field(vcpu))))
}

fn ns(cycles: u64, khz: u32) -> u64 {
    u64::try_from(cycles_to_duration(cycles, khz).as_nanos()).unwrap_or(u64::MAX)
}

fn ratio(part: u64, whole: u64) -> f64 {
    ratio_f(part as f64, whole as f64)
}

/// `part / whole`, and 0 of nothing.
fn ratio_f(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Jain's index of fairness: 1 when all are equal, 1/n when one has all.
fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    ratio_f(sum * sum, count * squares)
}

fn merged_waits(vcpus: &[VcpuReport]) -> Vec<u64> {
    let mut merged = vec![0_u64; BUCKETS];
    for vcpu in vcpus {
        for (sum, count) in merged.iter_mut().zip(&vcpu.waits) {
            *sum = sum.saturating_add(count.load(Ordering::Relaxed).into());
        }
    }
    merged
}

/// The smallest value that `share` of all counted ones do not exceed: the end of its bucket, so never too low.
fn quantile(counts: &[u64], share: f64) -> u64 {
    let total: u64 = counts.iter().fold(0, |sum, count| sum.saturating_add(*count));
    let wanted = (total as f64 * share).ceil();
    let mut seen = 0.0;
    for (bucket, count) in counts.iter().enumerate() {
        seen += *count as f64;
        if *count > 0 && seen >= wanted {
            return bucket_floor(bucket + 1).map_or(u64::MAX, |floor| floor - 1);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_one_for_equal_shares_and_one_nth_for_a_single_taker() {
        assert!((jain([5.0; 8].into_iter()) - 1.0).abs() < 1e-12);
        assert!((jain([9.0, 0.0, 0.0, 0.0].into_iter()) - 0.25).abs() < 1e-12);
        assert!(jain([0.0, 0.0].into_iter()).abs() < 1e-12);
    }

    #[test]
    fn quantile_is_the_end_of_the_bucket_that_reaches_it() {
        let vcpu = VcpuReport::new();
        for wait in 1..=7 {
            vcpu.record_wait(wait);
        }
        vcpu.record_wait(1000);
        let waits = merged_waits(std::slice::from_ref(&vcpu));
        assert_eq!(quantile(&waits, 0.5), 4);
        assert!((1000..1125).contains(&quantile(&waits, 0.99)));
        assert_eq!(quantile(&[0; BUCKETS], 0.5), 0);
    }

    #[test]
    fn crash_is_told_only_when_it_is_complete() {
        let report = VcpuReport::new();
        assert_eq!(read(&report.acquisitions), 0);
        let report = Box::new(Report::new());
        let crash = &report.header.crash;
        crash.vector.store(6, Ordering::Relaxed);
        crash.vcpu.store(2, Ordering::Relaxed);
        crash.rip.store(0x40_0123, Ordering::Relaxed);
        crash.state.store(1, Ordering::Relaxed);
        assert_eq!(describe_crash(crash), None);
        crash.state.store(2, Ordering::Relaxed);
        assert_eq!(describe_crash(crash).unwrap(), "vCPU 2: exception 6 at rip 0x400123, error code 0x0");
        crash.vector.store(14, Ordering::Relaxed);
        crash.address.store(0x4_0000_0000, Ordering::Relaxed);
        assert!(describe_crash(crash).unwrap().ends_with(", address 0x400000000"));
    }
}
