//! What can go wrong between the committed object and a running program.

use std::error::Error;
use std::io;

use protocol::VcpuId;

use super::kernel_btf::KernelBtfError;
use host::tracefs::TraceFsError;

/// Why the BPF publisher does not work here.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel's BTF.
    #[error(transparent)]
    KernelBtf(#[from] KernelBtfError),

    /// tracefs, which the classic program needs.
    #[error(transparent)]
    TraceFs(#[from] TraceFsError),

    /// The record of a tracepoint is not what the classic program was written for.
    #[error(
        "Cannot read sched_switch's {field} by the classic BPF program: this kernel has it elsewhere (try `--publisher \
         perf`)"
    )]
    Record {
        /// Which field.
        field: &'static str,
    },

    /// The committed object cannot be fitted to this kernel.
    #[error("Cannot relocate the BPF program for this kernel (try `--publisher kernel`)")]
    Object(#[source] Box<dyn Error + Send + Sync>),

    /// The kernel refuses for want of rights. It never says which.
    #[error(
        "Cannot {what}: it takes CAP_BPF and CAP_PERFMON, whatever kernel.unprivileged_bpf_disabled says, and a \
         kernel not locked down for confidentiality (try `sudo`, or `--publisher off`)"
    )]
    NotPermitted {
        /// What was tried.
        what: &'static str,
        /// `EPERM`.
        source: io::Error,
    },

    /// The verifier refuses the program. A kernel locked down for confidentiality does so: it lets no BPF program
    /// read its memory.
    #[error(
        "Cannot load BPF program {program}: the kernel's verifier refuses it (try `--publisher kernel`). It says:\n{log}"
    )]
    Verifier {
        /// The program's name.
        program: String,
        /// The last lines of the verifier's log.
        log: String,
        /// What bpf(2) returned.
        source: io::Error,
    },

    /// Linux before 6.9: no pidfd names a thread.
    #[error(
        "Cannot name a vCPU's thread to the BPF program: it needs Linux 6.9 for PIDFD_THREAD (try `--publisher bpf-classic`)"
    )]
    NoThreadPidfd(#[source] io::Error),

    /// The program has no slot for this vCPU.
    #[error("Cannot enrol a thread as vCPU {vcpu}: the BPF program was loaded for {vcpus} vCPUs")]
    NoSuchVcpu {
        /// The vCPU asked for.
        vcpu: VcpuId,
        /// How many there are.
        vcpus: usize,
    },

    /// Some other call failed.
    #[error("Cannot {what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel returned.
        source: io::Error,
    },
}

impl BpfError {
    /// For `map_err`: a call to the kernel, to do `what`, failed.
    pub(super) fn from_kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { what, source },
            _ => Self::Kernel { what, source },
        }
    }
}
