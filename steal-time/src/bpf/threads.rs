//! The map from threads to vCPUs that the program looks up at each switch.
//!
//! The full program keeps the vCPU in the thread's task storage, and a pidfd names the thread to
//! the kernel. The classic program uses a hash by thread ID in the initial PID namespace. A thread
//! in another namespace cannot know that ID; a BPF program that runs on the thread returns it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use protocol::VcpuId;

use super::error::BpfError;
use super::syscall;

/// The map from threads to vCPUs.
#[derive(Debug)]
pub(super) struct ThreadMap {
    map: OwnedFd,
    /// The program that returns a thread's ID, if the map is keyed by it.
    tid: Option<OwnedFd>,
}

/// The key of a thread in the map.
#[derive(Debug)]
pub(super) struct ThreadKey {
    key: libc::c_int,
    /// The descriptor that `key` is the number of.
    _pidfd: Option<OwnedFd>,
}

impl ThreadMap {
    /// Uses `map`, a task storage.
    pub(super) fn by_task(map: OwnedFd) -> Self {
        Self { map, tid: None }
    }

    /// Uses `map`, a hash by thread ID. The program `tid` returns the ID of the thread that runs
    /// it.
    pub(super) fn by_tid(map: OwnedFd, tid: OwnedFd) -> Self {
        Self { map, tid: Some(tid) }
    }

    pub(super) fn is_by_tid(&self) -> bool {
        self.tid.is_some()
    }

    /// Checks that this kernel has pidfds of threads.
    pub(super) fn check_pidfd_support() -> Result<(), BpfError> {
        pidfd_of_this_thread().map(drop)
    }

    /// Adds the calling thread as the thread of `vcpu`.
    pub(super) fn add_this_thread(&self, vcpu: VcpuId) -> Result<ThreadKey, BpfError> {
        let key = match &self.tid {
            None => {
                let pidfd = pidfd_of_this_thread()?;
                ThreadKey { key: pidfd.as_raw_fd(), _pidfd: Some(pidfd) }
            }
            Some(tid) => {
                let tid = syscall::run_once(tid.as_fd())
                    .map_err(BpfError::from_kernel("read a thread's ID by a BPF program"))?;
                ThreadKey { key: tid.cast_signed(), _pidfd: None }
            }
        };
        syscall::add_thread(self.map.as_fd(), key.key, vcpu)
            .map_err(BpfError::from_kernel("attach a vCPU thread to the BPF program"))?;
        Ok(key)
    }

    /// Removes the thread.
    pub(super) fn remove(&self, thread: &ThreadKey) {
        // It fails only if the thread has ended, and then the kernel has removed it
        let _ = syscall::remove_thread(self.map.as_fd(), thread.key);
    }
}

fn pidfd_of_this_thread() -> Result<OwnedFd, BpfError> {
    syscall::open_this_thread().map_err(BpfError::no_thread_pidfd)
}
