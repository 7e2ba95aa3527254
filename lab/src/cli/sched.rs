//! Options that say who runs when.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::parse;
use crate::guest::LabConfig;
use crate::policy::catalogue::PolicyChoice;
use crate::sched::SchedConfig;
use crate::sched::cpu_hog::Load;
use crate::sched::mechanism::MechanismChoice;
use crate::session::SessionConfig;

/// A vCPU that no policy has let run for so long is taken for forgotten (s).
const STARVATION: &str = "5";

/// Who runs when, and what else runs.
#[derive(Clone, Debug, Args)]
pub struct SchedArgs {
    /// Who chooses which vCPU runs where: a policy with its parameters, as in rr:slice=3ms (see `vmm-lab policies`)
    #[arg(long, value_name = "POLICY", value_parser = parse::policy)]
    pub policy: Option<PolicyChoice>,
    /// How that is made so: auto, class or deschedule
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse::mechanism)]
    pub mechanism: MechanismChoice,
    /// End the run where a policy has not let a vCPU run for so long
    #[arg(long, value_name = "SECONDS", default_value = STARVATION, value_parser = vmm::cli::seconds)]
    pub starvation: Duration,
    /// How many such guests there are, on the same CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse::guests())]
    pub guests: u16,
    /// Load the CPUs beside the guests, as in duty=50%,burst=10ms
    #[arg(long, value_name = "LOAD")]
    pub cpu_hog: Option<Load>,
    /// Write a trace for Perfetto (ui.perfetto.dev) to this file
    #[arg(long, value_name = "FILE.pftrace")]
    pub trace: Option<PathBuf>,
}

impl SchedArgs {
    /// Whether anything asks for more than one guest as it is.
    pub fn is_given(&self) -> bool {
        self.policy.is_some() || self.guests > 1 || self.cpu_hog.is_some() || self.trace.is_some()
    }

    /// Guests as `guest` under these, with `seed` for the policy.
    pub fn session(&self, guest: LabConfig, seed: u64) -> SessionConfig {
        // A trace shows decisions; where nobody makes any, the host's own are seen.
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
