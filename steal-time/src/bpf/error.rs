//! Errors between the committed object and an attached program.

use std::error::Error;
use std::io;

use protocol::VcpuId;

use crate::publisher::kind::PublisherKind;

type Source = Box<dyn Error + Send + Sync>;

/// A BPF program cannot be loaded, attached or used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The host lacks something that the program needs: BTF, tracefs, or a pidfd of a thread.
    #[error("Cannot {what}: {needs}")]
    Unsupported {
        /// What was tried.
        what: &'static str,
        /// What is missing.
        needs: &'static str,
        /// The publisher that does without it.
        instead: PublisherKind,
        /// Why it is missing.
        source: Source,
    },

    /// The committed program does not fit this kernel.
    #[error("Cannot {what}: the BPF program does not fit this kernel")]
    Incompatible {
        /// What was tried.
        what: &'static str,
        /// The publisher that may work instead.
        instead: PublisherKind,
        /// What does not fit.
        source: Source,
    },

    /// The kernel refuses for lack of privileges. It never reports which.
    #[error(
        "Cannot {what}: it needs CAP_BPF and CAP_PERFMON, whatever \
         kernel.unprivileged_bpf_disabled is, and a kernel that is not locked down for confidentiality"
    )]
    NotPermitted {
        /// What was tried.
        what: &'static str,
        /// `EPERM` or `EACCES`.
        source: io::Error,
    },

    /// The verifier rejects the program. A kernel that is locked down for confidentiality does so,
    /// since it lets no BPF program read kernel memory.
    #[error(
        "Cannot load BPF program {program}: the kernel's verifier rejects it. Its log ends:
{log}"
    )]
    Verifier {
        /// The program's name.
        program: String,
        /// The last lines of the verifier's log.
        log: String,
        /// The error of bpf(2).
        source: io::Error,
    },

    /// The program has no slot for this vCPU.
    #[error("Cannot attach a thread as vCPU {vcpu}: the BPF program was loaded for {vcpus} vCPUs")]
    NoSuchVcpu {
        /// The vCPU.
        vcpu: VcpuId,
        /// The number of vCPUs that the program was loaded for.
        vcpus: usize,
    },

    /// Another system call failed.
    #[error("Cannot {what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The error of the call.
        source: io::Error,
    },
}

impl BpfError {
    /// Returns the publisher that may do without what is missing, if there is one.
    pub fn alternative(&self) -> Option<PublisherKind> {
        match self {
            Self::Unsupported { instead, .. } | Self::Incompatible { instead, .. } => Some(*instead),
            Self::NotPermitted { .. } => Some(PublisherKind::Perf),
            Self::Verifier { .. } => Some(PublisherKind::Kernel),
            Self::NoSuchVcpu { .. } | Self::Kernel { .. } => None,
        }
    }

    /// Returns a function for `map_err`: a system call, meant to do `what`, failed.
    pub(super) fn from_kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { what, source },
            _ => Self::Kernel { what, source },
        }
    }

    /// The object cannot be parsed, or not be fitted to this kernel.
    pub(super) fn relocation(source: Source) -> Self {
        Self::Incompatible { what: "relocate the BPF program", instead: PublisherKind::Kernel, source }
    }

    /// The kernel has no readable BTF.
    pub(super) fn no_kernel_btf(source: io::Error) -> Self {
        Self::Unsupported {
            what: "read /sys/kernel/btf/vmlinux",
            needs: "the BPF publisher needs a kernel built with CONFIG_DEBUG_INFO_BTF",
            instead: PublisherKind::BpfClassic,
            source: source.into(),
        }
    }

    /// The kernel's BTF is malformed, or lacks a type.
    pub(super) fn kernel_btf(source: Source) -> Self {
        Self::Incompatible { what: "use /sys/kernel/btf/vmlinux", instead: PublisherKind::BpfClassic, source }
    }

    /// Before Linux 6.9 no pidfd names a thread.
    pub(super) fn no_thread_pidfd(source: io::Error) -> Self {
        Self::Unsupported {
            what: "open a pidfd of a vCPU thread",
            needs: "the BPF publisher needs Linux 6.9 for PIDFD_THREAD",
            instead: PublisherKind::BpfClassic,
            source: source.into(),
        }
    }

    /// tracefs cannot be used.
    pub(super) fn no_tracefs(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unsupported {
            what: "find the tracepoints of the classic BPF program",
            needs: "it needs tracefs",
            instead: PublisherKind::Perf,
            source: source.into(),
        }
    }

    /// A tracepoint's record has another layout than the classic program expects.
    pub(super) fn tracepoint_format(field: &str) -> Self {
        Self::Incompatible {
            what: "use the classic BPF program at sched_switch",
            instead: PublisherKind::Perf,
            source: format!("this kernel has `{field}` at another offset").into(),
        }
    }
}
