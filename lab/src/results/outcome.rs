//! How a run ended.

use std::fmt::{self, Display, Write as _};
use std::sync::atomic::Ordering;

use protocol::payload::report::{Crash as CrashReport, Report, VECTOR_PANIC};
use serde::Serialize;

use super::statistics::read;
use vmm::supervise::Outcome;

/// What ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// The guest reset the machine.
    Reset,
    /// The guest wrote a status to the exit port.
    Exit,
    /// A vCPU could not continue.
    Crash,
    /// The run reached its timeout.
    TimedOut,
    /// The user interrupted the run.
    Interrupted,
    /// The scheduler driver stopped the run.
    Stopped,
}

impl OutcomeKind {
    /// Why the run ended before the guest ended it; `None` if the guest did.
    pub fn ended_early(self) -> Option<&'static str> {
        match self {
            Self::TimedOut => Some("timed out"),
            Self::Interrupted => Some("interrupted"),
            Self::Stopped => Some("its vCPUs could not be scheduled any longer"),
            Self::Reset | Self::Exit | Self::Crash => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Exit => "exit",
            Self::Crash => "crash",
            Self::TimedOut => "timed out",
            Self::Interrupted => "interrupted",
            Self::Stopped => "stopped",
        }
    }
}

impl From<&Outcome> for OutcomeKind {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Reset => Self::Reset,
            Outcome::Exit(_) => Self::Exit,
            Outcome::Crash { .. } => Self::Crash,
            Outcome::TimedOut => Self::TimedOut,
            Outcome::Interrupted => Self::Interrupted,
            Outcome::Stopped => Self::Stopped,
        }
    }
}

impl Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct OutcomeFacts {
    /// What ended it.
    pub kind: OutcomeKind,
    /// Exit status of `vmm` for this outcome.
    pub status: u8,
    /// The crash, in one line.
    pub crash: Option<String>,
    /// Registers of the vCPU that KVM could not run any longer.
    pub registers: Option<String>,
}

impl OutcomeFacts {
    /// Describes `outcome`, with the crash that the payload reported.
    pub fn new(outcome: &Outcome, report: Option<&Report>) -> Self {
        let (crash, registers) = match outcome {
            Outcome::Crash { vcpu, crash } => (
                Some(format!("vCPU {vcpu}: {}", crash.reason)),
                crash.registers.as_ref().map(ToString::to_string),
            ),
            _ => (report.and_then(|report| describe_crash(&report.header.crash)), None),
        };
        Self { kind: outcome.into(), status: outcome.status(), crash, registers }
    }

    /// The crash, or else what ended the run.
    pub fn in_short(&self) -> &str {
        self.crash.as_deref().unwrap_or(self.kind.name())
    }
}

/// Describes the crash that the payload reported; `None` if it reported none.
fn describe_crash(crash: &CrashReport) -> Option<String> {
    // In state 2 all fields are complete.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_is_described_only_when_it_is_complete() {
        // A report has a megabyte, too much for a test's stack.
        static REPORT: Report = Report::new();
        let crash = &REPORT.header.crash;
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
