//! The locks in a model checker: exclusion, no lost wake-up, and order where a lock promises it.
//!
//! `loom` tries every order of two or three vCPUs that a few preemptions can make, weak memory included, and knows what was
//! published to whom: what the lock guards is a cell that it watches. `shuttle` tries thousands of random schedules of four.
//! A halt is a wait for a condition, so a wake-up that is lost is a deadlock, and both find those.
//!
//! A vCPU here is a thread whose halts end only when it is kicked or its word changes, whose byte says what the test says,
//! and whose clock goes on by little, and now and then by much, where the checker may draw lots.

use core::cell::Cell;
use std::sync::Arc;

use protocol::VcpuId;

use super::{
    Cull, Lock, Malthusian, Mcs, Mutex, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem,
    Tas, Ticket, Variant, Virt,
};
use crate::cpu::Cpu;
use crate::park::{Lot, Me};
use crate::patience::Strategy;
use crate::sync::AtomicU32;
use checker::{AtomicUsize, Condvar, Mutex as HostMutex, Ordering, thread};

/// What bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    /// Everybody runs.
    Clear,
    /// Nobody runs.
    Set,
    /// One or the other, each time anew.
    #[cfg(feature = "shuttle")]
    Drawn,
}

/// The machine.
struct Machine {
    kicked: Vec<(HostMutex<bool>, Condvar)>,
    bytes: Bytes,
    /// Grants so far, of all.
    grants: AtomicUsize,
}

impl Machine {
    fn new(cpus: usize, bytes: Bytes) -> Self {
        let kicked = (0..cpus).map(|_| (HostMutex::new(false), Condvar::new())).collect();
        Self { kicked, bytes, grants: AtomicUsize::new(0) }
    }
}

/// One of its vCPUs.
struct Model {
    machine: Arc<Machine>,
    id: VcpuId,
    now: Cell<u64>,
    /// Grants when it first spun for the present one; `None` before it has.
    queued_at: Cell<Option<usize>>,
}

impl Cpu for Model {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn is_preempted(&self, _vcpu: VcpuId) -> bool {
        match self.machine.bytes {
            Bytes::Clear => false,
            Bytes::Set => true,
            #[cfg(feature = "shuttle")]
            Bytes::Drawn => checker::draw(2) == 0,
        }
    }

    fn halt_while(&self, word: &AtomicU32, value: u32) {
        let (kicked, changed) = &self.machine.kicked[self.id.index()];
        let mut kicked = kicked.lock().unwrap();
        while !*kicked && word.load(Ordering::SeqCst) == value {
            kicked = changed.wait(kicked).unwrap();
        }
        *kicked = false;
    }

    fn kick(&self, vcpu: VcpuId) {
        let (kicked, changed) = &self.machine.kicked[vcpu.index()];
        *kicked.lock().unwrap() = true;
        changed.notify_one();
    }

    fn cycles(&self) -> u64 {
        self.now.set(self.now.get() + checker::step());
        self.now.get()
    }

    fn stolen(&self) -> u64 {
        0
    }

    fn longest_step(&self) -> u64 {
        100
    }

    fn relax(&self) {
        if self.queued_at.get().is_none() {
            self.queued_at.set(Some(self.machine.grants.load(Ordering::SeqCst)));
        }
        thread::yield_now();
    }
}

/// What a lock guards.
struct Guarded<L> {
    lock: L,
    lot: Lot,
    sections: checker::Cell<usize>,
}

/// What is tried of a lock.
#[derive(Clone, Copy)]
struct Trial {
    vcpus: usize,
    times: usize,
    strategy: Strategy,
    bytes: Bytes,
    /// Whether each may be passed by each other once at the most, once it is queued.
    in_order: bool,
}

/// Has vCPUs take a lock; the checker notices whatever goes wrong.
fn take<L: Lock + Send + 'static>(lock: L, trial: Trial) {
    let Trial { vcpus, times, strategy, bytes, in_order } = trial;
    let machine = Arc::new(Machine::new(vcpus, bytes));
    let guarded = Arc::new(Guarded { lock, lot: Lot::new(), sections: checker::Cell::new(0) });
    let threads: Vec<_> = VcpuId::first(vcpus)
        .map(|id| {
            let (machine, guarded) = (Arc::clone(&machine), Arc::clone(&guarded));
            thread::spawn(move || {
                let cpu = Model { machine, id, now: Cell::new(0), queued_at: Cell::new(None) };
                let mut me = Me::new(cpu, strategy, &guarded.lot);
                for time in 0..times {
                    me.cpu.queued_at.set(None);
                    if time + 1 == times && times > 2 {
                        // The last one only reads.
                        guarded.lock.acquire_shared(&mut me);
                        let before = guarded.sections.get();
                        thread::yield_now();
                        assert_eq!(guarded.sections.get(), before, "a writer came in to a reader");
                        guarded.lock.release_shared(&mut me);
                        break;
                    }
                    guarded.lock.acquire(&mut me);
                    let before = me.cpu.machine.grants.fetch_add(1, Ordering::SeqCst);
                    if let Some(queued) = me.cpu.queued_at.get()
                        && in_order
                    {
                        assert!(before - queued < vcpus, "passed by {} others", before - queued);
                    }
                    guarded.sections.add_one();
                    guarded.lock.release(&mut me);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let written = if times > 2 { times - 1 } else { times };
    assert_eq!(guarded.sections.get(), vcpus * written);
}

/// Makes a test of each lock.
macro_rules! each_lock {
    ($($name:ident: $make:expr, $ordered:expr;)+) => {
        $(#[test]
        fn $name() {
            checker::check(|| $make, $ordered);
        })+
    };
}

// Whose order is strict as long as the byte does not have them pass over anybody.
each_lock! {
    tas_excludes_and_loses_no_wake_up: Tas::new(), false;
    virt_excludes_and_loses_no_wake_up: Virt::new(), false;
    ticket_excludes_loses_no_wake_up_and_keeps_order: Ticket::new(), true;
    preemptable_excludes_and_loses_no_wake_up: Preemptable::new(), false;
    pv_ticket_excludes_loses_no_wake_up_and_keeps_order: PvTicket::new(), true;
    mcs_excludes_loses_no_wake_up_and_keeps_order: Mcs::new(), true;
    qspin_excludes_loses_no_wake_up_and_keeps_order: Qspin::new(), true;
    pvq_excludes_loses_no_wake_up_and_keeps_order: Pvq::new(Variant::Plain), true;
    pvq_steal_excludes_and_loses_no_wake_up: Pvq::new(Variant::Steal), false;
    pvq_hybrid_excludes_and_loses_no_wake_up: Pvq::new(Variant::Hybrid), false;
    pvq_state_excludes_and_loses_no_wake_up: Pvq::new(Variant::State), false;
    pvq_byte_excludes_and_loses_no_wake_up: Pvq::new(Variant::Byte), false;
    mutex_excludes_and_loses_no_wake_up: Mutex::new(), false;
    rwsem_excludes_and_loses_no_wake_up: Rwsem::new(), false;
    owner_queue_excludes_and_loses_no_wake_up: OwnerQueue::new(), false;
    malthusian_excludes_and_loses_no_wake_up: Malthusian::new(), false;
    cull_excludes_and_loses_no_wake_up: Cull::new(), false;
}

/// A schedule in which one who counts himself for a sleeper that he then does not find is taken for a contender by the last to
/// leave: sleepers stayed behind a free lock.
#[cfg(feature = "shuttle")]
#[test]
fn cull_takes_nobody_for_a_contender_who_is_none() {
    checker::check_once(Cull::new, 6_778_116_418_438_103_887);
}

/// A [`PvQspin`] that owns its state.
struct Pvq(Arc<PvState>, Variant);

impl Pvq {
    fn new(variant: Variant) -> Self {
        Self(Arc::new(PvState::new()), variant)
    }
}

impl Lock for Pvq {
    const HANDS_OVER: bool = true;

    fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
        PvQspin::new(&self.0, self.1).acquire(me);
    }

    fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
        PvQspin::new(&self.0, self.1).release(me);
    }
}

/// What the checkers must find.
mod broken {
    use super::*;
    use crate::park::Waiters;
    use crate::sync::Ordering;

    /// Looks, and then takes: two may have looked.
    pub(super) struct Looks(AtomicU32);

    impl Looks {
        pub(super) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    impl Lock for Looks {
        const HANDS_OVER: bool = false;

        fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
            while self.0.load(Ordering::SeqCst) != 0 {
                me.cpu.relax();
            }
            self.0.store(1, Ordering::SeqCst);
        }

        fn release<C: Cpu>(&self, _me: &mut Me<'_, C>) {
            self.0.store(0, Ordering::SeqCst);
        }
    }

    /// Halts without a second look: the release may have come between.
    pub(super) struct Sleeps(AtomicU32, Waiters);

    impl Sleeps {
        pub(super) fn new() -> Self {
            Self(AtomicU32::new(0), Waiters::new())
        }
    }

    impl Lock for Sleeps {
        const HANDS_OVER: bool = false;

        fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
            while self.0.swap(1, Ordering::SeqCst) != 0 {
                me.park_if(&self.1, |_| true);
            }
        }

        fn release<C: Cpu>(&self, me: &mut Me<'_, C>) {
            self.0.swap(0, Ordering::SeqCst);
            me.wake_longest(&self.1);
        }
    }

    /// Lets in whoever comes, whoever waits.
    #[cfg(feature = "shuttle")]
    pub(super) struct Unfair(AtomicU32);

    #[cfg(feature = "shuttle")]
    impl Unfair {
        pub(super) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    #[cfg(feature = "shuttle")]
    impl Lock for Unfair {
        const HANDS_OVER: bool = false;

        fn acquire<C: Cpu>(&self, me: &mut Me<'_, C>) {
            while self.0.swap(1, Ordering::SeqCst) != 0 {
                me.cpu.relax();
            }
        }

        fn release<C: Cpu>(&self, _me: &mut Me<'_, C>) {
            self.0.swap(0, Ordering::SeqCst);
        }
    }
}

#[test]
#[should_panic(expected = "")]
fn lock_that_looks_before_it_takes_is_found_out() {
    checker::check(broken::Looks::new, false);
}

#[test]
#[should_panic(expected = "")]
fn lock_that_halts_without_a_second_look_is_found_out() {
    checker::check(broken::Sleeps::new, false);
}

#[cfg(feature = "shuttle")]
#[test]
#[should_panic(expected = "passed by")]
fn lock_that_keeps_no_order_is_found_out() {
    checker::check(broken::Unfair::new, true);
}

/// Every order that few preemptions can make.
#[cfg(feature = "loom")]
#[expect(unsafe_code, reason = "loom judges whether two are in a cell: so it is shared without proof")]
mod checker {
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use loom::sync::{Condvar, Mutex};
    pub(super) use loom::thread;

    use super::{Bytes, Lock, Strategy, Trial, take};

    /// A cell that two may not be in, and that must have been published to who reads it.
    pub(super) struct Cell<T>(loom::cell::UnsafeCell<T>);

    // SAFETY: loom watches each access, and stops at the first two that are not in order.
    unsafe impl<T> Sync for Cell<T> {}

    impl Cell<usize> {
        pub(super) fn new(value: usize) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        pub(super) fn add_one(&self) {
            // SAFETY: loom stops at a second access beside this one.
            self.0.with_mut(|value| unsafe { *value += 1 });
        }

        pub(super) fn get(&self) -> usize {
            // SAFETY: as above.
            self.0.with(|value| unsafe { *value })
        }
    }

    /// A model must do the same each time: its clock goes on evenly.
    pub(super) fn step() -> u64 {
        10
    }

    pub(super) fn check<L: Lock + Send + 'static>(make: fn() -> L, in_order: bool) {
        /// Orders that are tried at the most: some of these models have millions.
        const ENOUGH: usize = 10_000;
        const AT_ONCE: Strategy = Strategy::Threshold(0);
        const BYTE: Strategy = Strategy::Byte { every: 1, twice: false, backstop: u64::MAX };
        let trial = |vcpus, times, strategy, bytes| Trial { vcpus, times, strategy, bytes, in_order: false };
        let strict = Trial { in_order, ..trial(2, 2, Strategy::Ignore, Bytes::Clear) };
        let trials = [
            (strict, 2),
            (trial(2, 2, AT_ONCE, Bytes::Clear), 3),
            (trial(2, 2, BYTE, Bytes::Set), 3),
            (trial(3, 1, AT_ONCE, Bytes::Clear), 2),
            (trial(3, 1, BYTE, Bytes::Set), 2),
        ];
        for (trial, preemptions) in trials {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(preemptions);
            model.max_branches = 100_000;
            model.max_permutations = Some(ENOUGH);
            model.check(move || take(make(), trial));
        }
    }
}

/// Thousands of random schedules.
#[cfg(feature = "shuttle")]
mod checker {
    pub(super) use shuttle::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use shuttle::sync::{Condvar, Mutex};
    pub(super) use shuttle::thread;

    use shuttle::rand::Rng;

    use super::{Bytes, Lock, Strategy, Trial, take};

    /// A counter that is right only if nobody else adds meanwhile.
    pub(super) struct Cell<T>(AtomicUsize, core::marker::PhantomData<T>);

    impl Cell<usize> {
        pub(super) fn new(value: usize) -> Self {
            Self(AtomicUsize::new(value), core::marker::PhantomData)
        }

        pub(super) fn add_one(&self) {
            let value = self.0.load(Ordering::SeqCst);
            thread::yield_now();
            self.0.store(value + 1, Ordering::SeqCst);
        }

        pub(super) fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    pub(super) fn draw(below: u64) -> u64 {
        shuttle::rand::thread_rng().gen_range(0..below)
    }

    /// Now and then a long one: turns come, and vCPUs have been away.
    pub(super) fn step() -> u64 {
        if draw(32) == 0 { 1_000_000 } else { 10 }
    }

    pub(super) fn check<L: Lock + Send + 'static>(make: fn() -> L, in_order: bool) {
        const SCHEDULES: usize = 1_000;
        for trial in trials(in_order) {
            shuttle::check_random(move || take(make(), trial), SCHEDULES);
        }
    }

    /// The one schedule that `seed` makes of each trial.
    pub(super) fn check_once<L: Lock + Send + 'static>(make: fn() -> L, seed: u64) {
        for trial in trials(false) {
            shuttle::check_random_with_seed(move || take(make(), trial), seed, 1);
        }
    }

    fn trials(in_order: bool) -> [Trial; 8] {
        let byte = |every, twice| Strategy::Byte { every, twice, backstop: 200 };
        let trial = |strategy| Trial { vcpus: 4, times: 3, strategy, bytes: Bytes::Drawn, in_order: false };
        let strict = Trial { in_order, ..trial(Strategy::Ignore) };
        [
            strict,
            Trial { bytes: Bytes::Clear, ..trial(byte(1, false)) },
            Trial { bytes: Bytes::Set, ..trial(byte(1, false)) },
            trial(Strategy::Threshold(50)),
            trial(Strategy::Cap(2)),
            trial(byte(1, false)),
            trial(byte(3, true)),
            trial(Strategy::Yield { every: 1 }),
        ]
    }
}
