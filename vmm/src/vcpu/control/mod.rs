//! Control of the vCPU threads: stop all but one, pause all, deschedule one, finish all.
//!
//! A vCPU thread calls [`VcpuControl::request`] before each `KVM_RUN`. That costs two loads, and
//! mostly returns [`VcpuRequest::Run`]. The other requests:
//!
//! | request | made by | the thread then calls |
//! |---|---|---|
//! | `Stop` | [`VcpuControl::stop_all`] | [`VcpuControl::wait_exclusive`] |
//! | `Pause` | [`VcpuControl::pause`] | [`VcpuControl::begin_pause`], [`VcpuControl::end_pause`] |
//! | `Deschedule` | [`VcpuHandle::deschedule`] | [`VcpuControl::wait_while_descheduled`] |
//! | `Finish` | [`VcpuControl::finish`] | [`VcpuControl::detach`] |
//!
//! No lock is held around `KVM_RUN`. No thread misses a request: it is inside the guest only
//! between reading `Run` and returning from `KVM_RUN`. The requester writes the request first and
//! kicks afterwards. A kick is never lost (see [`host::kick`]), so the thread leaves the guest and
//! reads again.

mod handle;
mod roster;
mod stop;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use host::kick::KickHandle;
use host::sync;
use protocol::VcpuId;

use roster::{Location, Member, Roster};

pub use handle::{CpuHandoff, VcpuHandle};
pub use stop::own_times;

/// What a vCPU thread must do before it enters the guest again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuRequest {
    /// Enter the guest.
    Run,
    /// Wait while another thread is exclusive.
    Stop,
    /// Pause, and run commands.
    Pause,
    /// Stay off the CPU until it is scheduled.
    Deschedule,
    /// End the thread.
    Finish,
}

/// The guest is paused already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The guest is paused already")]
pub struct AlreadyPaused;

/// Requests to all vCPU threads, as bits of [`VcpuControl::requests`].
const STOP: u8 = 1;
const PAUSE: u8 = 2;
const FINISH: u8 = 4;

/// Controls the vCPU threads of one guest.
#[derive(Debug, Default)]
pub struct VcpuControl {
    /// Requests to all threads: [`STOP`], [`PAUSE`], [`FINISH`].
    requests: AtomicU8,
    roster: Mutex<Roster>,
    /// Signalled when a location or the exclusive thread changes.
    changed: Condvar,
}

impl VcpuControl {
    /// Creates the control of a guest that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates the control of a guest that starts paused: a thread pauses before its first entry.
    pub fn paused() -> Self {
        Self { requests: AtomicU8::new(PAUSE), ..Self::default() }
    }

    /// Attaches the calling thread as the thread of `vcpu`.
    pub fn attach(&self, vcpu: VcpuId) -> Arc<VcpuHandle> {
        let handle = Arc::new(VcpuHandle::of_this_thread());
        let member = Member { vcpu, handle: Arc::clone(&handle), location: Location::Running };
        self.lock().members.push(member);
        handle
    }

    /// Detaches the calling thread, which is the thread of `vcpu`.
    pub fn detach(&self, vcpu: VcpuId) {
        let mut roster = self.lock();
        if let Some(member) = roster.find(vcpu) {
            member.handle.detach();
        }
        roster.members.retain(|member| member.vcpu != vcpu);
        drop(roster);
        self.changed.notify_all();
    }

    /// Returns what the calling vCPU thread, which owns `handle`, must do next.
    pub fn request(&self, handle: &VcpuHandle) -> VcpuRequest {
        match self.requests.load(Ordering::Acquire) {
            0 if handle.is_descheduled() => VcpuRequest::Deschedule,
            0 => VcpuRequest::Run,
            requests if requests & FINISH != 0 => VcpuRequest::Finish,
            requests if requests & STOP != 0 => VcpuRequest::Stop,
            _ => VcpuRequest::Pause,
        }
    }

    /// Makes every vCPU thread finish, also those that attach later.
    pub fn finish(&self) {
        let roster = self.lock();
        self.requests.fetch_or(FINISH, Ordering::Release);
        roster.kick_all(None);
        roster.wake_descheduled();
    }

    /// Deschedules `vcpu` ([`VcpuHandle::deschedule`]). Returns whether its thread is attached.
    pub fn deschedule(&self, vcpu: VcpuId) -> bool {
        self.handle(vcpu).inspect(|handle| handle.deschedule()).is_some()
    }

    /// Schedules `vcpu` ([`VcpuHandle::schedule`]).
    pub fn schedule(&self, vcpu: VcpuId) {
        if let Some(handle) = self.handle(vcpu) {
            handle.schedule();
        }
    }

    /// Returns the handles of the attached threads.
    pub fn handles(&self) -> Vec<(VcpuId, Arc<VcpuHandle>)> {
        self.lock().members.iter().map(|member| (member.vcpu, Arc::clone(&member.handle))).collect()
    }

    /// Returns the attached threads.
    pub fn threads(&self) -> Vec<(VcpuId, KickHandle)> {
        self.lock().members.iter().map(|member| (member.vcpu, member.handle.kick_handle())).collect()
    }

    /// Returns the thread id of `vcpu`; `None` unless its thread is attached.
    pub fn tid(&self, vcpu: VcpuId) -> Option<libc::pid_t> {
        self.lock().find(vcpu).map(|member| member.handle.kick_handle().tid())
    }

    fn handle(&self, vcpu: VcpuId) -> Option<Arc<VcpuHandle>> {
        self.lock().find(vcpu).map(|member| Arc::clone(&member.handle))
    }

    fn wait<'a>(&'a self, roster: MutexGuard<'a, Roster>) -> MutexGuard<'a, Roster> {
        self.changed.wait(roster).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Roster> {
        sync::lock(&self.roster)
    }
}

#[cfg(test)]
mod tests;
