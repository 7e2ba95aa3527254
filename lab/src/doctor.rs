//! Doctor: what this host can do, and what each missing piece costs.
//!
//! Each check tries the thing itself: it opens KVM, loads the program, runs a guest. None concludes
//! from version numbers.

use std::fmt::{self, Display};
use std::process::{Command, Stdio};
use std::time::Duration;

use kvm_bindings::KVM_CAP_HALT_POLL;
use kvm_ioctls::{Cap, Kvm};
use protocol::payload::params::{Job, Workload};

use crate::accuracy::{self, AccuracyArgs, OracleReport};
use crate::error::{Error, interrupted_status};
use crate::guest::RunError;
use crate::print::print;
use crate::results::RunResult;
use crate::runner::{Experiment, Measurement, RETRIES, undisturbed};
use crate::sched::choice::class_is_refused;
use crate::table::{count_or_dash, figure, fixed};
use host::cpus::Cpus;
use host::disturbance::Verdict;
use host::error_chain;
use host::facts::HostFacts;
use host::{scheduler, stats, termination};
use steal_time::bpf::Program;
use steal_time::publisher::PublisherKind;
use vmm::VmmError;
use vmm::cpuid::Supported;
use vmm::vm::machine;

/// How long two vCPUs sample each other's `preempted`, for each publisher (ms).
const SAMPLING_MS: u32 = 200;

/// How long the oracle samples `preempted`, for each publisher (ms).
const ORACLE_MS: u32 = 300;

const PUBLISHERS: [PublisherKind; 5] = [
    PublisherKind::Bpf,
    PublisherKind::BpfClassic,
    PublisherKind::Perf,
    PublisherKind::Monitor,
    PublisherKind::Kernel,
];

/// The results of all checks.
#[derive(Debug)]
pub struct Diagnosis {
    host: HostFacts,
    checks: Vec<Check>,
    /// Why no guest runs on this host.
    fatal: Option<VmmError>,
}

/// The result of one check.
#[derive(Debug)]
struct Check {
    what: String,
    /// What works, or what is missing and what that costs.
    result: Result<String, String>,
}

/// Runs all checks, prints their results, and returns the exit status.
///
/// # Errors
/// The error of `/dev/kvm`, after the results of the other checks are printed.
pub fn command() -> Result<u8, Error> {
    let diagnosis = examine();
    print(&diagnosis)?;
    match diagnosis.fatal {
        Some(error) => Err(RunError::from(error).into()),
        None => Ok(interrupted_status(termination::requested().is_some())),
    }
}

/// Runs all checks, until termination is requested.
pub fn examine() -> Diagnosis {
    let mut diagnosis = Diagnosis { host: HostFacts::probe(), checks: Vec::new(), fatal: None };
    match machine::open_kvm() {
        Ok(kvm) => diagnosis.examine_kvm(&kvm),
        Err(error) => {
            diagnosis.bad("KVM", format!("{error}; nothing runs without it"));
            diagnosis.fatal = Some(error);
        }
    }
    let checks = [
        Diagnosis::examine_bpf,
        Diagnosis::examine_scheduling,
        Diagnosis::examine_publishers,
        Diagnosis::examine_qemu,
    ];
    for check in checks {
        if termination::requested().is_none() {
            check(&mut diagnosis);
        }
    }
    diagnosis
}

impl Diagnosis {
    fn good(&mut self, what: impl Into<String>, detail: String) {
        self.checks.push(Check { what: what.into(), result: Ok(detail) });
    }

    fn bad(&mut self, what: impl Into<String>, detail: String) {
        self.checks.push(Check { what: what.into(), result: Err(detail) });
    }

    fn examine_kvm(&mut self, kvm: &Kvm) {
        let most = kvm.get_max_vcpus().min(protocol::MAX_VCPUS);
        self.good("KVM", format!("works, with up to {most} vCPUs in a guest"));
        if kvm.check_extension(Cap::X86MsrFilter) && kvm.check_extension(Cap::X86UserSpaceMsr) {
            self.good("MSR filter", "the monitor can handle accesses to the steal-time MSR".to_owned());
        } else {
            let cost = "missing (Linux 5.10 has it): only --publisher kernel works";
            self.bad("MSR filter", cost.to_owned());
        }
        match Supported::read(kvm) {
            Ok(supported) if supported.has_steal_time() => {
                self.good("KVM's steal time", "offered: --publisher kernel works".to_owned());
            }
            Ok(_) => {
                let cost = "not offered (it requires CONFIG_SCHED_INFO): --publisher kernel does not work";
                self.bad("KVM's steal time", cost.to_owned());
            }
            Err(error) => self.bad("KVM's steal time", format!("KVM does not report its CPUID: {error}")),
        }
        if kvm.check_extension(Cap::SplitIrqchip) {
            self.good("split irqchip", "runs start and end without waiting for an I/O APIC".to_owned());
        } else {
            self.bad("split irqchip", "missing: each run takes about 20 ms longer".to_owned());
        }
        if kvm.check_extension_raw(KVM_CAP_HALT_POLL.into()) <= 0 {
            self.bad(
                "halt polling",
                "cannot be disabled for a guest: a halted vCPU polls on its CPU for a while".to_owned(),
            );
        }
    }

    fn examine_bpf(&mut self) {
        let time = |program: &Program| {
            let time: Duration = program.timings().iter().map(|(_, time)| *time).sum();
            format!("the program loads and attaches in {:.1} ms", time.as_secs_f64() * 1e3)
        };
        match Program::load(1, 1) {
            Ok(program) => {
                self.good("BPF", time(&program));
                if program.detects_init() {
                    self.good(
                        "INIT",
                        "observed by KVM's tracepoints: an INIT clears the MSR, as it must".to_owned(),
                    );
                } else {
                    self.bad(
                        "INIT",
                        "KVM's tracepoints are missing: an INIT does not clear the MSR".to_owned(),
                    );
                }
            }
            Err(error) => {
                self.bad(
                    "BPF",
                    format!(
                        "{}: steal and preempted are published late, or not at all",
                        error_chain::one_line(&error)
                    ),
                );
            }
        }
        match Program::load_classic(1, 1) {
            Ok(program) => self.good("BPF without BTF", time(&program)),
            Err(error) => self.bad("BPF without BTF", error_chain::one_line(&error)),
        }
    }

    fn examine_scheduling(&mut self) {
        let cookie = scheduler::core_cookie(0).map_err(|error| error.raw_os_error());
        self.good("scheduler", describe_scheduler(scheduler::sched_ext().as_deref(), cookie));
        match class_is_refused() {
            None => self.good("policies", "--mechanism class and deschedule work".to_owned()),
            Some(why) => self.bad("policies", format!("{why}: only --mechanism deschedule works")),
        }
        match stats::own_run_delay_ns() {
            Ok(_) => {
                self.good("run delay", "the scheduler reports how long a thread waited for a CPU".to_owned());
            }
            Err(error) => {
                self.bad(
                    "run delay",
                    format!("not reported ({error}; it requires CONFIG_SCHED_INFO): no steal"),
                );
            }
        }
    }

    /// Measures each publisher's `preempted`: by the oracle, or without a second CPU to sample
    /// from, by two vCPUs that share one.
    fn examine_publishers(&mut self) {
        if self.fatal.is_some() {
            return;
        }
        let Some(cpus) = self.host.cpus.clone() else {
            return self.bad("CPUs", "the kernel does not report which this process may use".to_owned());
        };
        self.good("CPUs", describe(&cpus));
        let args = AccuracyArgs {
            publishers: PUBLISHERS.to_vec(),
            faults: None,
            cpus: None,
            duration_ms: ORACLE_MS,
            json: None,
        };
        match accuracy::run(&args, |_| {}) {
            Ok(accuracy) => {
                for row in &accuracy.rows {
                    self.judge(&name(row.publisher), &row.oracle);
                }
            }
            Err(Error::NoOracleCpu(_)) => self.sample_publishers(&cpus),
            Err(error) => self.bad("preempted", error.line()),
        }
    }

    fn judge(&mut self, what: &str, report: &Result<OracleReport, String>) {
        let report = match report {
            Ok(report) => report,
            Err(why) => return self.bad(what, why.clone()),
        };
        if let Some(inconsistency) = report.counts.inconsistencies.first() {
            return self.bad(what, format!("unknown, because {inconsistency}"));
        }
        if report.verdict != Verdict::Known {
            return self.bad(what, format!("{}, because {}", report.verdict, report.disturbance));
        }
        let edge = &report.preempted.sched_out;
        let wrong = report.preempted.wrongly_set.longest_ns.max(report.preempted.wrongly_clear.longest_ns);
        match edge.quantile_ns(0.5) {
            Some(latency) if edge.missed * 100 <= edge.happened => {
                let text = format!(
                    "set for all but {} of {} preemptions, after {} us (median); wrong for up to {} ms",
                    edge.missed,
                    edge.happened,
                    figure(latency as f64 / 1e3),
                    figure(wrong as f64 / 1e6),
                );
                self.good(what, text);
            }
            _ => self.bad(
                what,
                format!(
                    "not set for {} of {} preemptions; wrong for up to {} ms",
                    edge.missed,
                    edge.happened,
                    figure(wrong as f64 / 1e6)
                ),
            ),
        }
    }

    fn sample_publishers(&mut self, cpus: &Cpus) {
        let workload = Workload { job: Job::Watch, duration_ms: SAMPLING_MS, ..Workload::DEFAULT };
        let experiment = Experiment { host: self.host.clone(), cpus: cpus.first(1), workload };
        for publisher in PUBLISHERS {
            let what = name(publisher);
            match undisturbed(RETRIES, || experiment.run(2, publisher, workload)) {
                Ok(result) => self.judge_samples(&what, &result),
                Err(error) if error.is_interrupted() => return,
                Err(error) => self.bad(what, error_chain::one_line(&error)),
            }
        }
    }

    fn judge_samples(&mut self, what: &str, result: &RunResult) {
        let Some((window, byte)) =
            result.window.as_ref().and_then(|window| Some((window, window.preempted?)))
        else {
            return self.bad(what, "the guest ended before it sampled the byte".to_owned());
        };
        if !result.is_known() {
            let disturbance = result.disturbance();
            return self.bad(what, format!("{}, because {disturbance}", disturbance.verdict()));
        }
        let share = 100.0 * byte.other_share();
        let text = format!(
            "set in {} % of {} samples of a preempted vCPU ({} preemptions), and in {} of a running one",
            fixed(share, 2),
            figure(byte.other_samples as f64),
            count_or_dash(window.host.preemptions),
            byte.own_set,
        );
        if share >= 99.0 && byte.own_set == 0 { self.good(what, text) } else { self.bad(what, text) }
    }

    fn examine_qemu(&mut self) {
        let qemu = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
        match qemu {
            Ok(_) => self.good("QEMU", "installed: `vmm-lab bench startup` compares with it".to_owned()),
            Err(_) => {
                self.bad("QEMU", "not installed: `vmm-lab bench startup` cannot compare with it".to_owned());
            }
        }
    }
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(f, "{}, Linux {}, KVM on {}\n", host.processor, host.kernel, host.kvm_backend)?;
        for Check { what, result } in &self.checks {
            let (mark, detail) = match result {
                Ok(detail) => ("ok", detail),
                Err(detail) => ("--", detail),
            };
            writeln!(f, "{mark}  {what:<24} {detail}")?;
        }
        if termination::requested().is_some() {
            writeln!(f, "Interrupted: not all checks were made")?;
        }
        Ok(())
    }
}

fn name(publisher: PublisherKind) -> String {
    format!("preempted by {publisher}")
}

/// Describes what decides where threads run: the state of `sched_ext`, if the kernel has it, and
/// this thread's core-scheduling cookie, or the error number of reading it.
fn describe_scheduler(sched_ext: Option<&str>, cookie: Result<u64, Option<i32>>) -> String {
    let class = match sched_ext {
        None => "no sched_ext".to_owned(),
        Some(state) => format!("sched_ext {state}"),
    };
    let cores = match cookie {
        Ok(0) => "no core-scheduling cookie".to_owned(),
        Ok(cookie) => {
            format!("core-scheduling cookie {cookie:#x}, inherited: it limits which vCPUs share a core")
        }
        Err(Some(libc::EINVAL)) => "no core scheduling in this kernel".to_owned(),
        Err(Some(libc::ENODEV)) => "no core has two hardware threads".to_owned(),
        Err(_) => "core scheduling unknown".to_owned(),
    };
    format!("{class}; {cores}")
}

fn describe(cpus: &Cpus) -> String {
    match cpus.count() {
        1 => format!("{cpus}: only one, so vCPUs always share it"),
        count => format!("{cpus}: {count}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sched-ext/scx issue 3715: a core-scheduling cookie, with a `sched_ext` scheduler, hung the
    /// host. The doctor names both.
    #[test]
    fn scheduler_is_described_by_sched_ext_and_core_scheduling() {
        let describe = |state, cookie| describe_scheduler(state, cookie);
        assert_eq!(
            describe(None, Err(Some(libc::EINVAL))),
            "no sched_ext; no core scheduling in this kernel"
        );
        assert_eq!(
            describe(Some("enabled, scheduler lavd"), Ok(0)),
            "sched_ext enabled, scheduler lavd; no core-scheduling cookie"
        );
        assert!(describe(Some("disabled"), Ok(0x1f)).contains("cookie 0x1f, inherited"));
        assert!(describe(None, Err(Some(libc::ENODEV))).ends_with("no core has two hardware threads"));
        assert!(describe(None, Err(None)).ends_with("core scheduling unknown"));
    }
}
