//! The gate: the one place where vCPU threads stop, each for itself or all for one.
//!
//! A vCPU thread looks at the gate before each `KVM_RUN` ([`Gate::wanted`], one load). Mostly nothing is wanted.
//!
//! - When one thread needs the others out of the guest, to replace a page under it, it calls [`Gate::alone`]; the others
//!   are kicked, and wait in [`Gate::park`].
//! - When somebody else wants the guest to stand still, [`Gate::pause`] has all of them kicked, and each rests
//!   ([`Gate::begin_rest`], [`Gate::end_rest`]) for as long as it is told to by other ways than the gate.
//! - When the run is over, [`Gate::end`] sends all of them home.
//!
//! No lock is held around `KVM_RUN`. Why nobody is overlooked: a thread is inside the guest only between reading
//! "nothing" and returning from `KVM_RUN`. Whoever wants something writes it before kicking, and a kick is never
//! lost (see [`crate::kick`]), so that thread comes out and reads again.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use protocol::VcpuId;

use crate::kick::KickHandle;

/// What is wanted of a vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To run.
    Nothing,
    /// To call [`Gate::park`].
    Park,
    /// To rest.
    Rest,
    /// To finish.
    End,
}

const PARK: u8 = 1;
const REST: u8 = 2;
const END: u8 = 4;

/// Proof that no other vCPU thread is in the guest. Only [`Gate::alone`] makes one, and only for the length of a call.
#[derive(Debug)]
pub struct AllParked(());

/// The guest is paused already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The guest is paused already")]
pub struct AlreadyPaused;

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
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
    /// It waits here, or rests: it is not in the guest, and will not be before it has looked at the gate again.
    is_parked: bool,
}

impl State {
    /// Whether all members but `except` are parked.
    fn all_parked(&self, except: Option<KickHandle>) -> bool {
        self.members.iter().all(|member| member.is_parked || Some(member.thread) == except)
    }

    /// Marks the calling thread as parked or not, and says what it was. Who is no member never enters the guest.
    fn set_parked(&mut self, is_parked: bool) -> bool {
        let me = KickHandle::of_this_thread();
        let member = self.members.iter_mut().find(|member| member.thread == me);
        member.is_none_or(|member| std::mem::replace(&mut member.is_parked, is_parked))
    }

    fn kick_all(&self, except: Option<KickHandle>) {
        for member in self.members.iter().filter(|member| Some(member.thread) != except) {
            member.thread.kick();
        }
    }
}

impl Gate {
    /// A gate that nobody has entered.
    pub fn new() -> Self {
        Self::default()
    }

    /// A gate of a guest that is paused: whoever enters rests first.
    pub fn paused() -> Self {
        Self { wanted: AtomicU8::new(REST), ..Self::default() }
    }

    /// The calling thread becomes a vCPU thread.
    pub fn enter(&self, vcpu: VcpuId) {
        let thread = KickHandle::of_this_thread();
        self.lock().members.push(Member { vcpu, thread, is_parked: false });
    }

    /// The calling thread, the one of `vcpu`, is no vCPU thread any more.
    pub fn leave(&self, vcpu: VcpuId) {
        self.lock().members.retain(|member| member.vcpu != vcpu);
        self.changed.notify_all();
    }

    /// The vCPU threads that there are, for reading their accounts.
    pub fn threads(&self) -> Vec<(VcpuId, KickHandle)> {
        self.lock().members.iter().map(|member| (member.vcpu, member.thread)).collect()
    }

    /// What is wanted of the calling vCPU thread.
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            0 => Wanted::Nothing,
            wanted if wanted & END != 0 => Wanted::End,
            wanted if wanted & PARK != 0 => Wanted::Park,
            _ => Wanted::Rest,
        }
    }

    /// Waits until nobody is alone. The calling vCPU thread is outside the guest.
    pub fn park(&self) {
        drop(self.wait_parked(self.lock()));
    }

    /// Calls `act` while every other vCPU thread waits. The calling vCPU thread is outside the guest.
    ///
    /// One at a time: while another thread is alone, the caller waits as one of the others.
    pub fn alone<R>(&self, act: impl FnOnce(&AllParked) -> R) -> R {
        let mut state = self.wait_parked(self.lock());
        state.leader = true;
        self.wanted.fetch_or(PARK, Ordering::Release);
        let me = Some(KickHandle::of_this_thread());
        state.kick_all(me);
        while !state.all_parked(me) {
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
        while !state.all_parked(None) {
            state = self.wait(state);
        }
        Ok(())
    }

    /// Nobody need rest any more. Those who do are to be told by whoever paused them.
    pub fn resume(&self) {
        self.wanted.fetch_and(!REST, Ordering::Release);
    }

    /// The calling vCPU thread rests, outside the guest: whoever wants to be alone need not wait for it.
    pub fn begin_rest(&self) {
        self.lock().set_parked(true);
        self.changed.notify_all();
    }

    /// The calling vCPU thread has rested. It waits until nobody is alone.
    pub fn end_rest(&self) {
        let mut state = self.wait_parked(self.lock());
        state.set_parked(false);
    }

    /// Sends every vCPU thread home, those that enter later too.
    pub fn end(&self) {
        let state = self.lock();
        self.wanted.fetch_or(END, Ordering::Release);
        state.kick_all(None);
    }

    fn wait_parked<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.leader {
            let was_parked = state.set_parked(true);
            self.changed.notify_all();
            while state.leader {
                state = self.wait(state);
            }
            state.set_parked(was_parked);
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
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;
    use crate::kick;

    /// A vCPU thread whose guest does nothing but be in the guest.
    fn vcpu_thread(gate: &Gate, vcpu: VcpuId, inside: &AtomicUsize, mut exits: impl FnMut(&Gate)) {
        kick::block().unwrap();
        gate.enter(vcpu);
        loop {
            match gate.wanted() {
                Wanted::Nothing => {
                    inside.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    exits(gate);
                }
                Wanted::Park => gate.park(),
                Wanted::Rest => {
                    gate.begin_rest();
                    while gate.wanted() == Wanted::Rest {
                        thread::yield_now();
                    }
                    gate.end_rest();
                }
                Wanted::End => break,
            }
        }
        gate.leave(vcpu);
    }

    /// Threads that all want to be alone, `times` times each; `beside` happens meanwhile. Gives how often somebody was in
    /// the guest while another was alone.
    fn all_want_to_be_alone(times: usize, beside: impl FnOnce(&Gate, &AtomicUsize)) -> usize {
        const THREADS: usize = 6;
        let (gate, inside, done) = (Gate::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            let threads: Vec<_> = VcpuId::first(THREADS)
                .map(|vcpu| {
                    let (gate, inside, done) = (&gate, &inside, &done);
                    scope.spawn(move || {
                        let (mut so_far, mut violations) = (0, 0);
                        vcpu_thread(gate, vcpu, inside, |gate| {
                            if so_far < times {
                                so_far += 1;
                                gate.alone(|_| violations += inside.load(Ordering::SeqCst));
                                if so_far == times && done.fetch_add(1, Ordering::SeqCst) + 1 == THREADS {
                                    gate.end();
                                }
                            }
                        });
                        violations
                    })
                })
                .collect();
            beside(&gate, &inside);
            let violations = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert!(gate.threads().is_empty());
            violations
        })
    }

    #[test]
    fn alone_means_that_nobody_else_is_in_the_guest_even_when_all_want_it_at_once() {
        assert_eq!(all_want_to_be_alone(200, |_, _| {}), 0);
    }

    #[test]
    fn paused_means_that_nobody_is_in_the_guest_even_while_all_want_to_be_alone() {
        let mut seen_inside = 0;
        let violations = all_want_to_be_alone(300, |gate, inside| {
            for _ in 0..100 {
                gate.pause().unwrap();
                assert_eq!(gate.pause(), Err(AlreadyPaused));
                for _ in 0..10 {
                    seen_inside += inside.load(Ordering::SeqCst);
                    thread::yield_now();
                }
                gate.resume();
            }
        });
        assert_eq!((violations, seen_inside), (0, 0));
    }

    #[test]
    fn guest_that_is_paused_from_the_start_is_entered_by_nobody_and_can_be_ended() {
        let (gate, inside) = (Gate::paused(), AtomicUsize::new(0));
        let exits = AtomicUsize::new(0);
        thread::scope(|scope| {
            let count = |_: &Gate| {
                exits.fetch_add(1, Ordering::SeqCst);
            };
            let threads = VcpuId::first(2).map(|vcpu| {
                let (gate, inside) = (&gate, &inside);
                scope.spawn(move || vcpu_thread(gate, vcpu, inside, count))
            });
            let threads: Vec<_> = threads.collect();
            while gate.threads().len() < 2 {
                thread::yield_now();
            }
            gate.end();
            for thread in threads {
                thread.join().unwrap();
            }
        });
        assert_eq!(exits.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn end_sends_home_threads_that_are_there_and_those_that_come_later() {
        let gate = Arc::new(Gate::new());
        let inside = Arc::new(AtomicUsize::new(0));
        let spawn = |vcpu| {
            let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
            thread::spawn(move || vcpu_thread(&gate, vcpu, &inside, |_| {}))
        };
        let early = spawn(VcpuId::BOOT);
        while gate.threads().is_empty() {
            thread::yield_now();
        }
        gate.end();
        early.join().unwrap();
        spawn(VcpuId::BOOT).join().unwrap();
    }
}
