//! Exits: why `KVM_RUN` returned, parsed once.
//!
//! No other file reads `kvm_run`. An [`Exit`] that the monitor cannot handle carries a
//! [`CrashReason`].

#![expect(unsafe_code, reason = "the members of kvm_run's union")]

use std::fmt;
use std::slice;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Why a vCPU left the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a port. The handler fills in the data.
    PortIn(PortData<'a>),
    /// The guest writes a port.
    PortOut(PortData<'a>),
    /// The guest reads an address without memory. The handler fills in the data.
    MmioRead(&'a mut [u8]),
    /// The guest writes an address without memory.
    MmioWrite,
    /// The guest reads an MSR that the filter denies. The handler fills in the value.
    MsrRead(MsrData<'a>),
    /// The guest writes an MSR that the filter denies.
    MsrWrite(MsrData<'a>),
    /// A kick, or a return from waiting for SIPI. There is nothing to emulate.
    Interrupted,
    /// The guest cannot go on.
    Crashed(CrashReason),
}

impl Exit<'_> {
    /// Returns whether KVM completes the guest's instruction only at the next entry.
    pub fn needs_completion(&self) -> bool {
        !matches!(self, Self::Interrupted | Self::Crashed(_))
    }
}

/// A port access of one unit, or of several for a string instruction.
#[derive(Debug)]
pub struct PortData<'a> {
    /// The port, the same for every unit.
    pub port: u16,
    /// Size of a unit: 1, 2 or 4 bytes.
    pub width: usize,
    /// The units, in the order of access.
    pub data: &'a mut [u8],
}

/// An access to an MSR.
#[derive(Debug)]
pub struct MsrData<'a> {
    /// Number of the MSR.
    pub index: u32,
    /// The value written, or to be read.
    pub value: &'a mut u64,
    /// The handler sets it to 1 to raise #GP.
    pub error: &'a mut u8,
}

/// Why a guest cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CrashReason {
    /// A fault during the delivery of a double fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// KVM cannot go on (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`; 1 is an instruction that KVM cannot emulate.
        suberror: u32,
        /// The bytes of the instruction, for suberror 1.
        instruction: Vec<u8>,
    },
    /// The processor refused the guest's state (`KVM_EXIT_FAIL_ENTRY`).
    FailedEntry {
        /// The hardware's reason.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// An exit that this machine has no use for, by its `KVM_EXIT_*` name or number.
    Unexpected(String),
}

impl fmt::Display for CrashReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => f.write_str("triple fault"),
            Self::InternalError { suberror: 1, instruction } if !instruction.is_empty() => {
                write!(f, "KVM cannot emulate the instruction {instruction:02x?}")
            }
            Self::InternalError { suberror, .. } => write!(f, "KVM internal error {suberror}"),
            Self::FailedEntry { reason, cpu } => {
                write!(f, "entry failed on CPU {cpu} for reason {reason:#x}")
            }
            Self::Unexpected(exit) => write!(f, "unexpected exit {exit}"),
        }
    }
}

/// Enters the guest and returns why it left.
///
/// # Errors
/// KVM's error, unless it reports a kick or a return from waiting for SIPI.
pub fn run(vcpu: &mut VcpuFd) -> Result<Exit<'_>, kvm_ioctls::Error> {
    // The kind borrows `vcpu` only in this line. The data comes straight from `kvm_run`.
    let kind = Kind::of(vcpu.run())?;
    let run = vcpu.get_kvm_run();
    Ok(match kind {
        Kind::PortIn => Exit::PortIn(port_data(run)),
        Kind::PortOut => Exit::PortOut(port_data(run)),
        Kind::MmioRead => Exit::MmioRead(mmio_data(run)),
        Kind::MmioWrite => Exit::MmioWrite,
        Kind::MsrRead => Exit::MsrRead(msr_data(run)),
        Kind::MsrWrite => Exit::MsrWrite(msr_data(run)),
        Kind::InternalError => Exit::Crashed(internal_error(run)),
        Kind::Interrupted => Exit::Interrupted,
        Kind::Crashed(reason) => Exit::Crashed(reason),
    })
}

/// An exit without its data.
enum Kind {
    PortIn,
    PortOut,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    InternalError,
    Interrupted,
    Crashed(CrashReason),
}

impl Kind {
    fn of(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Result<Self, kvm_ioctls::Error> {
        Ok(match exit {
            Ok(VcpuExit::IoIn(..)) => Self::PortIn,
            Ok(VcpuExit::IoOut(..)) => Self::PortOut,
            Ok(VcpuExit::MmioRead(..)) => Self::MmioRead,
            Ok(VcpuExit::MmioWrite(..)) => Self::MmioWrite,
            Ok(VcpuExit::X86Rdmsr(_)) => Self::MsrRead,
            Ok(VcpuExit::X86Wrmsr(_)) => Self::MsrWrite,
            Ok(VcpuExit::InternalError) => Self::InternalError,
            Ok(VcpuExit::Intr) => Self::Interrupted,
            Ok(VcpuExit::Shutdown) => Self::Crashed(CrashReason::TripleFault),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Self::Crashed(CrashReason::FailedEntry { reason, cpu }),
            Ok(exit) => Self::Crashed(CrashReason::Unexpected(format!("{exit:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Self::Interrupted,
                _ => return Err(error),
            },
        })
    }
}

fn port_data(run: &mut kvm_run) -> PortData<'_> {
    // SAFETY: the exit reason was KVM_EXIT_IO, so `io` is the member that the kernel wrote.
    let io = unsafe { run.__bindgen_anon_1.io };
    let width = usize::from(io.size.max(1));
    let len = width.saturating_mul(usize::try_from(io.count).unwrap_or(0));
    let offset = usize::try_from(io.data_offset).unwrap_or(0);
    // SAFETY: the kernel places the data at `data_offset` in the mapping that begins with `run`.
    let data = unsafe { std::ptr::from_mut(run).cast::<u8>().add(offset) };
    // SAFETY: the kernel has stored `size * count` bytes there, inside the mapping, which lives as
    // long as the vCPU that `run` is borrowed from. The bytes lie behind `struct kvm_run`, and
    // `run` is borrowed exclusively, so no other reference to them exists.
    let data = unsafe { slice::from_raw_parts_mut(data, len) };
    PortData { port: io.port, width, data }
}

fn mmio_data(run: &mut kvm_run) -> &mut [u8] {
    // SAFETY: the exit reason was KVM_EXIT_MMIO, so `mmio` is the member that the kernel wrote.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let len = usize::try_from(mmio.len).unwrap_or(0).min(mmio.data.len());
    &mut mmio.data[..len]
}

fn msr_data(run: &mut kvm_run) -> MsrData<'_> {
    // SAFETY: the exit reason was KVM_EXIT_X86_RDMSR or _WRMSR, so `msr` is the member that the
    // kernel wrote.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    MsrData { index: msr.index, value: &mut msr.data, error: &mut msr.error }
}

fn internal_error(run: &mut kvm_run) -> CrashReason {
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so `internal` is the member that the
    // kernel wrote; its words are plain integers.
    let error = unsafe { run.__bindgen_anon_1.internal };
    // For suberror 1 the data holds flags, then a length byte and the instruction (`struct
    // emulation_failure` in `linux/kvm.h`).
    let bytes: Vec<u8> = error.data.iter().skip(1).take(2).flat_map(|word| word.to_le_bytes()).collect();
    let instruction = match (error.ndata, bytes.split_first()) {
        (3.., Some((len, rest))) => rest.iter().take(usize::from(*len)).copied().collect(),
        _ => Vec::new(),
    };
    CrashReason::InternalError { suberror: error.suberror, instruction }
}
