//! What a program costs a switch: the kernel's own run statistics, and a program to compare with that does nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_insn;

use super::BpfError;
use super::kernel_btf::KernelLayout;
use super::loader::{attach, load};
use super::object::BpfObject;
use super::syscall::{self, Hook, Info, NewProgram};

/// As long as this lives, the kernel notes how long each BPF program runs. That takes time itself, in each run.
#[derive(Debug)]
pub struct RunStats {
    _kept: OwnedFd,
}

impl RunStats {
    /// Begins.
    ///
    /// # Errors
    /// [`BpfError::NotPermitted`]: it takes `CAP_SYS_ADMIN`.
    pub fn keep() -> Result<Self, BpfError> {
        let kept =
            syscall::enable_run_stats().map_err(BpfError::from_kernel("have BPF run statistics kept"))?;
        Ok(Self { _kept: kept })
    }
}

/// How long a program has run, all told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// So long (ns).
    pub total_ns: u64,
    /// So often.
    pub runs: u64,
}

impl RunTime {
    pub(super) fn of(program: BorrowedFd<'_>) -> Result<Self, BpfError> {
        let (total_ns, runs) =
            syscall::run_stats(program).map_err(BpfError::from_kernel("read a BPF program's run time"))?;
        Ok(Self { total_ns, runs })
    }

    /// Nanoseconds a run since `earlier`; `None` where there was none.
    pub fn each_ns_since(self, earlier: Self) -> Option<f64> {
        let runs = self.runs.checked_sub(earlier.runs).filter(|runs| *runs > 0)?;
        Some(self.total_ns.saturating_sub(earlier.total_ns) as f64 / runs as f64)
    }
}

/// A program on `sched_switch` that does nothing. What it costs, every program there does. Dropping it detaches.
#[derive(Debug)]
pub struct EmptyProgram {
    program: OwnedFd,
    _link: OwnedFd,
}

impl EmptyProgram {
    /// Loads and attaches it.
    ///
    /// # Errors
    /// [`BpfError`], as for [`super::Program::load`].
    pub fn load() -> Result<Self, BpfError> {
        let layout = KernelLayout::of_running_kernel()?;
        let mut object = BpfObject::for_kernel(&layout).map_err(BpfError::Object)?;
        let types = object.btf().map_err(BpfError::Object)?;
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

    /// How long it has run, while [`RunStats`] were kept.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn time(&self) -> Result<RunTime, BpfError> {
        RunTime::of(self.program.as_fd())
    }
}

/// An instruction without operands: 0xb7 is `r0 = 0` (`BPF_ALU64 | BPF_MOV | BPF_K`), 0x95 is `exit`.
fn instruction(code: u8) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm: 0 }
}
