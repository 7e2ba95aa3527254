//! System calls: bpf(2), `pidfd_open(2)`.
//!
//! Each `Attr` is the part of `union bpf_attr` (`include/uapi/linux/bpf.h`) that one command reads,
//! up to the last field that is set. The kernel treats fields beyond the given size as zero.
#![expect(unsafe_code, reason = "system calls that take addresses")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_insn, bpf_map_type, bpf_prog_info, bpf_prog_type};
use protocol::VcpuId;

use host::thread::own_tid;

/// The name of a kernel object: at most 15 bytes and a NUL.
type Name = [u8; 16];

fn name(name: &str) -> Name {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// Calls bpf(2).
///
/// # Safety
/// `A` must be the attributes that `command` reads. Each address in it must be valid, for the
/// length given with it and for the access that `command` makes, until the call returns.
unsafe fn bpf<A>(command: bpf_cmd, attr: &A) -> io::Result<RawFd> {
    // SAFETY: the kernel reads `size_of::<A>()` bytes at `attr`. The caller guarantees the
    // addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    returned(result)
}

/// Converts the result of a call that returns a descriptor or a number.
fn returned(result: libc::c_long) -> io::Result<RawFd> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        RawFd::try_from(result).map_err(io::Error::other)
    }
}

/// Takes ownership of a descriptor that a system call has just created.
///
/// # Safety
/// `fd` is open, and nothing else owns it.
unsafe fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller guarantees that `fd` is open and unowned.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<u8>().expose_provenance() as u64
}

/// Converts a size. One that does not fit becomes the largest, which the kernel refuses.
fn size(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Loads the BTF that maps and programs refer to.
pub(super) fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        btf: u64,
        log: u64,
        btf_size: u32,
        // Ends the structure: without it the padding would be read as `log_size`
        log_size: u32,
    }
    let attr = Attr { btf: address(btf), log: 0, btf_size: size(btf.len()), log_size: 0 };
    // SAFETY: BPF_BTF_LOAD reads `btf_size` bytes at `btf`, and writes no log as `log` is 0.
    let fd = unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &attr) }?;
    // SAFETY: BPF_BTF_LOAD returns a new descriptor.
    Ok(unsafe { owned(fd) })
}

/// The parameters of a map.
pub(super) struct NewMap<'a> {
    pub(super) name: &'a str,
    pub(super) kind: bpf_map_type,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
    pub(super) btf: BorrowedFd<'a>,
    pub(super) key_type: u32,
    pub(super) value_type: u32,
}

/// Creates a map.
pub(super) fn create_map(map: &NewMap<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner_map: u32,
        numa_node: u32,
        name: Name,
        ifindex: u32,
        btf: RawFd,
        key_type: u32,
        value_type: u32,
    }
    let attr = Attr {
        kind: map.kind as u32,
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        flags: map.flags,
        inner_map: 0,
        numa_node: 0,
        name: name(map.name),
        ifindex: 0,
        btf: map.btf.as_raw_fd(),
        key_type: map.key_type,
        value_type: map.value_type,
    };
    // SAFETY: BPF_MAP_CREATE reads only `attr`, which holds no address.
    let fd = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &attr) }?;
    // SAFETY: BPF_MAP_CREATE returns a new descriptor.
    Ok(unsafe { owned(fd) })
}

/// The kind of hook that a program is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// The tracepoint of this BTF ID, with typed arguments (`BPF_TRACE_RAW_TP`).
    Typed(u32),
    /// Any tracepoint, with arguments as numbers (`BPF_PROG_TYPE_RAW_TRACEPOINT`).
    Raw,
    /// A tracepoint's record, as its format in tracefs describes it (`BPF_PROG_TYPE_TRACEPOINT`).
    Record,
}

/// The parameters of a program.
pub(super) struct NewProgram<'a> {
    pub(super) name: &'a str,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) license: &'a CStr,
    pub(super) hook: Hook,
    pub(super) btf: BorrowedFd<'a>,
    /// Function names, for the verifier's messages.
    pub(super) functions: Info,
    /// Source lines, for the verifier's messages.
    pub(super) lines: Info,
}

/// Records of the object's section `.BTF.ext`.
pub(super) struct Info {
    pub(super) records: Vec<u8>,
    pub(super) record_size: usize,
}

impl Info {
    /// No records: a function without name and lines.
    pub(super) const NONE: Self = Self { records: Vec::new(), record_size: 0 };

    fn size_and_count(&self) -> (u32, u32) {
        let count = self.records.len().checked_div(self.record_size);
        (size(self.record_size), size(count.unwrap_or(0)))
    }
}

/// Loads a program: the kernel verifies and compiles it. The verifier writes a NUL-terminated log
/// to `log`, unless it is empty.
pub(super) fn load_program(program: &NewProgram<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: Name,
        ifindex: u32,
        attach_type: u32,
        btf: RawFd,
        function_record_size: u32,
        functions: u64,
        function_count: u32,
        line_record_size: u32,
        lines: u64,
        line_count: u32,
        attach_btf_id: u32,
    }
    let typed = bpf_attach_type::BPF_TRACE_RAW_TP as u32;
    let (kind, attach_type, attach_btf_id) = match program.hook {
        Hook::Typed(tracepoint) => (bpf_prog_type::BPF_PROG_TYPE_TRACING, typed, tracepoint),
        Hook::Raw => (bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0),
        Hook::Record => (bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT, 0, 0),
    };
    let (function_record_size, function_count) = program.functions.size_and_count();
    let (line_record_size, line_count) = program.lines.size_and_count();
    let attr = Attr {
        kind: kind as u32,
        instruction_count: size(program.instructions.len()),
        instructions: address(program.instructions),
        license: address(program.license),
        log_level: u32::from(!log.is_empty()),
        log_size: size(log.len()),
        log: if log.is_empty() { 0 } else { address(&raw mut *log) },
        kernel_version: 0,
        flags: 0,
        name: name(program.name),
        ifindex: 0,
        attach_type,
        btf: program.btf.as_raw_fd(),
        function_record_size,
        functions: address(&raw const *program.functions.records),
        function_count,
        line_record_size,
        lines: address(&raw const *program.lines.records),
        line_count,
        attach_btf_id,
    };
    // SAFETY: BPF_PROG_LOAD reads the instructions, the license up to its NUL, and both kinds of
    // records, each for its size and count. It writes at most `log_size` bytes to `log`, which is
    // borrowed mutably.
    let fd = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &attr) }?;
    // SAFETY: BPF_PROG_LOAD returns a new descriptor.
    Ok(unsafe { owned(fd) })
}

/// Attaches a program until the returned link is closed: to the tracepoint `name`, or without a
/// name to the one that the program was loaded for.
pub(super) fn attach_to_tracepoint(program: BorrowedFd<'_>, name: Option<&CStr>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        name: u64,
        program: RawFd,
        padding: u32,
    }
    let name = name.map_or(0, |name| address(name.as_ptr()));
    let attr = Attr { name, program: program.as_raw_fd(), padding: 0 };
    // SAFETY: BPF_RAW_TRACEPOINT_OPEN reads `attr` and, if its address is not 0, the name up to its
    // NUL.
    let fd = unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &attr) }?;
    // SAFETY: BPF_RAW_TRACEPOINT_OPEN returns a new descriptor.
    Ok(unsafe { owned(fd) })
}

/// Enables run statistics of all BPF programs until the descriptor is closed.
pub(super) fn enable_run_stats() -> io::Result<OwnedFd> {
    /// `BPF_STATS_RUN_TIME`
    const RUN_TIME: u32 = 0;
    // SAFETY: BPF_ENABLE_STATS reads only `attr`, a number.
    let fd = unsafe { bpf(bpf_cmd::BPF_ENABLE_STATS, &RUN_TIME) }?;
    // SAFETY: BPF_ENABLE_STATS returns a new descriptor.
    Ok(unsafe { owned(fd) })
}

/// Returns the accumulated run time of a program (ns) and its number of runs, while statistics were
/// enabled.
pub(super) fn run_stats(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    #[repr(C)]
    struct Attr {
        program: RawFd,
        info_size: u32,
        info: u64,
    }
    const RUN_TIME_NS: usize = std::mem::offset_of!(bpf_prog_info, run_time_ns) / 8;
    const WORDS: usize = RUN_TIME_NS + 2;
    let mut info = [0_u64; WORDS];
    let attr = Attr {
        program: program.as_raw_fd(),
        info_size: size(size_of_val(&info)),
        info: address(&raw mut info),
    };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD writes at most `info_size` bytes at `info`. It also reads
    // addresses there, for instructions and the like; they are 0, so it writes nothing else.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    Ok((info[RUN_TIME_NS], info[RUN_TIME_NS + 1]))
}

/// The attributes of the commands on map elements.
#[repr(C)]
struct Element {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Adds a thread to a map from threads to vCPUs. It fails if the thread is in the map.
pub(super) fn add_thread(map: BorrowedFd<'_>, key: libc::c_int, vcpu: VcpuId) -> io::Result<()> {
    const BPF_NOEXIST: u64 = 1;
    let value = size(vcpu.index());
    let attr = Element {
        map: map.as_raw_fd(),
        padding: 0,
        key: address(&raw const key),
        value: address(&raw const value),
        flags: BPF_NOEXIST,
    };
    // SAFETY: BPF_MAP_UPDATE_ELEM reads a key and a value. In both maps of threads each is 32 bits
    // long: a descriptor or a thread ID, and the index of the vCPU.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &attr) }.map(drop)
}

/// Removes a thread from a map from threads to vCPUs.
pub(super) fn remove_thread(map: BorrowedFd<'_>, key: libc::c_int) -> io::Result<()> {
    let attr = Element { map: map.as_raw_fd(), padding: 0, key: address(&raw const key), value: 0, flags: 0 };
    // SAFETY: BPF_MAP_DELETE_ELEM reads a key. In both maps of threads it is 32 bits long, a
    // descriptor or a thread ID.
    unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &attr) }.map(drop)
}

/// Runs a raw tracepoint program once on the calling thread, without arguments. Returns the
/// program's result.
pub(super) fn run_once(program: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        program: RawFd,
        /// Written by the kernel, hence an atomic behind a shared reference.
        returned: AtomicU32,
        data_sizes: [u32; 2],
        data: [u64; 2],
        repeat_and_duration: [u32; 2],
        context_sizes: [u32; 2],
        context: [u64; 2],
        flags_and_cpu: [u32; 2],
    }
    let attr = Attr {
        program: program.as_raw_fd(),
        returned: AtomicU32::new(0),
        data_sizes: [0; 2],
        data: [0; 2],
        repeat_and_duration: [0; 2],
        context_sizes: [0; 2],
        context: [0; 2],
        flags_and_cpu: [0; 2],
    };
    // SAFETY: all addresses in `attr` are 0. For a raw tracepoint program BPF_PROG_TEST_RUN writes
    // `returned` and nothing else; it is atomic, so the kernel may write it behind the shared
    // reference.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &attr) }?;
    Ok(attr.returned.into_inner())
}

/// Opens a pidfd of the calling thread. `EINVAL` before Linux 6.9.
pub(super) fn open_this_thread() -> io::Result<OwnedFd> {
    /// `include/uapi/linux/pidfd.h`
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    // SAFETY: pidfd_open takes two numbers and accesses no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, own_tid(), PIDFD_THREAD) };
    let fd = returned(result)?;
    // SAFETY: pidfd_open returns a new descriptor.
    Ok(unsafe { owned(fd) })
}
