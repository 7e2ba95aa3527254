//! Which thread is which vCPU, as the program is told.
//!
//! The kernel knows a thread by its `task_struct`, so best the vCPU hangs there (task storage), and a descriptor names the
//! thread to us. The classic program knows a thread by its id alone, as the first pid namespace counts. A thread in another
//! namespace does not know that id; but a program that runs on it does.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use protocol::VcpuId;

use super::{BpfError, syscall};

/// All threads that the program knows.
#[derive(Debug)]
pub(super) struct Threads {
    map: OwnedFd,
    /// The program that gives a thread's id, where the map is by id.
    who: Option<OwnedFd>,
}

/// What names a thread in the map.
#[derive(Debug)]
pub(super) struct ThreadKey {
    key: libc::c_int,
    /// The descriptor that is the key.
    _pidfd: Option<OwnedFd>,
}

impl Threads {
    /// In task storage.
    pub(super) fn by_task(map: OwnedFd) -> Self {
        Self { map, who: None }
    }

    /// In a hash by thread id, which `who` gives.
    pub(super) fn by_id(map: OwnedFd, who: OwnedFd) -> Self {
        Self { map, who: Some(who) }
    }

    pub(super) fn are_by_id(&self) -> bool {
        self.who.is_some()
    }

    /// Whether this kernel has a descriptor that names a thread.
    pub(super) fn can_be_named() -> Result<(), BpfError> {
        pidfd_of_this_thread().map(drop)
    }

    /// Makes the calling thread the thread of `vcpu`.
    pub(super) fn add_this_thread(&self, vcpu: VcpuId) -> Result<ThreadKey, BpfError> {
        let key = match &self.who {
            None => {
                let pidfd = pidfd_of_this_thread()?;
                ThreadKey { key: pidfd.as_raw_fd(), _pidfd: Some(pidfd) }
            }
            Some(who) => {
                let id = syscall::run_once(who.as_fd())
                    .map_err(BpfError::from_kernel("ask a BPF program for a thread's id"))?;
                ThreadKey { key: id.cast_signed(), _pidfd: None }
            }
        };
        syscall::add_thread(self.map.as_fd(), key.key, vcpu)
            .map_err(BpfError::from_kernel("tell the BPF program a vCPU's thread"))?;
        Ok(key)
    }

    /// Makes the thread a stranger again.
    pub(super) fn remove(&self, thread: &ThreadKey) {
        // It fails only for a thread that is gone, and the kernel has forgotten that one already
        let _ = syscall::remove_thread(self.map.as_fd(), thread.key);
    }
}

fn pidfd_of_this_thread() -> Result<OwnedFd, BpfError> {
    syscall::open_this_thread().map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => BpfError::NoThreadPidfd(source),
        _ => BpfError::Kernel { what: "name a vCPU's thread", source },
    })
}
