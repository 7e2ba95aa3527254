//! The cost of a program per switch: the kernel's run statistics, and an empty program as the
//! baseline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_insn;

use super::error::BpfError;
use super::kernel_btf::KernelLayout;
use super::loader::{attach, load};
use super::object::BpfObject;
use super::syscall::{self, Hook, Info, NewProgram};

/// Keeps the kernel's run statistics of all BPF programs enabled until dropped. They lengthen each
/// run a little.
#[derive(Debug)]
pub struct RunStats {
    _enabled: OwnedFd,
}

impl RunStats {
    /// Enables the statistics.
    ///
    /// # Errors
    /// [`BpfError::NotPermitted`]: it needs `CAP_SYS_ADMIN`.
    pub fn enable() -> Result<Self, BpfError> {
        let enabled = syscall::enable_run_stats().map_err(BpfError::no_run_stats)?;
        Ok(Self { _enabled: enabled })
    }
}

/// The accumulated run time of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Time in all runs (ns).
    pub total_ns: u64,
    /// Number of runs.
    pub runs: u64,
}

impl RunTime {
    pub(super) fn of(program: BorrowedFd<'_>) -> Result<Self, BpfError> {
        let (total_ns, runs) =
            syscall::run_stats(program).map_err(BpfError::from_kernel("read a BPF program's run time"))?;
        Ok(Self { total_ns, runs })
    }

    /// Returns the mean time of a run since `earlier` (ns), or `None` without a run.
    pub fn mean_ns_since(self, earlier: Self) -> Option<f64> {
        let runs = self.runs.checked_sub(earlier.runs).filter(|runs| *runs > 0)?;
        Some(self.total_ns.saturating_sub(earlier.total_ns) as f64 / runs as f64)
    }
}

/// An empty program at `sched_switch`: its cost is the least of any program there. Dropping it
/// detaches it.
#[derive(Debug)]
pub struct EmptyProgram {
    program: OwnedFd,
    _link: OwnedFd,
}

impl EmptyProgram {
    /// Loads and attaches the program.
    ///
    /// # Errors
    /// See [`Program::load`](super::Program::load).
    pub fn load() -> Result<Self, BpfError> {
        let layout = KernelLayout::of_running_kernel()?;
        let mut object = BpfObject::for_kernel(&layout).map_err(BpfError::relocation)?;
        let types = object.btf().map_err(BpfError::relocation)?;
        let btf = syscall::load_btf(&types).map_err(BpfError::from_kernel("load the BPF program's types"))?;
        let program = load(&NewProgram {
            name: "empty",
            instructions: &[0xb7, 0x95].map(instruction),
            license: c"Dual MIT/GPL",
            hook: Hook::Typed(layout.tracepoints[0]),
            btf: btf.as_fd(),
            functions: Info::NONE,
            lines: Info::NONE,
        })?;
        let link = attach(program.as_fd(), "attach a BPF program to sched_switch")?;
        Ok(Self { program, _link: link })
    }

    /// Returns the program's run time, accumulated while [`RunStats`] was enabled.
    ///
    /// # Errors
    /// [`BpfError`] of bpf(2).
    pub fn time(&self) -> Result<RunTime, BpfError> {
        RunTime::of(self.program.as_fd())
    }
}

/// Returns an instruction without operands: 0xb7 is `r0 = 0` (`BPF_ALU64 | BPF_MOV | BPF_K`), 0x95
/// is `exit`.
fn instruction(code: u8) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm: 0 }
}
