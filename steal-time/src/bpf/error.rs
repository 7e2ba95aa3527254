//! Errors between the committed object and an attached program.

use std::error::Error;
use std::io;

use protocol::VcpuId;

use crate::publisher::kind::PublisherKind;
use host::error_chain::cure_of_exhaustion;

type Source = Box<dyn Error + Send + Sync>;

/// The rights that the programs need.
const RIGHTS: &str = "CAP_BPF and CAP_PERFMON, whatever kernel.unprivileged_bpf_disabled is, and a kernel \
                      that is not locked down for confidentiality";

/// A BPF program cannot be loaded, attached or used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The host lacks something that the program needs: bpf(2), BTF, tracefs, or a pidfd of a
    /// thread.
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
    #[error("Cannot {what}: it needs {needs}")]
    NotPermitted {
        /// What was tried.
        what: &'static str,
        /// The rights that it needs.
        needs: &'static str,
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
    ///
    /// `EPERM` is never the limit of locked memory: since Linux 5.11 BPF memory does not count
    /// there, and the programs need 5.12.
    pub(super) fn from_kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { what, needs: RIGHTS, source },
            Some(libc::ENOSYS) => Self::Unsupported {
                what,
                needs: "the BPF publishers need a kernel built with CONFIG_BPF_SYSCALL",
                instead: PublisherKind::Perf,
                source: source.into(),
            },
            // A command, a type or a field that this kernel does not know
            Some(libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP) => {
                Self::Incompatible { what, instead: PublisherKind::Perf, source: source.into() }
            }
            _ => Self::Kernel { what, source },
        }
    }

    /// The kernel's run statistics cannot be enabled.
    pub(super) fn no_run_stats(source: io::Error) -> Self {
        let what = "enable BPF run statistics";
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted { what, needs: "CAP_SYS_ADMIN, as root has it", source },
            _ => Self::from_kernel(what)(source),
        }
    }

    /// The kernel does not load `program`. `log` is the verifier's; it counts only if the error is
    /// one of the verifier.
    pub(super) fn from_load(program: &str, source: io::Error, log: &str) -> Self {
        const LOG_LINES: usize = 12;

        if log.is_empty() || !is_verdict(&source) {
            return Self::from_kernel("load the BPF program")(source);
        }
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        Self::Verifier { program: program.to_owned(), log: last.join("\n"), source }
    }

    /// The object cannot be parsed, or not be fitted to this kernel.
    pub(super) fn relocation(source: Source) -> Self {
        Self::Incompatible { what: "relocate the BPF program", instead: PublisherKind::Kernel, source }
    }

    /// The kernel's BTF cannot be read. A kernel without BTF has no such file.
    pub(super) fn no_kernel_btf(source: io::Error) -> Self {
        let what = "read /sys/kernel/btf/vmlinux";
        if is_exhaustion(&source) {
            return Self::Kernel { what, source };
        }
        Self::Unsupported {
            what,
            needs: "the BPF publisher needs a kernel built with CONFIG_DEBUG_INFO_BTF",
            instead: PublisherKind::BpfClassic,
            source: source.into(),
        }
    }

    /// The kernel's BTF is malformed, or lacks a type.
    pub(super) fn kernel_btf(source: Source) -> Self {
        Self::Incompatible { what: "use /sys/kernel/btf/vmlinux", instead: PublisherKind::BpfClassic, source }
    }

    /// No pidfd can be opened. Before Linux 6.9 none names a thread.
    pub(super) fn no_thread_pidfd(source: io::Error) -> Self {
        let what = "open a pidfd of a vCPU thread";
        if !matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) {
            return Self::Kernel { what, source };
        }
        Self::Unsupported {
            what,
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

/// Whether the error is one of the verifier, rather than of what surrounds it: permissions,
/// descriptors, memory, a missing bpf(2), an interruption.
pub(super) fn is_verdict(error: &io::Error) -> bool {
    let of_the_rest = [libc::EPERM, libc::ENOSYS, libc::EAGAIN, libc::EINTR, libc::EBADF];
    !is_exhaustion(error) && error.raw_os_error().is_some_and(|errno| !of_the_rest.contains(&errno))
}

fn is_exhaustion(error: &io::Error) -> bool {
    error.raw_os_error().and_then(cure_of_exhaustion).is_some()
}

#[cfg(test)]
mod tests {
    use host::error_chain::one_line;

    use super::*;

    /// What the verifier logs of a program that it accepts, or rejects.
    const LOG: &str = "func#0 @0\nprocessed 170 insns (limit 1000000) max_states_per_insn 0";

    #[test]
    fn error_of_bpf_is_explained_by_its_number_and_has_no_verifier_in_it() {
        for (errno, cure) in [
            (libc::EPERM, "CAP_BPF"),
            (libc::EMFILE, "ulimit -n"),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOMEM, "cgroup"),
            (libc::ENOSYS, "CONFIG_BPF_SYSCALL"),
            (libc::EAGAIN, "Resource temporarily unavailable"),
            (libc::EBUSY, "Device or resource busy"),
        ] {
            let io = || io::Error::from_raw_os_error(errno);
            let mut errors = vec![BpfError::from_kernel("create a BPF map")(io())];
            errors.push(BpfError::from_load("switch", io(), ""));
            if errno != libc::EBUSY {
                errors.push(BpfError::from_load("switch", io(), LOG));
            }
            for line in errors.iter().map(|error| one_line(error)) {
                assert!(line.contains(cure) && !line.contains("verifier"), "{errno}: {line}");
            }
        }
    }

    #[test]
    fn verdict_of_the_verifier_carries_its_log_and_without_a_log_the_error_of_the_kernel() {
        for errno in [libc::EACCES, libc::EINVAL, libc::E2BIG, libc::ENOSPC, 524] {
            let rejected = BpfError::from_load("switch", io::Error::from_raw_os_error(errno), LOG);
            assert!(matches!(&rejected, BpfError::Verifier { log, .. } if log == LOG), "{rejected}");
            let silent = BpfError::from_load("switch", io::Error::from_raw_os_error(errno), "");
            assert!(!matches!(silent, BpfError::Verifier { .. }), "{silent}");
        }
    }

    #[test]
    fn missing_feature_is_told_from_a_host_that_has_run_out() {
        let io = io::Error::from_raw_os_error;
        assert!(one_line(&BpfError::no_kernel_btf(io(libc::ENOENT))).contains("CONFIG_DEBUG_INFO_BTF"));
        assert!(one_line(&BpfError::no_thread_pidfd(io(libc::EINVAL))).contains("Linux 6.9"));
        for exhausted in
            [BpfError::no_kernel_btf(io(libc::EMFILE)), BpfError::no_thread_pidfd(io(libc::EMFILE))]
        {
            let line = one_line(&exhausted);
            assert!(line.contains("ulimit -n") && !line.contains("needs"), "{line}");
            assert_eq!(exhausted.alternative(), None);
        }
        assert!(one_line(&BpfError::no_run_stats(io(libc::EPERM))).contains("CAP_SYS_ADMIN"));
    }
}
