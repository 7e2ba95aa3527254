//! Conformance: the 31 assertions of [`protocol::payload::conformance`], tried on this host, publisher by publisher.
//!
//! Most are judged by our payload from inside, in [`scenes`]; some by the monitor from [`outside`], which sees the vCPUs'
//! threads and stops them; [`qemu`] has the payload judge another monitor. [`verdict`] puts together what comes of it, and
//! [`report`] prints it.
//!
//! The in-kernel publisher is tried like the others. Where it breaks an assertion, that is what KVM does on this host: the
//! table says so, and nobody's exit status suffers for it.

pub mod outside;
pub mod qemu;
pub mod report;
pub mod scenes;
pub mod verdict;

use std::fmt;

use protocol::payload::conformance::Assertion;
use serde::{Serialize, Serializer};

use crate::experiment::ExperimentError;
use crate::guest::LabGuestError;
use host::cpus::Cpus;
use host::error_chain;
use host::facts::HostFacts;
use steal_time::publisher::PublisherKind;
pub use verdict::{Verdict, Verdicts};
use vmm::vm::StateError;

/// Version of the document.
pub const SCHEMA: u32 = 1;

/// The suite could not be played.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// A guest could not be run.
    #[error(transparent)]
    Guest(#[from] LabGuestError),
    /// A scene could not be played.
    #[error(transparent)]
    Scene(#[from] ExperimentError),
    /// The state of a guest could not be had, or not be set.
    #[error(transparent)]
    State(#[from] StateError),
    /// A guest that was to be judged from outside did not do its part.
    #[error("Cannot judge from outside: {0}")]
    Outside(&'static str),
    /// QEMU could not be run.
    #[error("Cannot play scene {scene} under QEMU ({accelerator}): {how}")]
    Qemu {
        /// The scene.
        scene: &'static str,
        /// `kvm` or `tcg`.
        accelerator: &'static str,
        /// What happened.
        how: String,
    },
}

impl ConformanceError {
    /// Whether the publisher cannot be had on this host: then there is nothing to judge, and others can be judged all the
    /// same.
    fn is_of_the_publisher(&self) -> bool {
        match self {
            Self::Guest(error) | Self::Scene(ExperimentError::Guest(error)) => error.is_of_the_publisher(),
            _ => false,
        }
    }
}

/// Whose record-keeping is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A publisher of this monitor.
    Publisher(PublisherKind),
    /// QEMU, where KVM keeps the records.
    QemuKvm,
    /// QEMU's own emulation of the processor, which has no steal time.
    QemuTcg,
}

impl Subject {
    /// Whether a broken assertion is a defect. Other publishers tell late, or not at all, and say so.
    fn must_hold(self) -> bool {
        self == Self::Publisher(PublisherKind::Bpf)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publisher(kind) => kind.fmt(f),
            Self::QemuKvm => f.pad("qemu kvm"),
            Self::QemuTcg => f.pad("qemu tcg"),
        }
    }
}

/// One column: the verdicts on one subject.
#[derive(Clone, Debug)]
pub struct Column {
    /// Whose.
    pub subject: Subject,
    /// On each assertion.
    pub verdicts: Verdicts,
}

/// All columns.
#[derive(Clone, Debug, Serialize)]
pub struct Conformance {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where.
    pub host: HostFacts,
    /// By subject.
    pub columns: Vec<Column>,
    /// The user ended it before it was done.
    pub interrupted: bool,
}

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Plan {
    /// On which host.
    pub host: HostFacts,
    /// Host CPUs that the vCPU threads may use. Some assertions need two.
    pub cpus: Cpus,
    /// Whose record-keeping.
    pub subjects: Vec<Subject>,
}

/// Tries all assertions on all subjects. `begun` is told of each subject before it is tried.
///
/// # Errors
/// [`ConformanceError`], when it could not be tried; never because something is broken.
pub fn run(plan: &Plan, mut begun: impl FnMut(Subject)) -> Result<Conformance, ConformanceError> {
    let (mut columns, mut interrupted) = (Vec::new(), false);
    for subject in plan.subjects.iter().copied() {
        if interrupted {
            break;
        }
        begun(subject);
        let mut verdicts = Verdicts::default();
        match judge(plan, subject, &mut verdicts) {
            Err(error) if error.is_of_the_publisher() => {
                verdicts = Verdicts::none(&error_chain::one_line(&error));
            }
            Err(ConformanceError::Scene(ExperimentError::Interrupted)) => interrupted = true,
            judged => judged?,
        }
        columns.push(Column { subject, verdicts });
    }
    Ok(Conformance { schema: SCHEMA, host: plan.host.clone(), columns, interrupted })
}

fn judge(plan: &Plan, subject: Subject, verdicts: &mut Verdicts) -> Result<(), ConformanceError> {
    match subject {
        Subject::Publisher(publisher) => {
            scenes::play_all(plan, publisher, verdicts)?;
            outside::judge(plan, publisher, verdicts)
        }
        Subject::QemuKvm | Subject::QemuTcg => qemu::play_all(plan, subject, verdicts),
    }
}

impl Conformance {
    /// Whether nothing is broken that must hold.
    pub fn is_kept(&self) -> bool {
        self.columns.iter().all(|column| !column.subject.must_hold() || column.verdicts.broken() == 0)
    }

    /// The verdict on `assertion` for `subject`, if that was tried.
    pub fn verdict(&self, subject: Subject, assertion: Assertion) -> Option<Verdict> {
        let column = self.columns.iter().find(|column| column.subject == subject)?;
        Some(column.verdicts.of(assertion))
    }
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row {
            number: u8,
            assertion: &'static str,
            statement: &'static str,
            #[serde(flatten)]
            verdict: Verdict,
        }
        #[derive(Serialize)]
        struct Rows {
            subject: String,
            assertions: Vec<Row>,
        }
        let row = |assertion: &Assertion| Row {
            number: assertion.number(),
            assertion: assertion.name(),
            statement: assertion.statement(),
            verdict: self.verdicts.of(*assertion),
        };
        let assertions = Assertion::ALL.iter().map(row).collect();
        Rows { subject: self.subject.to_string(), assertions }.serialize(serializer)
    }
}
