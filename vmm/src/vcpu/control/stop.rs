//! How vCPU threads wait outside the guest: stopped, paused or descheduled.

#![expect(unsafe_code, reason = "creates the proof that all vCPUs are stopped")]

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::thread;

use host::clock;
use host::kick::KickHandle;
use steal_time::host_vm::AllStopped;

use super::roster::{Location, Roster};
use super::{AlreadyPaused, FINISH, PAUSE, STOP, VcpuControl, VcpuHandle};

impl VcpuControl {
    /// Stops every other vCPU thread, calls `act`, and lets the threads go on.
    ///
    /// The caller is a vCPU thread outside the guest, or no vCPU thread at all. One thread is
    /// exclusive at a time: while another one is, the caller waits as one of the stopped threads.
    pub fn stop_all<R>(&self, act: impl FnOnce(&AllStopped) -> R) -> R {
        let mut roster = self.wait_until_none_exclusive(self.lock());
        roster.has_exclusive = true;
        self.requests.fetch_or(STOP, Ordering::Release);
        let caller = Some(KickHandle::of_this_thread());
        roster.kick_all(caller);
        while !roster.none_runs(caller) {
            roster = self.wait(roster);
        }
        // SAFETY: no other attached thread is `Running`, so each is outside `KVM_RUN`. To become
        // `Running` again, or to attach, a thread needs the roster's lock. This function holds it
        // until `act` has returned, and the proof ends with that call.
        let result = act(&unsafe { AllStopped::new() });
        roster.has_exclusive = false;
        self.requests.fetch_and(!STOP, Ordering::Release);
        drop(roster);
        self.changed.notify_all();
        result
    }

    /// Waits while another thread is exclusive. The caller is a vCPU thread outside the guest.
    pub fn wait_exclusive(&self) {
        drop(self.wait_until_none_exclusive(self.lock()));
    }

    /// Makes every vCPU thread pause, also those that attach later, and waits until all of them
    /// have. The caller is no vCPU thread.
    ///
    /// # Errors
    /// [`AlreadyPaused`]; nothing has changed then.
    pub fn pause(&self) -> Result<(), AlreadyPaused> {
        let mut roster = self.lock();
        if self.requests.fetch_or(PAUSE, Ordering::Release) & PAUSE != 0 {
            return Err(AlreadyPaused);
        }
        roster.kick_all(None);
        roster.wake_descheduled();
        while !roster.all_paused() {
            roster = self.wait(roster);
        }
        Ok(())
    }

    /// Withdraws the request to pause. The caller then wakes the threads, which wait for commands.
    pub fn resume(&self) {
        self.requests.fetch_and(!PAUSE, Ordering::Release);
    }

    /// Records that the calling vCPU thread is paused, outside the guest.
    pub fn begin_pause(&self) {
        self.lock().relocate(Location::Paused);
        self.changed.notify_all();
    }

    /// Records that the calling vCPU thread runs again, after the exclusive thread is done.
    pub fn end_pause(&self) {
        self.wait_until_none_exclusive(self.lock()).relocate(Location::Running);
    }

    /// Waits until `handle` is scheduled, or its thread must pause or finish.
    ///
    /// The caller is the thread of `handle`, outside the guest. Returns the end of the time for
    /// which it was descheduled (ns of `CLOCK_MONOTONIC`).
    pub fn wait_while_descheduled(&self, handle: &VcpuHandle) -> u64 {
        self.lock().relocate(Location::Descheduled);
        self.changed.notify_all();
        handle.leave_cpu();
        // The requester writes first and unparks afterwards, and an early unpark is remembered.
        while handle.is_descheduled() && self.requests.load(Ordering::Acquire) & (PAUSE | FINISH) == 0 {
            thread::park();
        }
        let until_ns = if handle.is_descheduled() { clock::monotonic_ns() } else { handle.scheduled_ns() };
        self.wait_until_none_exclusive(self.lock()).relocate(Location::Running);
        until_ns
    }

    /// Waits until no thread is exclusive. Returns with the roster locked.
    fn wait_until_none_exclusive<'a>(&'a self, mut roster: MutexGuard<'a, Roster>) -> MutexGuard<'a, Roster> {
        if roster.has_exclusive {
            let before = roster.relocate(Location::Stopped);
            if before != Location::Running {
                // `pause` waits for locations to become `Paused`, so they keep their value.
                roster.relocate(before);
            }
            self.changed.notify_all();
            while roster.has_exclusive {
                roster = self.wait(roster);
            }
            roster.relocate(before);
        }
        roster
    }
}
