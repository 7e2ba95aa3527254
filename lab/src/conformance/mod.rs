//! Conformance: tests the 31 assertions of [`protocol::payload::conformance`] on this host, for
//! each publisher.
//!
//! - [`scenes`]: the payload judges most assertions from inside the guest.
//! - [`outside`]: the monitor judges the others. It sees the vCPU threads, and can pause them.
//! - [`qemu`]: the payload judges another monitor.
//! - [`verdict`] collects the verdicts; [`report`] prints them.
//!
//! The in-kernel publisher is tested like all others. The assertions that it breaks show what KVM
//! does on this host; they do not change the exit status.

pub mod outside;
pub mod qemu;
pub mod report;
pub mod scenes;
mod snapshots;
pub mod verdict;

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use protocol::payload::conformance::Assertion;
use serde::{Serialize, Serializer};

use crate::error::{Error, interrupted_status};
use crate::output::OutputFile;
use crate::print::print;
use crate::publisher::announce_refused_bpf;
use host::cpus::Cpus;
use host::facts::HostFacts;
use host::stdio;
use report::Tap;
use steal_time::publisher::PublisherKind;
pub use verdict::{Verdict, Verdicts};
use vmm::cli::{publisher, usable_cpus};

/// Version of the JSON document.
pub const SCHEMA: u32 = 1;

/// Options of `vmm-lab conformance`.
#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// Publishers, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "bpf,bpf-classic,perf,monitor,kernel", value_parser = publisher)]
    pub publishers: Vec<PublisherKind>,
    /// Host CPUs to use, as in 0,2-3
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Test QEMU as well, with KVM and with TCG
    #[arg(long)]
    pub qemu: bool,
    /// Print the Test Anything Protocol instead of the table
    #[arg(long)]
    pub tap: bool,
    /// Write the verdicts to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// An implementation of the host's side of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A publisher of this monitor.
    Publisher(PublisherKind),
    /// QEMU with KVM, whose in-kernel publisher writes the records.
    QemuKvm,
    /// QEMU with TCG, its own emulation of the processor, which has no steal time.
    QemuTcg,
}

impl Subject {
    /// Whether a broken assertion is a defect. The other publishers report steal and preemption
    /// late, or not at all, which is documented.
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

/// The verdicts on one subject: a column of the table.
#[derive(Clone, Debug)]
pub struct Column {
    /// The subject.
    pub subject: Subject,
    /// The verdicts on all assertions.
    pub verdicts: Verdicts,
}

/// The verdicts on all subjects.
#[derive(Clone, Debug, Serialize)]
pub struct Conformance {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The host.
    pub host: HostFacts,
    /// One column for each subject.
    pub columns: Vec<Column>,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
}

/// What to test.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The host.
    pub host: HostFacts,
    /// Host CPUs that the vCPU threads may use. Some assertions need two.
    pub cpus: Cpus,
    /// The subjects.
    pub subjects: Vec<Subject>,
}

/// Tests, prints and writes all verdicts, and returns the exit status: 1 if `bpf` breaks an
/// assertion.
///
/// # Errors
/// [`Error`].
pub fn command(args: &ConformanceArgs) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::open).transpose()?;
    let publishers = args.publishers.iter().copied().map(Subject::Publisher);
    let qemu = [Subject::QemuKvm, Subject::QemuTcg].into_iter().filter(|_| args.qemu);
    let plan = Plan {
        host: HostFacts::probe(),
        cpus: usable_cpus(args.cpus.as_ref())?,
        subjects: publishers.chain(qemu).collect(),
    };
    if args.publishers.contains(&PublisherKind::Bpf) {
        announce_refused_bpf();
    }
    let conformance = run(&plan, |subject| stdio::eprintln(format_args!("Testing {subject} ...")))?;
    if let Some(json) = json {
        json.write(&conformance)?;
    }
    if args.tap {
        print(&Tap(&conformance))?;
    } else {
        print(&conformance)?;
    }
    let is_broken = !conformance.interrupted && !conformance.passes();
    Ok(if is_broken { 1 } else { interrupted_status(conformance.interrupted) })
}

/// Tests all assertions on all subjects. `begin` is called before each subject.
///
/// # Errors
/// [`Error`] if a test could not be run. A broken assertion is no error.
pub fn run(plan: &Plan, mut begin: impl FnMut(Subject)) -> Result<Conformance, Error> {
    let (mut columns, mut interrupted) = (Vec::new(), false);
    for subject in plan.subjects.iter().copied() {
        if interrupted {
            break;
        }
        begin(subject);
        let mut verdicts = Verdicts::default();
        match judge(plan, subject, &mut verdicts) {
            Err(error) if error.is_of_the_publisher() => verdicts = Verdicts::none(&error.line()),
            Err(error) if error.is_interrupted() => interrupted = true,
            judged => judged?,
        }
        columns.push(Column { subject, verdicts });
    }
    Ok(Conformance { schema: SCHEMA, host: plan.host.clone(), columns, interrupted })
}

fn judge(plan: &Plan, subject: Subject, verdicts: &mut Verdicts) -> Result<(), Error> {
    match subject {
        Subject::Publisher(publisher) => {
            scenes::play_all(plan, publisher, verdicts)?;
            outside::judge(plan, publisher, verdicts)
        }
        Subject::QemuKvm | Subject::QemuTcg => qemu::play_all(plan, subject, verdicts),
    }
}

impl Conformance {
    /// Whether no assertion is broken that must hold.
    pub fn passes(&self) -> bool {
        self.columns.iter().all(|column| !column.subject.must_hold() || column.verdicts.broken() == 0)
    }

    /// The verdict on `assertion` for `subject`; `None` if the subject was not tested.
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
