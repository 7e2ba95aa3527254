//! How vCPU threads wait outside the guest: stopped, paused or descheduled.

#![expect(unsafe_code, reason = "creates the proof that all vCPUs are stopped")]

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use host::clock;
use host::kick::KickHandle;
use host::thread_times::{RunningTime, ThreadTimes};
use steal_time::host_vm::AllStopped;

use super::roster::{Location, Roster};
use super::{AlreadyPaused, FINISH, PAUSE, STOP, VcpuControl, VcpuHandle};

/// The first wait of a descheduled thread. Most are scheduled within it.
const FIRST_WAIT: Duration = Duration::from_millis(10);

/// The longest wait of a descheduled thread. Of a stop of the process, up to twice as much may
/// count as a wait.
const LONGEST_WAIT: Duration = Duration::from_millis(160);

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

    /// Waits until `handle` is scheduled, or its thread must pause or finish. Returns where the
    /// time since `begin`, the caller's [`own_times`], went.
    ///
    /// The caller is the thread of `handle`, outside the guest. While it waits it wakes up now and
    /// then, after ever longer times, to tell a wait from a stop of the process.
    pub fn wait_while_descheduled(&self, handle: &VcpuHandle, begin: ThreadTimes) -> RunningTime {
        self.lock().relocate(Location::Descheduled);
        self.changed.notify_all();
        handle.leave_cpu();
        // The requester writes first and unparks afterwards, and an early unpark is remembered.
        let must_wait =
            || handle.is_descheduled() && self.requests.load(Ordering::Acquire) & (PAUSE | FINISH) == 0;
        let (mut time, mut limit) = (RunningTime::since(begin), FIRST_WAIT);
        while must_wait() {
            thread::park_timeout(limit);
            if must_wait() {
                time.add_wait(own_times(), limit);
                limit = (2 * limit).min(LONGEST_WAIT);
            }
        }
        time.add_wait(own_times(), limit);
        self.wait_until_none_exclusive(self.lock()).relocate(Location::Running);
        time
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

/// Returns the times of the calling thread.
///
/// Without `/proc`, run delay cannot be told from sleep. Then no publisher publishes either.
pub fn own_times() -> ThreadTimes {
    ThreadTimes::of_this_thread()
        .unwrap_or_else(|_| ThreadTimes { at_ns: clock::monotonic_ns(), ..ThreadTimes::default() })
}
