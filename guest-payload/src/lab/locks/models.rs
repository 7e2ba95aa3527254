//! The locks in a model checker: exclusion, no lost wake-up, and order where a lock promises it.
//!
//! - `loom` tries every interleaving of two or three vCPUs with a few preemptions, weak memory
//!   included. The guarded data is a cell that loom watches.
//! - `shuttle` tries thousands of random schedules of four vCPUs.
//!
//! A halt is a wait for a condition variable, so a lost wake-up is a deadlock, which both checkers
//! find.
//!
//! A vCPU is a thread whose halts end only when it is kicked or its word changes. The test chooses
//! its `preempted`. Its clock advances in small steps, and in long ones where the checker may draw.

use core::cell::Cell;
use std::sync::Arc;

use protocol::VcpuId;

use super::{
    Cull, Malthusian, Mcs, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem, Variant, Virt,
};
use crate::cpu::Cpu;
use crate::locks::{Lock, Mutex, Tas, Ticket};
use crate::park::{LockCtx, ParkingLot};
use crate::spin_wait::WaitPolicy;
use crate::sync::AtomicU32;
use checker::{AtomicUsize, Condvar, Mutex as HostMutex, Ordering, thread};

/// Values of `preempted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    /// Every vCPU runs.
    Clear,
    /// Every vCPU is preempted.
    Set,
    /// Random with each read.
    #[cfg(feature = "shuttle")]
    Drawn,
}

/// The machine of a model.
struct Machine {
    kicked: Vec<(HostMutex<bool>, Condvar)>,
    bytes: Bytes,
    /// Number of grants so far, of all vCPUs.
    grants: AtomicUsize,
}

impl Machine {
    fn new(cpus: usize, bytes: Bytes) -> Self {
        let kicked = (0..cpus).map(|_| (HostMutex::new(false), Condvar::new())).collect();
        Self { kicked, bytes, grants: AtomicUsize::new(0) }
    }
}

/// A vCPU of the machine.
struct Model {
    machine: Arc<Machine>,
    id: VcpuId,
    now: Cell<u64>,
    /// Number of grants when this vCPU began to spin for the present one; `None` before that.
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

/// A lock and what it guards.
struct Guarded<L> {
    lock: L,
    lot: ParkingLot,
    sections: checker::Cell<usize>,
}

/// Parameters of one model.
#[derive(Clone, Copy)]
struct Trial {
    vcpus: usize,
    times: usize,
    policy: WaitPolicy,
    bytes: Bytes,
    /// Whether each other vCPU may overtake a queued one at most once.
    in_order: bool,
}

/// Runs vCPUs that take the lock. The checker finds what goes wrong.
fn take<L: Lock + Send + 'static>(lock: L, trial: Trial) {
    let Trial { vcpus, times, policy, bytes, in_order } = trial;
    let machine = Arc::new(Machine::new(vcpus, bytes));
    let guarded = Arc::new(Guarded { lock, lot: ParkingLot::new(), sections: checker::Cell::new(0) });
    let threads: Vec<_> = VcpuId::first(vcpus)
        .map(|id| {
            let (machine, guarded) = (Arc::clone(&machine), Arc::clone(&guarded));
            thread::spawn(move || {
                let cpu = Model { machine, id, now: Cell::new(0), queued_at: Cell::new(None) };
                let mut ctx = LockCtx::new(cpu, policy, &guarded.lot);
                for time in 0..times {
                    ctx.cpu.queued_at.set(None);
                    if time + 1 == times && times > 2 {
                        // The last section only reads.
                        guarded.lock.acquire_shared(&mut ctx);
                        let before = guarded.sections.get();
                        thread::yield_now();
                        assert_eq!(guarded.sections.get(), before, "a writer came in to a reader");
                        guarded.lock.release_shared(&mut ctx);
                        break;
                    }
                    guarded.lock.acquire(&mut ctx);
                    let before = ctx.cpu.machine.grants.fetch_add(1, Ordering::SeqCst);
                    if let Some(queued) = ctx.cpu.queued_at.get()
                        && in_order
                    {
                        assert!(before - queued < vcpus, "passed by {} others", before - queued);
                    }
                    guarded.sections.add_one();
                    guarded.lock.release(&mut ctx);
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

/// Defines a test of each lock. The flag says whether its order is strict while no vCPU is
/// preempted.
macro_rules! each_lock {
    ($($name:ident: $make:expr, $ordered:expr;)+) => {
        $(#[test]
        fn $name() {
            checker::check(|| $make, $ordered);
        })+
    };
}

each_lock! {
    tas_excludes_and_loses_no_wake_up: Tas::new(), false;
    ticket_excludes_loses_no_wake_up_and_keeps_order: Ticket::new(), true;
    mutex_excludes_and_loses_no_wake_up: Mutex::new(), false;
    virt_excludes_and_loses_no_wake_up: Virt::new(), false;
    preemptable_excludes_and_loses_no_wake_up: Preemptable::new(), false;
    pv_ticket_excludes_loses_no_wake_up_and_keeps_order: PvTicket::new(), true;
    mcs_excludes_loses_no_wake_up_and_keeps_order: Mcs::new(), true;
    qspin_excludes_loses_no_wake_up_and_keeps_order: Qspin::new(), true;
    pvq_excludes_loses_no_wake_up_and_keeps_order: Pvq::new(Variant::Plain), true;
    pvq_steal_excludes_and_loses_no_wake_up: Pvq::new(Variant::Steal), false;
    pvq_hybrid_excludes_and_loses_no_wake_up: Pvq::new(Variant::Hybrid), false;
    pvq_state_excludes_and_loses_no_wake_up: Pvq::new(Variant::State), false;
    pvq_preempted_excludes_and_loses_no_wake_up: Pvq::new(Variant::Preempted), false;
    rwsem_excludes_and_loses_no_wake_up: Rwsem::new(), false;
    owner_queue_excludes_and_loses_no_wake_up: OwnerQueue::new(), false;
    malthusian_excludes_and_loses_no_wake_up: Malthusian::new(), false;
    cull_excludes_and_loses_no_wake_up: Cull::new(), false;
}

/// A schedule in which a releasing vCPU counts for a sleeper that it then does not find. The last
/// contender once took that count for a contender, and left sleepers behind a free lock.
#[cfg(feature = "shuttle")]
#[test]
fn cull_whose_sleeper_has_gone_leaves_no_other_asleep() {
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

    fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        PvQspin::new(&self.0, self.1).acquire(ctx);
    }

    fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
        PvQspin::new(&self.0, self.1).release(ctx);
    }
}

/// Broken locks, whose defects the checkers must find.
mod broken {
    use super::*;
    use crate::park::WaiterSet;
    use crate::sync::Ordering;

    /// Reads the word, then takes the lock: two vCPUs may have read it.
    pub(super) struct Looks(AtomicU32);

    impl Looks {
        pub(super) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    impl Lock for Looks {
        const HANDS_OVER: bool = false;

        fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
            while self.0.load(Ordering::SeqCst) != 0 {
                ctx.cpu.relax();
            }
            self.0.store(1, Ordering::SeqCst);
        }

        fn release<C: Cpu>(&self, _me: &mut LockCtx<'_, C>) {
            self.0.store(0, Ordering::SeqCst);
        }
    }

    /// Halts without a second look: the release may have come in between.
    pub(super) struct Sleeps(AtomicU32, WaiterSet);

    impl Sleeps {
        pub(super) fn new() -> Self {
            Self(AtomicU32::new(0), WaiterSet::new())
        }
    }

    impl Lock for Sleeps {
        const HANDS_OVER: bool = false;

        fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
            while self.0.swap(1, Ordering::SeqCst) != 0 {
                ctx.park_if(&self.1, |_| true);
            }
        }

        fn release<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
            self.0.swap(0, Ordering::SeqCst);
            ctx.wake_longest(&self.1);
        }
    }

    /// Admits any vCPU, whatever the order of arrival.
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

        fn acquire<C: Cpu>(&self, ctx: &mut LockCtx<'_, C>) {
            while self.0.swap(1, Ordering::SeqCst) != 0 {
                ctx.cpu.relax();
            }
        }

        fn release<C: Cpu>(&self, _me: &mut LockCtx<'_, C>) {
            self.0.swap(0, Ordering::SeqCst);
        }
    }
}

#[test]
#[should_panic(expected = "")]
fn lock_that_reads_before_it_takes_is_detected() {
    checker::check(broken::Looks::new, false);
}

#[test]
#[should_panic(expected = "")]
fn lock_that_halts_without_a_second_look_is_detected() {
    checker::check(broken::Sleeps::new, false);
}

#[cfg(feature = "shuttle")]
#[test]
#[should_panic(expected = "passed by")]
fn lock_without_order_is_detected() {
    checker::check(broken::Unfair::new, true);
}

/// Every interleaving with few preemptions.
#[cfg(feature = "loom")]
#[expect(unsafe_code, reason = "loom judges whether two are in a cell: so it is shared without proof")]
mod checker {
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use loom::sync::{Condvar, Mutex};
    pub(super) use loom::thread;

    use super::{Bytes, Lock, Trial, WaitPolicy, take};

    /// A cell that two vCPUs may not access at once, and whose readers must have synchronised.
    pub(super) struct Cell<T>(loom::cell::UnsafeCell<T>);

    // SAFETY: loom checks each access, and stops at the first two that are not ordered.
    unsafe impl<T> Sync for Cell<T> {}

    impl Cell<usize> {
        pub(super) fn new(value: usize) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        pub(super) fn add_one(&self) {
            // SAFETY: loom stops at a concurrent access.
            self.0.with_mut(|value| unsafe { *value += 1 });
        }

        pub(super) fn get(&self) -> usize {
            // SAFETY: as above.
            self.0.with(|value| unsafe { *value })
        }
    }

    /// A model must be deterministic, so its clock advances evenly.
    pub(super) fn step() -> u64 {
        10
    }

    pub(super) fn check<L: Lock + Send + 'static>(make: fn() -> L, in_order: bool) {
        /// Limit of interleavings: some of these models have millions.
        const ENOUGH: usize = 10_000;
        const AT_ONCE: WaitPolicy = WaitPolicy::Threshold(0);
        const PREEMPTED: WaitPolicy = WaitPolicy::Preempted { every: 1, twice: false, backstop: u64::MAX };
        let trial = |vcpus, times, policy, bytes| Trial { vcpus, times, policy, bytes, in_order: false };
        let strict = Trial { in_order, ..trial(2, 2, WaitPolicy::Spin, Bytes::Clear) };
        let trials = [
            (strict, 2),
            (trial(2, 2, AT_ONCE, Bytes::Clear), 3),
            (trial(2, 2, PREEMPTED, Bytes::Set), 3),
            (trial(3, 1, AT_ONCE, Bytes::Clear), 2),
            (trial(3, 1, PREEMPTED, Bytes::Set), 2),
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

    use super::{Bytes, Lock, Trial, WaitPolicy, take};

    /// A counter that is right only if no other vCPU adds at the same time.
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

    /// Steps are sometimes long, so that rotations come due and vCPUs have been away.
    pub(super) fn step() -> u64 {
        if draw(32) == 0 { 1_000_000 } else { 10 }
    }

    pub(super) fn check<L: Lock + Send + 'static>(make: fn() -> L, in_order: bool) {
        const SCHEDULES: usize = 1_000;
        for trial in trials(in_order) {
            shuttle::check_random(move || take(make(), trial), SCHEDULES);
        }
    }

    /// Runs the one schedule that `seed` makes of each trial.
    pub(super) fn check_once<L: Lock + Send + 'static>(make: fn() -> L, seed: u64) {
        for trial in trials(false) {
            shuttle::check_random_with_seed(move || take(make(), trial), seed, 1);
        }
    }

    fn trials(in_order: bool) -> [Trial; 8] {
        let byte = |every, twice| WaitPolicy::Preempted { every, twice, backstop: 200 };
        let trial = |policy| Trial { vcpus: 4, times: 3, policy, bytes: Bytes::Drawn, in_order: false };
        let strict = Trial { in_order, ..trial(WaitPolicy::Spin) };
        [
            strict,
            Trial { bytes: Bytes::Clear, ..trial(byte(1, false)) },
            Trial { bytes: Bytes::Set, ..trial(byte(1, false)) },
            trial(WaitPolicy::Threshold(50)),
            trial(WaitPolicy::Cap(2)),
            trial(byte(1, false)),
            trial(byte(3, true)),
            trial(WaitPolicy::Yield { every: 1 }),
        ]
    }
}
