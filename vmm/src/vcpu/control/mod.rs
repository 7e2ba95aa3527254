//! The control: the one place where vCPU threads stop, each for itself or all for one.
//!
//! A vCPU thread looks at the gate before each `KVM_RUN` ([`VcpuControl::wanted`], one load). Mostly nothing is wanted.
//!
//! - When one thread needs the others out of the guest, to replace a page under it, it calls [`VcpuControl::alone`]; the others
//!   are kicked, and wait in [`VcpuControl::park`].
//! - When a policy wants one vCPU not to run, it has it held ([`VcpuHandle::hold`]), until it releases it; that thread waits in
//!   [`VcpuControl::wait_while_descheduled`], and stays at others' disposal. Whoever holds and releases takes no lock, so that no thread that
//!   is off its CPU can be in the way.
//! - When somebody else wants the guest to stand still, [`VcpuControl::pause`] has all of them kicked, and each rests
//!   ([`VcpuControl::begin_pause`], [`VcpuControl::end_pause`]) for as long as it is told to by other ways than the control.
//! - When the run is over, [`VcpuControl::end`] sends all of them home.
//!
//! No lock is held around `KVM_RUN`. Why nobody is overlooked: a thread is inside the guest only between reading
//! "nothing" and returning from `KVM_RUN`. Whoever wants something writes it before kicking, and a kick is never
//! lost (see [`host::kick`]), so that thread comes out and reads again.

mod handoff;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use protocol::VcpuId;

use host::clock;
use host::kick::KickHandle;

pub use handoff::CpuHandoff;

/// What is wanted of a vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuRequest {
    /// Run.
    Run,
    /// Stop while another vCPU thread is exclusive: call [`VcpuControl::wait_exclusive`].
    Stop,
    /// Pause, and run commands.
    Pause,
    /// Stay off the CPU: call [`VcpuControl::wait_while_descheduled`].
    Deschedule,
    /// Finish.
    Finish,
}

const PARK: u8 = 1;
const REST: u8 = 2;
const END: u8 = 4;

/// Proof that no other vCPU thread is in the guest. Only [`VcpuControl::alone`] makes one, and only for the length of a call.
#[derive(Debug)]
pub struct AllParked(());

/// The guest is paused already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The guest is paused already")]
pub struct AlreadyPaused;

/// A vCPU thread's handle at the control: what is wanted of this one alone.
#[derive(Debug)]
pub struct VcpuHandle {
    thread: Thread,
    kick: KickHandle,
    is_descheduled: AtomicBool,
    /// Where it runs, if it runs in a place that is given to one at a time.
    place: Mutex<Option<Arc<CpuHandoff>>>,
    /// When it was last to be held, and released (ns of the monotonic clock).
    requested_ns: AtomicU64,
    released_ns: AtomicU64,
    /// When it was left for good; 0 while it is not.
    left_ns: AtomicU64,
}

impl VcpuHandle {
    /// The calling thread's.
    pub fn of_this_thread() -> Self {
        Self {
            thread: thread::current(),
            kick: KickHandle::of_this_thread(),
            is_descheduled: AtomicBool::new(false),
            place: Mutex::default(),
            requested_ns: AtomicU64::new(0),
            released_ns: AtomicU64::new(0),
            left_ns: AtomicU64::new(0),
        }
    }

    /// Makes its thread leave the guest and wait, until it is released.
    pub fn deschedule(&self) {
        self.requested_ns.store(clock::monotonic_ns(), Ordering::Relaxed);
        self.is_descheduled.store(true, Ordering::Release);
        // One that holds itself is outside the guest.
        if self.kick != KickHandle::of_this_thread() {
            self.kick.kick();
        }
    }

    /// Lets its thread go on.
    pub fn schedule(&self) {
        self.released_ns.store(clock::monotonic_ns(), Ordering::Relaxed);
        self.is_descheduled.store(false, Ordering::Release);
        self.thread.unpark();
    }

    /// Whether its thread is to wait for its release.
    pub fn is_descheduled(&self) -> bool {
        self.is_descheduled.load(Ordering::Acquire)
    }

    /// When its thread left it for good (ns of the monotonic clock), if it has.
    pub fn left_ns(&self) -> Option<u64> {
        Some(self.left_ns.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// Its thread is where it runs no more, and whoever comes next there is released.
    pub fn leave_cpu(&self) {
        let place = self.place().take();
        if let Some(place) = place {
            place.leave(self);
        }
    }

    fn place(&self) -> MutexGuard<'_, Option<Arc<CpuHandoff>>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it was last to be held (ns of the monotonic clock).
    pub fn requested_ns(&self) -> u64 {
        self.requested_ns.load(Ordering::Relaxed)
    }

    /// Its thread.
    pub fn kick_handle(&self) -> KickHandle {
        self.kick
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct VcpuControl {
    wanted: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Threads between `enter` and `leave`.
    members: Vec<Member>,
    /// One of them is alone, or about to be.
    leader: bool,
}

#[derive(Debug)]
struct Member {
    vcpu: VcpuId,
    thread: KickHandle,
    place: Whereabouts,
    handle: Arc<VcpuHandle>,
}

/// Where a vCPU thread is. But for the first place it is not in the guest, and will not be before it has looked at the gate
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    /// In the guest, or about to be, or handling an exit.
    Running,
    /// Waiting here for another one that is alone.
    Stopped,
    /// Held.
    Descheduled,
    /// At rest.
    Paused,
}

impl State {
    /// Whether no member but `except` is running.
    fn none_runs(&self, except: Option<KickHandle>) -> bool {
        self.members
            .iter()
            .all(|member| member.place != Whereabouts::Running || Some(member.thread) == except)
    }

    fn all_rest(&self) -> bool {
        self.members.iter().all(|member| member.place == Whereabouts::Paused)
    }

    /// Notes where the calling thread is, and gives where it was. Who is no member never enters the guest.
    fn go_to(&mut self, place: Whereabouts) -> Whereabouts {
        let me = KickHandle::of_this_thread();
        let member = self.members.iter_mut().find(|member| member.thread == me);
        member.map_or(Whereabouts::Paused, |member| std::mem::replace(&mut member.place, place))
    }

    /// Has those who are held look at the gate again.
    fn wake_held(&self) {
        for member in &self.members {
            member.handle.thread.unpark();
        }
    }

    fn kick_all(&self, except: Option<KickHandle>) {
        for member in self.members.iter().filter(|member| Some(member.thread) != except) {
            member.thread.kick();
        }
    }
}

impl VcpuControl {
    /// A gate that nobody has entered.
    pub fn new() -> Self {
        Self::default()
    }

    /// A gate of a guest that is paused: whoever enters rests first.
    pub fn paused() -> Self {
        Self { wanted: AtomicU8::new(REST), ..Self::default() }
    }

    /// The calling thread becomes a vCPU thread.
    pub fn enter(&self, vcpu: VcpuId) -> Arc<VcpuHandle> {
        let handle = Arc::new(VcpuHandle::of_this_thread());
        let (thread, member) = (handle.kick, Arc::clone(&handle));
        self.lock().members.push(Member { vcpu, thread, place: Whereabouts::Running, handle: member });
        handle
    }

    /// The handles of the vCPU threads that there are.
    pub fn handles(&self) -> Vec<(VcpuId, Arc<VcpuHandle>)> {
        self.lock().members.iter().map(|member| (member.vcpu, Arc::clone(&member.handle))).collect()
    }

    /// The calling thread, the one of `vcpu`, is no vCPU thread any more.
    pub fn leave(&self, vcpu: VcpuId) {
        let mut state = self.lock();
        if let Some(member) = state.members.iter().find(|member| member.vcpu == vcpu) {
            member.handle.left_ns.store(clock::monotonic_ns(), Ordering::Relaxed);
            member.handle.leave_cpu();
        }
        state.members.retain(|member| member.vcpu != vcpu);
        drop(state);
        self.changed.notify_all();
    }

    /// The vCPU threads that there are, for reading their accounts.
    pub fn threads(&self) -> Vec<(VcpuId, KickHandle)> {
        self.lock().members.iter().map(|member| (member.vcpu, member.thread)).collect()
    }

    /// The thread of `vcpu`, while there is one.
    pub fn tid(&self, vcpu: VcpuId) -> Option<libc::pid_t> {
        let state = self.lock();
        state.members.iter().find(|member| member.vcpu == vcpu).map(|member| member.thread.tid())
    }

    /// What is wanted of the calling vCPU thread, whose handle it is.
    pub fn request(&self, handle: &VcpuHandle) -> VcpuRequest {
        match self.wanted.load(Ordering::Acquire) {
            0 if handle.is_descheduled() => VcpuRequest::Deschedule,
            0 => VcpuRequest::Run,
            wanted if wanted & END != 0 => VcpuRequest::Finish,
            wanted if wanted & PARK != 0 => VcpuRequest::Stop,
            _ => VcpuRequest::Pause,
        }
    }

    /// Waits until nobody is alone. The calling vCPU thread is outside the guest.
    pub fn wait_exclusive(&self) {
        drop(self.wait_parked(self.lock()));
    }

    /// Calls `act` while every other vCPU thread waits. The calling vCPU thread is outside the guest.
    ///
    /// One at a time: while another thread is alone, the caller waits as one of the others.
    pub fn stop_all<R>(&self, act: impl FnOnce(&AllParked) -> R) -> R {
        let mut state = self.wait_parked(self.lock());
        state.leader = true;
        self.wanted.fetch_or(PARK, Ordering::Release);
        let me = Some(KickHandle::of_this_thread());
        state.kick_all(me);
        while !state.none_runs(me) {
            state = self.wait(state);
        }
        // The lock stays held: the others could not leave the condition variable if they wanted to.
        let result = act(&AllParked(()));
        state.leader = false;
        self.wanted.fetch_and(!PARK, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Makes every vCPU thread rest, those that enter later too, and waits until all of them are out of the guest. The
    /// caller is no vCPU thread.
    ///
    /// # Errors
    /// [`AlreadyPaused`]; nothing has changed then.
    pub fn pause(&self) -> Result<(), AlreadyPaused> {
        let mut state = self.lock();
        if self.wanted.fetch_or(REST, Ordering::Release) & REST != 0 {
            return Err(AlreadyPaused);
        }
        state.kick_all(None);
        state.wake_held();
        while !state.all_rest() {
            state = self.wait(state);
        }
        Ok(())
    }

    /// Nobody need rest any more. Those who do are to be told by whoever paused them.
    pub fn resume(&self) {
        self.wanted.fetch_and(!REST, Ordering::Release);
    }

    /// The calling vCPU thread is_paused, outside the guest: whoever wants to be alone need not wait for it.
    pub fn begin_pause(&self) {
        self.lock().go_to(Whereabouts::Paused);
        self.changed.notify_all();
    }

    /// The calling vCPU thread has rested. It waits until nobody is alone.
    pub fn end_pause(&self) {
        let mut state = self.wait_parked(self.lock());
        state.go_to(Whereabouts::Running);
    }

    /// Makes the thread of `vcpu` leave the guest and wait, until it is released. Says whether there is such a thread.
    pub fn deschedule(&self, vcpu: VcpuId) -> bool {
        let handle = self.handle(vcpu);
        handle.as_ref().inspect(|handle| handle.deschedule()).is_some()
    }

    /// Lets the thread of `vcpu` go on.
    pub fn schedule(&self, vcpu: VcpuId) {
        if let Some(handle) = self.handle(vcpu) {
            handle.schedule();
        }
    }

    fn handle(&self, vcpu: VcpuId) -> Option<Arc<VcpuHandle>> {
        let state = self.lock();
        state.members.iter().find(|member| member.vcpu == vcpu).map(|member| Arc::clone(&member.handle))
    }

    /// The calling vCPU thread, outside the guest, waits until it is released, or until it is to rest or to go home. Gives
    /// the moment (ns of the monotonic clock) from which on it wanted to run again.
    pub fn wait_while_descheduled(&self, handle: &VcpuHandle) -> u64 {
        self.lock().go_to(Whereabouts::Descheduled);
        self.changed.notify_all();
        handle.leave_cpu();
        // What it waits for is written before it is woken, and one wake-up is remembered: none is lost.
        while handle.is_descheduled() && self.wanted.load(Ordering::Acquire) & (REST | END) == 0 {
            thread::park();
        }
        let released_ns = if handle.is_descheduled() {
            clock::monotonic_ns()
        } else {
            handle.released_ns.load(Ordering::Relaxed)
        };
        let mut state = self.wait_parked(self.lock());
        state.go_to(Whereabouts::Running);
        released_ns
    }

    /// Sends every vCPU thread home, those that enter later too.
    pub fn end(&self) {
        let state = self.lock();
        self.wanted.fetch_or(END, Ordering::Release);
        state.kick_all(None);
        state.wake_held();
    }

    fn wait_parked<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.leader {
            let before = state.go_to(Whereabouts::Stopped);
            if before != Whereabouts::Running {
                state.go_to(before); // one at rest is_paused, for whoever waits for that
            }
            self.changed.notify_all();
            while state.leader {
                state = self.wait(state);
            }
            state.go_to(before);
        }
        state
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
