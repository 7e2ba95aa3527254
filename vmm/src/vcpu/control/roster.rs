//! The attached vCPU threads and where each of them is.

use std::sync::Arc;

use host::kick::KickHandle;
use protocol::VcpuId;

use super::handle::VcpuHandle;

/// The attached vCPU threads. [`VcpuControl`](super::VcpuControl) guards it with its lock.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub(super) members: Vec<Member>,
    /// A thread is exclusive, or waits until the others are outside the guest.
    pub(super) has_exclusive: bool,
}

/// One attached vCPU thread.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) vcpu: VcpuId,
    pub(super) handle: Arc<VcpuHandle>,
    pub(super) location: Location,
}

/// Where a vCPU thread is. Unless it is `Running`, it reads its requests again before it enters the
/// guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// In the guest, about to enter it, or handling an exit.
    Running,
    /// Waiting for the exclusive thread.
    Stopped,
    /// Waiting to be scheduled.
    Descheduled,
    /// Waiting for the guest to resume, and running commands.
    Paused,
}

impl Roster {
    pub(super) fn find(&self, vcpu: VcpuId) -> Option<&Member> {
        self.members.iter().find(|member| member.vcpu == vcpu)
    }

    /// Returns whether no member but `except` may be inside the guest.
    pub(super) fn none_runs(&self, except: Option<KickHandle>) -> bool {
        self.except(except).all(|member| member.location != Location::Running)
    }

    pub(super) fn all_paused(&self) -> bool {
        self.members.iter().all(|member| member.location == Location::Paused)
    }

    /// Records the location of the calling thread and returns the previous one. A thread that is
    /// not attached never enters the guest, so it counts as paused.
    pub(super) fn relocate(&mut self, location: Location) -> Location {
        let caller = KickHandle::of_this_thread();
        let member = self.members.iter_mut().find(|member| member.handle.kick_handle() == caller);
        member.map_or(Location::Paused, |member| std::mem::replace(&mut member.location, location))
    }

    /// Makes every member but `except` leave the guest.
    pub(super) fn kick_all(&self, except: Option<KickHandle>) {
        for member in self.except(except) {
            member.handle.kick_handle().kick();
        }
    }

    /// Makes descheduled members read their requests again.
    pub(super) fn wake_descheduled(&self) {
        for member in &self.members {
            member.handle.unpark();
        }
    }

    fn except(&self, except: Option<KickHandle>) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| Some(member.handle.kick_handle()) != except)
    }
}
