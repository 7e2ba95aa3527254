//! The doctor: what this host can do, and what each missing piece costs.
//!
//! Each check is the thing itself, tried: KVM is opened, the program loaded, a guest run. Nothing is concluded from
//! version numbers.

use std::fmt::{self, Display};
use std::process::{Command, Stdio};
use std::time::Duration;

use kvm_bindings::KVM_CAP_HALT_POLL;
use kvm_ioctls::{Cap, Kvm};
use protocol::payload::params::{Job, Workload};

use crate::accuracy::{self, AccuracyError};
use crate::cli::AccuracyArgs;
use crate::experiment::Experiment;
use crate::results::RunResult;
use crate::sched::choice::class_is_refused;
use crate::table::figure;
use host::cpus::Cpus;
use host::error_chain;
use host::facts::HostFacts;
use host::stats;
use steal_time::bpf::Program;
use steal_time::publisher::PublisherKind;
use vmm::cpuid::Supported;
use vmm::vm::machine;

/// How long two vCPUs sample each other's byte, for each publisher.
const SAMPLING_MS: u32 = 200;

/// How long the oracle looks at the byte, for each publisher.
const LOOKING_MS: u32 = 300;

const PUBLISHERS: [(&str, PublisherKind); 5] = [
    ("byte by bpf", PublisherKind::Bpf),
    ("byte by bpf-classic", PublisherKind::BpfClassic),
    ("byte by perf", PublisherKind::Perf),
    ("byte by monitor", PublisherKind::Monitor),
    ("byte by kernel", PublisherKind::Kernel),
];

/// What was found.
#[derive(Debug, Default)]
pub struct Diagnosis {
    host: Option<HostFacts>,
    findings: Vec<Finding>,
}

/// One thing that was tried.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    /// What it can do, or what is wrong and what that costs.
    verdict: Result<String, String>,
}

/// Tries everything.
pub fn examine() -> Diagnosis {
    let mut diagnosis = Diagnosis { host: Some(HostFacts::probe()), ..Diagnosis::default() };
    match machine::open_kvm() {
        Ok(kvm) => diagnosis.examine_kvm(&kvm),
        Err(error) => diagnosis.bad("KVM", format!("{error}; nothing runs without it")),
    }
    diagnosis.examine_bpf();
    diagnosis.examine_accounts();
    diagnosis.examine_publishers();
    diagnosis.examine_qemu();
    diagnosis
}

impl Diagnosis {
    fn good(&mut self, what: &'static str, detail: String) {
        self.findings.push(Finding { what, verdict: Ok(detail) });
    }

    fn bad(&mut self, what: &'static str, detail: String) {
        self.findings.push(Finding { what, verdict: Err(detail) });
    }

    fn examine_kvm(&mut self, kvm: &Kvm) {
        let most = kvm.get_max_vcpus().min(protocol::MAX_VCPUS);
        self.good("KVM", format!("opens; at most {most} vCPUs in a guest"));
        if kvm.check_extension(Cap::X86MsrFilter) && kvm.check_extension(Cap::X86UserSpaceMsr) {
            self.good("MSR filter", "accesses to the steal-time MSR can be handed to us".to_owned());
        } else {
            let cost = "missing (Linux 5.10 has it): only --publisher kernel works";
            self.bad("MSR filter", cost.to_owned());
        }
        match Supported::read(kvm) {
            Ok(supported) if supported.has_steal_time() => {
                self.good("KVM's steal time", "offered: --publisher kernel works".to_owned());
            }
            Ok(_) => {
                let cost = "not offered (it takes CONFIG_SCHED_INFO): --publisher kernel does not work";
                self.bad("KVM's steal time", cost.to_owned());
            }
            Err(error) => self.bad("KVM's steal time", format!("KVM does not tell its CPUID: {error}")),
        }
        if kvm.check_extension(Cap::SplitIrqchip) {
            self.good(
                "split irqchip",
                "our payload starts and ends without waiting for an I/O APIC".to_owned(),
            );
        } else {
            self.bad("split irqchip", "missing: each run takes some 20 ms longer".to_owned());
        }
        if kvm.check_extension_raw(KVM_CAP_HALT_POLL.into()) <= 0 {
            self.bad(
                "halt polling",
                "cannot be switched off for a guest: halts hold their CPU for a while".to_owned(),
            );
        }
    }

    fn examine_bpf(&mut self) {
        let took = |program: &Program| {
            let took: Duration = program.timings().iter().map(|(_, took)| *took).sum();
            format!("the program loads and attaches, in {:.1} ms", took.as_secs_f64() * 1e3)
        };
        match Program::load(1, 1) {
            Ok(program) => {
                self.good("BPF", took(&program));
                if program.detects_init() {
                    self.good(
                        "INIT",
                        "KVM's local APICs tell of it: it clears the MSR, as it must".to_owned(),
                    );
                } else {
                    self.bad(
                        "INIT",
                        "KVM's tracepoints are missing: an INIT leaves the MSR and publication as they are"
                            .to_owned(),
                    );
                }
            }
            Err(error) => {
                self.bad(
                    "BPF",
                    format!("{}: steal and byte come later, or not at all", error_chain::one_line(&error)),
                );
            }
        }
        match Program::load_classic(1, 1) {
            Ok(program) => self.good("BPF without BTF", took(&program)),
            Err(error) => self.bad("BPF without BTF", error_chain::one_line(&error)),
        }
    }

    fn examine_accounts(&mut self) {
        match class_is_refused() {
            None => {
                self.good("policies", "--mechanism class works, and deschedule works everywhere".to_owned())
            }
            Some(why) => self.bad("policies", format!("{why}: --mechanism deschedule is what remains")),
        }
        match stats::own_run_delay_ns() {
            Ok(_) => {
                self.good("run delay", "the scheduler tells how long a thread waited for a CPU".to_owned());
            }
            Err(error) => {
                self.bad("run delay", format!("not told ({error}): no steal (it takes CONFIG_SCHED_INFO)"));
            }
        }
    }

    /// What does each publisher's byte say? The oracle is asked, or where it has no CPU to look from, two vCPUs on one CPU.
    fn examine_publishers(&mut self) {
        let Some(host) = self.host.clone() else { return };
        let Some(cpus) = host.cpus.clone() else {
            return self.bad("CPUs", "this process cannot tell which it may use".to_owned());
        };
        self.good("CPUs", describe(&cpus));
        let args = AccuracyArgs {
            publishers: PUBLISHERS.map(|(_, kind)| kind).to_vec(),
            faults: None,
            cpus: None,
            duration_ms: LOOKING_MS,
            json: None,
        };
        match accuracy::run(&args, |_| {}) {
            Ok(accuracy) => {
                for ((what, _), row) in PUBLISHERS.iter().zip(&accuracy.rows) {
                    self.judge(what, &row.finding);
                }
            }
            Err(AccuracyError::TooFewCpus(_)) => self.sample_publishers(host, &cpus),
            Err(error) => self.bad("byte", error_chain::one_line(&error)),
        }
    }

    fn judge(&mut self, what: &'static str, finding: &Result<accuracy::Finding, String>) {
        let finding = match finding {
            Ok(finding) => finding,
            Err(why) => return self.bad(what, why.clone()),
        };
        if let Some(doubt) = finding.tally.doubts.first() {
            return self.bad(what, format!("how true it is cannot be said: {doubt}"));
        }
        let edge = &finding.byte.sched_out;
        let wrong = finding.byte.wrongly_set.longest_ns.max(finding.byte.wrongly_clear.longest_ns);
        match edge.quantile_ns(0.5) {
            Some(late) if edge.missed * 100 <= edge.happened => {
                let text = format!(
                    "set for all but {} of {} preemptions, after {} us in the median; wrong for {} ms at most",
                    edge.missed,
                    edge.happened,
                    figure(late as f64 / 1e3),
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

    fn sample_publishers(&mut self, host: HostFacts, cpus: &Cpus) {
        let workload = Workload { job: Job::Watch, duration_ms: SAMPLING_MS, ..Workload::DEFAULT };
        let experiment = Experiment { host, cpus: cpus.first(1), workload };
        for (what, kind) in PUBLISHERS {
            match experiment.run(2, kind, workload) {
                Ok(result) => self.judge_byte(what, &result),
                Err(error) => self.bad(what, error.to_string()),
            }
        }
    }

    fn judge_byte(&mut self, what: &'static str, result: &RunResult) {
        let Some((window, byte)) = result.window.as_ref().and_then(|window| Some((window, window.byte?)))
        else {
            return self.bad(what, "the guest did not come to sampling it".to_owned());
        };
        let share = 100.0 * byte.other_share();
        let text = format!(
            "of a preempted vCPU it is set in {share:.2} % of {} samples ({} preemptions), of a running one in {}",
            figure(byte.other_samples as f64),
            window.host.preemptions,
            byte.own_set,
        );
        if share >= 99.0 && byte.own_set == 0 { self.good(what, text) } else { self.bad(what, text) }
    }

    fn examine_qemu(&mut self) {
        let qemu = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
        match qemu {
            Ok(_) => self.good("QEMU", "here, to compare start-up with".to_owned()),
            Err(_) => {
                self.bad("QEMU", "not here: `vmm-lab bench startup` has nothing to compare with".to_owned());
            }
        }
    }
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            writeln!(f, "{}, Linux {}, KVM on {}\n", host.processor, host.kernel, host.kvm_backend)?;
        }
        for Finding { what, verdict } in &self.findings {
            let (mark, detail) = match verdict {
                Ok(detail) => ("ok", detail),
                Err(detail) => ("--", detail),
            };
            writeln!(f, "{mark}  {what:<19} {detail}")?;
        }
        Ok(())
    }
}

fn describe(cpus: &Cpus) -> String {
    match cpus.count() {
        1 => format!("{cpus}: one, so nothing can be compared with vCPUs that do not disturb each other"),
        count => format!("{cpus}: {count} to share"),
    }
}
