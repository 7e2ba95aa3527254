//! `vmm-lab run`: one guest, or a session of several under a policy.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use protocol::payload::params::Start;

use crate::error::Error;
use crate::fault_injection::Faults;
use crate::guest::LabConfig;
use crate::options::WorkloadArgs;
use crate::options::parse::{self, Named};
use crate::output::OutputFile;
use crate::payload;
use crate::policy::catalogue::PolicyChoice;
use crate::print::print;
use crate::render::{self, Summary};
use crate::render_sched::SessionSummary;
use crate::results::RunResult;
use crate::sched::SchedConfig;
use crate::sched::cpu_hog::Load;
use crate::sched::mechanism::MechanismChoice;
use crate::session::{Session, SessionConfig, SessionResult, SessionRun};
use crate::trace::perfetto;
use host::cpus::CpuError;
use host::facts::HostFacts;
use host::stdio::{self, Stdout};
use vmm::cli::GuestArgs;
use vmm::console::ConsoleLoss;
use vmm::guest::GuestConfig;

/// The longest time that a policy may keep a runnable vCPU waiting (s).
const STARVATION: &str = "5";

/// Options of `vmm-lab run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Start of the other vCPUs: direct, or by INIT and SIPI [default: direct]
    #[arg(long, value_name = "HOW", value_parser = Named(Start::ALL, Start::name))]
    pub start: Option<Start>,
    /// Inject these faults into publication, and count them
    #[arg(long, value_name = "drop=SHARE,false_hz=RATE,delay_us=TIME,stick,lose_every=N,seed=N")]
    pub faults: Option<Faults>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The policy, and the load on the host.
    #[command(flatten)]
    pub sched: SchedArgs,
    /// The workload of the embedded payload.
    #[command(flatten)]
    pub workload: WorkloadArgs,
}

/// Options for the scheduling of guests.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Scheduling")]
pub struct SchedArgs {
    /// Policy that decides which vCPU runs where, with its parameters, as in rr:slice=3ms (see
    /// `vmm-lab policies`)
    #[arg(long, value_name = "POLICY", value_parser = parse::policy)]
    pub policy: Option<PolicyChoice>,
    /// How decisions are enforced: auto, class or deschedule
    #[arg(long, value_name = "MECHANISM", default_value = "auto", value_parser = parse::mechanism)]
    pub mechanism: MechanismChoice,
    /// End the run if the policy keeps a vCPU from running for this long
    #[arg(long, value_name = "SECONDS", default_value = STARVATION, value_parser = vmm::cli::seconds)]
    pub starvation: Duration,
    /// Number of identical guests on the same CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse::guests())]
    pub guests: u16,
    /// Load the CPUs beside the guests, as in duty=50%,burst=10ms
    #[arg(long, value_name = "LOAD")]
    pub cpu_hog: Option<Load>,
    /// Write a trace for Perfetto (ui.perfetto.dev) to this file
    #[arg(long, value_name = "FILE.pftrace")]
    pub trace: Option<PathBuf>,
}

impl RunArgs {
    /// The configuration of the guest.
    ///
    /// # Errors
    /// [`CpuError`] if this process may not use the CPUs.
    pub fn config(&self) -> Result<LabConfig, CpuError> {
        let guest = self.guest.config(payload::BYTES)?;
        let guest = GuestConfig { start: self.start.unwrap_or(Start::Direct), ..guest };
        let (faults, announces) = (self.faults, !self.guest.quiet);
        Ok(LabConfig { faults, announces, ..LabConfig::new(guest, self.workload.to_string()) })
    }
}

impl SchedArgs {
    /// Whether the run is a session: several guests, a policy, a CPU hog or a trace.
    pub fn is_session(&self) -> bool {
        self.policy.is_some() || self.guests > 1 || self.cpu_hog.is_some() || self.trace.is_some()
    }

    /// The session of guests like `guest`, with `seed` for the policy.
    pub fn session(&self, guest: LabConfig, seed: u64) -> SessionConfig {
        // A trace shows decisions. Without a policy it shows those of the host's own scheduler.
        let policy = self.policy.clone().or_else(|| self.trace.as_ref().and_then(|_| "host".parse().ok()));
        let sched = policy.map(|policy| SchedConfig {
            policy,
            mechanism: self.mechanism,
            seed,
            starvation: self.starvation,
            traces: self.trace.is_some(),
        });
        SessionConfig { guest, guests: self.guests.into(), sched, cpu_hog: self.cpu_hog }
    }
}

/// Runs the guests, prints and writes their results, and returns the exit status. `began` is the
/// start of the process.
///
/// # Errors
/// [`Error`].
pub fn command(args: &RunArgs, began: Instant) -> Result<u8, Error> {
    args.guest.set_deadline();
    let [json, trace] = OutputFile::open_all([args.json.as_deref(), args.sched.trace.as_deref()])?;
    let config = args.sched.session(args.config()?, args.workload.seed());
    let session = Session::start(&config, Stdout::default, began)?;
    if session.has_terminal() && !args.guest.quiet {
        stdio::eprintln("The terminal is the guest's: Ctrl-A x ends the run, Ctrl-A Ctrl-A is one Ctrl-A");
    }
    let run = session.wait()?;
    let loss: ConsoleLoss = run.guests.iter().map(|guest| &guest.monitor.console_loss).sum();
    if loss.is_unexpected() {
        stdio::eprintln(loss);
    }
    let result = run.result(&HostFacts::probe(), config.cpu_hog);
    match &result.guests[..] {
        [guest] if !args.sched.is_session() => report_guest(args, guest, json)?,
        _ => report_session(args, &run, &result, json, trace)?,
    }
    Ok(result.status())
}

/// Writes and prints the results of one guest without a policy.
fn report_guest(args: &RunArgs, guest: &RunResult, json: Option<OutputFile>) -> Result<(), Error> {
    if let Some(json) = json {
        json.write(guest)?;
    }
    if let Some(crash) = &guest.outcome.crash {
        stdio::eprintln(format_args!("The guest crashed: {crash}"));
    }
    if let Some(registers) = &guest.outcome.registers {
        stdio::eprintln(registers);
    }
    if !args.guest.quiet {
        print(&Summary(guest))?;
    }
    if args.guest.timings {
        stdio::eprint(render::timings(guest));
    }
    Ok(())
}

/// Writes and prints the results of a session, and its trace.
fn report_session(
    args: &RunArgs,
    run: &SessionRun,
    result: &SessionResult,
    json: Option<OutputFile>,
    trace: Option<OutputFile>,
) -> Result<(), Error> {
    if let Some(json) = json {
        json.write(result)?;
    }
    if let (Some(file), Some(trace)) = (trace, run.trace()) {
        file.write_bytes(&perfetto::encode(&trace))?;
        if trace.lost > 0 {
            stdio::eprintln(format_args!(
                "The trace is incomplete: its buffers were full, and {} events are missing",
                trace.lost
            ));
        }
    }
    if !args.guest.quiet {
        print(&SessionSummary(result))?;
    }
    Ok(())
}
