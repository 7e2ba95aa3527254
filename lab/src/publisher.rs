//! The publisher of a command: what was chosen, what the host allows, and what the difference
//! costs.
//!
//! A command that compares guests settles `--publisher` once, so that all of them have the same
//! publisher. Where the host refuses the best one, the first line that the command prints names
//! what is missing, what that costs, and the cure.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::error::Error;
use crate::guest::RunError;
use host::capability::{Capability, Rights};
use host::error_chain;
use host::stdio;
use steal_time::bpf::{BpfError, Program};
use steal_time::publisher::{PublisherChoice, PublisherKind, Refusal, Selection};
use vmm::VmmError;
use vmm::cpuid::Supported;
use vmm::vm::machine;

/// The publisher that a command uses for all its guests.
#[derive(Clone, Debug, Serialize)]
pub struct ChosenPublisher {
    /// The publisher.
    pub kind: PublisherKind,
    /// The publisher that was requested.
    pub requested: String,
    /// Why this one was taken.
    pub why: String,
    /// What is missing for the best one, in short; `None` if it was taken, or another requested.
    pub missing: Option<String>,
    /// The first line of the command's output, if something is missing.
    #[serde(skip)]
    notice: Option<String>,
}

impl ChosenPublisher {
    /// Settles `choice` on this host.
    ///
    /// # Errors
    /// [`Error::Guest`] without KVM, or if the host refuses a publisher that is chosen by name.
    pub fn settle(choice: PublisherChoice) -> Result<Self, Error> {
        let kernel_can = kernel_has_steal_time().map_err(RunError::from)?;
        let selection = choice.settle(1, kernel_can);
        let selection = selection.map_err(|error| RunError::from(VmmError::from(error)))?;
        let (rights, refused) = (Rights::of_this_process(), selection.refused().first());
        Ok(Self {
            kind: selection.kind(),
            requested: choice.to_string(),
            why: selection.why().to_owned(),
            missing: refused.map(|(_, error)| missing(error, &rights)),
            notice: notice(&selection),
        })
    }

    /// A publisher that was requested by name, for tests of tables.
    #[cfg(test)]
    pub(crate) fn requested(kind: PublisherKind) -> Self {
        let why = "requested".to_owned();
        Self { kind, requested: kind.to_string(), why, missing: None, notice: None }
    }

    /// Prints what is missing, what that costs and the cure to standard error, if anything is.
    pub fn announce(&self) {
        if let Some(notice) = &self.notice {
            stdio::eprintln(notice);
        }
    }
}

impl Display for ChosenPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.missing {
            Some(missing) => write!(f, "{} (auto: {missing})", self.kind),
            None if self.requested == self.kind.to_string() => write!(f, "{}", self.kind),
            None => write!(f, "{} ({})", self.kind, self.requested),
        }
    }
}

/// Returns whether KVM has steal time of its own.
///
/// # Errors
/// [`VmmError`] without KVM.
pub fn kernel_has_steal_time() -> Result<bool, VmmError> {
    let supported = Supported::read(&machine::open_kvm()?);
    supported.map(|supported| supported.has_steal_time())
}

/// Returns the first line of a command whose publisher `selection` is; `None` if it is the best.
pub fn notice(selection: &Selection) -> Option<String> {
    let refused = selection.refused().first()?;
    Some(notice_of(selection.kind(), refused, &Rights::of_this_process(), &own_path()))
}

/// Prints the first line of a command that measures several publishers, or `bpf` alone, if this
/// host refuses `bpf`. Returns why it does.
pub fn announce_refused_bpf() -> Option<String> {
    let error = Program::load(1, 1).err()?;
    let (missing, cure) = explain(&error, &Rights::of_this_process(), &own_path());
    stdio::eprintln(format_args!("Publisher bpf is not measured: {missing}.{cure}"));
    Some(missing)
}

fn notice_of(kind: PublisherKind, (better, error): &Refusal, rights: &Rights, program: &str) -> String {
    let cost = match kind {
        PublisherKind::BpfClassic => "It publishes steal up to 1 ms late",
        PublisherKind::Perf => "It sets `preempted` late, so figures understate what the byte is worth",
        _ => "It never sets `preempted` when the host preempts a vCPU, so the byte is worth nothing",
    };
    let (missing, cure) = explain(error, rights, program);
    format!("Publisher {kind} instead of {better}: {missing}. {cost}.{cure}")
}

/// Returns what `error` states to be missing, and a sentence with the cure.
fn explain(error: &BpfError, rights: &Rights, program: &str) -> (String, String) {
    (missing(error, rights), cure(error, rights, program))
}

/// The capabilities of publisher `bpf`.
const OF_BPF: [Capability; 2] = [Capability::Bpf, Capability::Perfmon];

/// Returns what `error` states to be missing, in short.
fn missing(error: &BpfError, rights: &Rights) -> String {
    if !matches!(error, BpfError::NotPermitted { .. }) {
        return error_chain::one_line(error);
    }
    let missing: Vec<_> = OF_BPF.iter().filter(|one| rights.missing.contains(one)).collect();
    match missing[..] {
        [] => "this process has its capabilities in a user namespace only, or the kernel is locked down"
            .to_owned(),
        [one] => format!("{one} is missing"),
        _ => {
            let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
            format!("{} are missing", names.join(" and "))
        }
    }
}

/// Returns a sentence with the cure, after a space; empty if this program knows none.
fn cure(error: &BpfError, rights: &Rights, program: &str) -> String {
    let is_missing = OF_BPF.iter().any(|one| rights.missing.contains(one));
    if !matches!(error, BpfError::NotPermitted { .. }) || !is_missing {
        return String::new();
    }
    let listed = |prefix: &str, separator: &str, capabilities: &[Capability]| {
        let names = capabilities.iter().map(|one| format!("{prefix}{}", one.name()));
        names.collect::<Vec<_>>().join(separator)
    };
    let setcap = listed("cap_", ",", &Capability::ALL).to_lowercase();
    let setcap = format!("sudo setcap {setcap}+ep {}", quoted(program));
    if rights.no_new_privs {
        return format!(" Cure: {setcap}, and start it without no_new_privs");
    }
    if rights.withheld.is_empty() {
        return format!(" Cure: {setcap}");
    }
    let container = listed("--cap-add ", " ", &rights.withheld);
    format!(" Cure: let the container or service have them (docker run {container}), then {setcap}")
}

/// Returns the path of this program.
fn own_path() -> String {
    std::env::current_exe().map_or_else(|_| "vmm-lab".to_owned(), |path| path.display().to_string())
}

/// Quotes `path` for a shell, if it needs that.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if path.chars().all(is_plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refusal(errno: i32) -> Refusal {
        let source = io::Error::from_raw_os_error(errno);
        let what = "load the BPF program";
        let error = match errno {
            libc::EPERM => BpfError::NotPermitted { what, needs: "CAP_BPF", source },
            _ => BpfError::Kernel { what, source },
        };
        (PublisherKind::Bpf, error)
    }

    fn rights(missing: &[Capability]) -> Rights {
        Rights { missing: missing.to_vec(), withheld: Vec::new(), no_new_privs: false }
    }

    #[test]
    fn notice_of_missing_rights_has_the_right_the_cost_and_the_line_to_type() {
        let line =
            notice_of(PublisherKind::Perf, &refusal(libc::EPERM), &rights(&Capability::ALL), "/opt/vmm-lab");
        assert_eq!(
            line,
            "Publisher perf instead of bpf: CAP_BPF and CAP_PERFMON are missing. It sets `preempted` late, so \
             figures understate what the byte is worth. Cure: sudo setcap cap_bpf,cap_perfmon,cap_sys_nice+ep \
             /opt/vmm-lab"
        );
        let one = rights(&[Capability::Perfmon]);
        let line = notice_of(PublisherKind::Monitor, &refusal(libc::EPERM), &one, "/my lab/it's");
        assert!(line.contains("CAP_PERFMON is missing. It never sets"), "{line}");
        assert!(line.ends_with(r"+ep '/my lab/it'\''s'"), "{line}");
    }

    #[test]
    fn cure_that_would_not_help_is_not_named() {
        let notice = |errno, rights: &Rights| notice_of(PublisherKind::Perf, &refusal(errno), rights, "lab");
        let other_cause = notice(libc::EMFILE, &rights(&Capability::ALL));
        assert!(other_cause.contains("ulimit -n") && !other_cause.contains("setcap"), "{other_cause}");
        let in_namespace = notice(libc::EPERM, &rights(&[]));
        assert!(
            in_namespace.contains("user namespace") && !in_namespace.contains("setcap"),
            "{in_namespace}"
        );
        let withheld = Rights { withheld: vec![Capability::Bpf], ..rights(&Capability::ALL) };
        let withheld = notice(libc::EPERM, &withheld);
        assert!(withheld.contains("docker run --cap-add BPF), then sudo setcap"), "{withheld}");
        let no_new_privs = Rights { no_new_privs: true, ..rights(&Capability::ALL) };
        assert!(notice(libc::EPERM, &no_new_privs).contains("without no_new_privs"));
    }
}
