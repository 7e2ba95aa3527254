//! System calls: `perf_event_open(2)`, and reading an event's counters.
#![expect(unsafe_code, reason = "a system call that takes an address, and the descriptor that it returns")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::pid_t;
use perf_event_open_sys::bindings::{
    PERF_COUNT_SW_CPU_CLOCK, PERF_COUNT_SW_DUMMY, PERF_FORMAT_LOST, PERF_SAMPLE_CPU, PERF_SAMPLE_TIME,
    PERF_TYPE_SOFTWARE, PERF_TYPE_TRACEPOINT, perf_event_attr,
};

use crate::thread::own_tid;

/// Opens an event that counts nothing and records the switches of thread `tid` by the kernel's
/// monotonic clock.
pub(super) fn open_switches(tid: pid_t) -> io::Result<OwnedFd> {
    match open_switches_with(tid, u64::from(PERF_FORMAT_LOST)) {
        // Linux before 6.0 does not count losses
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open_switches_with(tid, 0),
        opened => opened,
    }
}

/// Opens an event that interrupts CPU `cpu` once per `period_ns`, and records nothing.
pub(super) fn open_cpu_clock(cpu: usize, period_ns: u64) -> io::Result<OwnedFd> {
    let mut attributes = perf_event_attr {
        type_: PERF_TYPE_SOFTWARE,
        size: u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX),
        config: u64::from(PERF_COUNT_SW_CPU_CLOCK),
        ..perf_event_attr::default()
    };
    attributes.__bindgen_anon_1.sample_period = period_ns;
    let cpu = libc::c_int::try_from(cpu).map_err(io::Error::other)?;
    open_event(attributes, -1, cpu)
}

/// Opens an event that counts the hits of tracepoint `id` on CPU `cpu`.
pub(super) fn open_tracepoint(id: u64, cpu: usize) -> io::Result<OwnedFd> {
    let attributes = perf_event_attr {
        type_: PERF_TYPE_TRACEPOINT,
        size: u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX),
        config: id,
        ..perf_event_attr::default()
    };
    let cpu = libc::c_int::try_from(cpu).map_err(io::Error::other)?;
    open_event(attributes, -1, cpu)
}

/// Attaches a BPF program to the event's tracepoint, until the event is closed.
pub(super) fn set_program(event: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the ioctl takes two descriptors and accesses no memory of ours. The kernel holds its
    // own reference to the program, so the caller may close it.
    check(unsafe { perf_event_open_sys::ioctls::SET_BPF(event.as_raw_fd(), program) })
}

/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: libc::c_ulong = 8;

fn open_switches_with(tid: pid_t, read_format: u64) -> io::Result<OwnedFd> {
    let mut attributes = perf_event_attr {
        type_: PERF_TYPE_SOFTWARE,
        size: u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX),
        config: u64::from(PERF_COUNT_SW_DUMMY),
        sample_type: u64::from(PERF_SAMPLE_TIME | PERF_SAMPLE_CPU),
        read_format,
        clockid: libc::CLOCK_MONOTONIC,
        ..perf_event_attr::default()
    };
    attributes.set_context_switch(1);
    attributes.set_sample_id_all(1);
    attributes.set_use_clockid(1);
    // Without samples of the kernel, perf_event_paranoid 2 allows the event to unprivileged users
    attributes.set_exclude_kernel(1);
    attributes.set_exclude_hv(1);
    attributes.set_watermark(1);
    attributes.__bindgen_anon_2.wakeup_watermark = 1;
    open_event(attributes, tid, -1)
}

fn open_event(mut attributes: perf_event_attr, tid: pid_t, cpu: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: perf_event_open reads `attributes.size` bytes at `attributes`, which are initialised;
    // it may write the size that it supports there, on E2BIG. The other arguments are numbers.
    let fd =
        unsafe { perf_event_open_sys::perf_event_open(&raw mut attributes, tid, cpu, -1, CLOSE_ON_EXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: perf_event_open has returned a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the kernel send `signal` to the calling thread after each record (fcntl(2),
/// `F_SETOWN_EX`).
pub(super) fn signal_this_thread(event: &OwnedFd, signal: libc::c_int) -> io::Result<()> {
    /// `struct f_owner_ex` (`include/uapi/asm-generic/fcntl.h`).
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        tid: pid_t,
    }
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let fd = event.as_raw_fd();
    let owner = Owner { kind: F_OWNER_TID, tid: own_tid() };
    // SAFETY: F_SETOWN_EX reads a `struct f_owner_ex` at `owner`, which has its layout.
    check(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // SAFETY: F_SETSIG takes a number.
    check(unsafe { libc::fcntl(fd, F_SETSIG, signal) })?;
    // SAFETY: F_SETFL takes flags.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the number of records that the event could not write, or `None` if the kernel does not
/// count them.
pub(super) fn lost(event: &OwnedFd) -> Option<u64> {
    let mut words = [0; 16];
    let mut file = File::from(event.as_fd().try_clone_to_owned().ok()?);
    match file.read(&mut words) {
        Ok(16) => words[8..].first_chunk().copied().map(u64::from_ne_bytes),
        _ => None,
    }
}
