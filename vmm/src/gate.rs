//! The gate: the one place where vCPU threads stop, each for itself or all for one.
//!
//! A vCPU thread looks at the gate before each `KVM_RUN` ([`Gate::wanted`], one load). Mostly nothing is wanted.
//! When one thread needs the others out of the guest, to replace a page under it, it calls [`Gate::alone`]; the
//! others are kicked, and wait in [`Gate::park`]. When the run is over, [`Gate::end`] sends all of them home.
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
    /// To finish.
    End,
}

const PARK: u8 = 1;
const END: u8 = 2;

/// Proof that no other vCPU thread is in the guest. Only [`Gate::alone`] makes one, and only for the length of a call.
#[derive(Debug)]
pub struct AllParked(());

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
    threads: Vec<(VcpuId, KickHandle)>,
    /// Of these, how many wait here.
    parked: usize,
    /// One of them is alone, or about to be.
    leader: bool,
}

impl Gate {
    /// A gate that nobody has entered.
    pub fn new() -> Self {
        Self::default()
    }

    /// The calling thread becomes a vCPU thread.
    pub fn enter(&self, vcpu: VcpuId) {
        self.lock().threads.push((vcpu, KickHandle::of_this_thread()));
    }

    /// The calling thread, the one of `vcpu`, is no vCPU thread any more.
    pub fn leave(&self, vcpu: VcpuId) {
        self.lock().threads.retain(|(id, _)| *id != vcpu);
        self.changed.notify_all();
    }

    /// The vCPU threads that there are, for reading their accounts.
    pub fn threads(&self) -> Vec<(VcpuId, KickHandle)> {
        self.lock().threads.clone()
    }

    /// What is wanted of the calling vCPU thread.
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            0 => Wanted::Nothing,
            PARK => Wanted::Park,
            _ => Wanted::End,
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
        let me = KickHandle::of_this_thread();
        for (_, thread) in state.threads.iter().filter(|(_, thread)| *thread != me) {
            thread.kick();
        }
        while state.parked + 1 < state.threads.len() {
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

    /// Sends every vCPU thread home, those that enter later too.
    pub fn end(&self) {
        let state = self.lock();
        self.wanted.fetch_or(END, Ordering::Release);
        for (_, thread) in &state.threads {
            thread.kick();
        }
    }

    fn wait_parked<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.leader {
            state.parked += 1;
            self.changed.notify_all();
            while state.leader {
                state = self.wait(state);
            }
            state.parked -= 1;
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
                Wanted::End => break,
            }
        }
        gate.leave(vcpu);
    }

    #[test]
    fn alone_means_that_nobody_else_is_in_the_guest_even_when_all_want_it_at_once() {
        const THREADS: usize = 6;
        const TIMES: usize = 200;
        let (gate, inside, done) = (Gate::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let mut violations = 0;
        thread::scope(|scope| {
            let threads: Vec<_> = VcpuId::first(THREADS)
                .map(|vcpu| {
                    let (gate, inside, done) = (&gate, &inside, &done);
                    scope.spawn(move || {
                        let (mut times, mut violations) = (0, 0);
                        vcpu_thread(gate, vcpu, inside, |gate| {
                            if times < TIMES {
                                times += 1;
                                gate.alone(|_| violations += inside.load(Ordering::SeqCst));
                                if times == TIMES && done.fetch_add(1, Ordering::SeqCst) + 1 == THREADS {
                                    gate.end();
                                }
                            }
                        });
                        violations
                    })
                })
                .collect();
            violations = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        });
        assert_eq!(violations, 0);
        assert!(gate.threads().is_empty());
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
