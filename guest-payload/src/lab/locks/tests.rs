//! The locks on threads: exclusion, and no lost wake-up.
//!
//! A [`Thread`] is a CPU whose halts block the thread, and whose `preempted` is random: it may
//! report any vCPU as preempted, running or not. The byte is a hint, so only speed may depend on
//! it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex as HostMutex};
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;

use super::{
    Cull, Malthusian, Mcs, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem, Variant, Virt,
};
use crate::cpu::Cpu;
use crate::locks::{Lock, Mutex, Tas, Ticket};
use crate::park::{LockCtx, ParkingLot};
use crate::spin_wait::{WaitPolicy, WaitStats};

/// Longest halt. A longer one has lost its wake-up.
const LIMIT: Duration = Duration::from_secs(10);

/// The machine: pending kicks, and the state of the random `preempted`.
pub(crate) struct Machine {
    kicked: Vec<(HostMutex<bool>, Condvar)>,
    lies: AtomicU64,
    gave_up: AtomicBool,
    began: Instant,
}

impl Machine {
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            kicked: (0..cpus).map(|_| Default::default()).collect(),
            lies: AtomicU64::new(1),
            gave_up: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    pub(crate) fn assert_no_wake_up_was_lost(&self) {
        assert!(!self.gave_up.load(Ordering::Relaxed), "a wake-up was lost");
    }
}

/// A CPU of the machine.
pub(crate) struct Thread<'m> {
    machine: &'m Machine,
    id: VcpuId,
}

impl<'m> Thread<'m> {
    pub(crate) fn new(machine: &'m Machine, id: VcpuId) -> Self {
        Self { machine, id }
    }
}

impl Cpu for Thread<'_> {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn is_preempted(&self, vcpu: VcpuId) -> bool {
        // splitmix64 of a counter: two reads in a row must be free to return the same.
        let mut lie = self.machine.lies.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        lie = (lie ^ lie >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        lie = (lie ^ lie >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (lie >> 62) as usize == vcpu.index() % 4
    }

    /// Halts. A halt beyond the limit is a lost wake-up, and ends the test.
    fn halt_while(&self, word: &AtomicU32, value: u32) {
        let (kicked, changed) = &self.machine.kicked[self.id.index()];
        let mut kicked = kicked.lock().unwrap();
        while !*kicked && word.load(Ordering::SeqCst) == value {
            let (guard, timeout) = changed.wait_timeout(kicked, LIMIT).unwrap();
            kicked = guard;
            if timeout.timed_out() {
                self.machine.gave_up.store(true, Ordering::SeqCst);
                word.store(0, Ordering::SeqCst);
            }
        }
        *kicked = false;
    }

    fn kick(&self, vcpu: VcpuId) {
        let (kicked, changed) = &self.machine.kicked[vcpu.index()];
        *kicked.lock().unwrap() = true;
        changed.notify_all();
    }

    fn cycles(&self) -> u64 {
        u64::try_from(self.machine.began.elapsed().as_nanos()).unwrap()
    }

    fn stolen(&self) -> u64 {
        0
    }

    fn longest_step(&self) -> u64 {
        1_000_000
    }

    fn relax(&self) {
        // There may be more threads than CPUs.
        thread::yield_now();
    }
}

const PREEMPTED: WaitPolicy = WaitPolicy::Preempted { every: 1, twice: false, backstop: 50_000 };
pub(crate) const THRESHOLD: WaitPolicy = WaitPolicy::Threshold(500);
const POLICIES: [WaitPolicy; 6] = [
    WaitPolicy::Spin,
    THRESHOLD,
    WaitPolicy::Cap(3),
    PREEMPTED,
    WaitPolicy::Preempted { every: 4, twice: true, backstop: 50_000 },
    WaitPolicy::Yield { every: 1 },
];

/// Eight threads take `lock` 1,000 times each, one section in four as a reader.
fn exclude_and_wake(lock: &impl Lock, policy: WaitPolicy) {
    const THREADS: usize = 8;
    const TIMES: u64 = 1_000;
    let (machine, lot) = (Machine::new(THREADS), ParkingLot::new());
    let (writer, readers) = (AtomicU32::new(0), AtomicU32::new(0));
    let written = AtomicU64::new(0);
    let all_stats = thread::scope(|scope| {
        let threads: Vec<_> = VcpuId::first(THREADS)
            .map(|id| {
                let (machine, lot, writer, readers, written) = (&machine, &lot, &writer, &readers, &written);
                scope.spawn(move || {
                    let mut ctx = LockCtx::new(Thread::new(machine, id), policy, lot);
                    let name = u32::from(id.apic_id()) + 1;
                    // Long enough for the others to read the lock, and to stop spinning.
                    let work = || (0..4).for_each(|_| thread::yield_now());
                    for time in 0..TIMES {
                        if time % 4 == 0 {
                            lock.acquire_shared(&mut ctx);
                            readers.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(writer.load(Ordering::SeqCst), 0, "a writer among readers");
                            work();
                            readers.fetch_sub(1, Ordering::SeqCst);
                            lock.release_shared(&mut ctx);
                            continue;
                        }
                        lock.acquire(&mut ctx);
                        assert_eq!(writer.swap(name, Ordering::SeqCst), 0, "two writers");
                        assert_eq!(readers.load(Ordering::SeqCst), 0, "a reader with a writer");
                        // Not atomic: the sum is right only if the lock excludes.
                        written.store(written.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        work();
                        assert_eq!(writer.swap(0, Ordering::SeqCst), name, "another thread entered");
                        lock.release(&mut ctx);
                    }
                    ctx.stats
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(written.load(Ordering::Relaxed), THREADS as u64 * TIMES * 3 / 4);
    machine.assert_no_wake_up_was_lost();
    let total = |figure: fn(&WaitStats) -> u64| all_stats.iter().map(figure).sum::<u64>();
    if policy.may_halt() {
        assert!(total(|stats| stats.halts) > 0, "no thread halted with {policy:?}: the test tests nothing");
    } else {
        assert_eq!(total(|stats| stats.halts), 0, "no thread may halt with {policy:?}");
    }
}

/// Defines a test of each lock under all policies.
macro_rules! each_lock_excludes_and_wakes {
    ($($test:ident: $lock:expr;)+) => {
        $(#[test]
        fn $test() {
            for policy in POLICIES {
                exclude_and_wake(&$lock, policy);
            }
        })+
    };
}

each_lock_excludes_and_wakes! {
    tas_excludes_and_wakes_with_random_preempted: Tas::new();
    ticket_excludes_and_wakes_with_random_preempted: Ticket::new();
    mutex_excludes_and_wakes_with_random_preempted: Mutex::new();
    virt_excludes_and_wakes_with_random_preempted: Virt::new();
    preemptable_excludes_and_wakes_with_random_preempted: Preemptable::new();
    pv_ticket_excludes_and_wakes_with_random_preempted: PvTicket::new();
    mcs_excludes_and_wakes_with_random_preempted: Mcs::new();
    qspin_excludes_and_wakes_with_random_preempted: Qspin::new();
    pvq_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Plain);
    pvq_steal_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Steal);
    pvq_hybrid_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Hybrid);
    pvq_state_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::State);
    pvq_preempted_excludes_and_wakes_with_random_preempted: PvQspin::new(&PvState::new(), Variant::Preempted);
    rwsem_excludes_and_wakes_with_random_preempted: Rwsem::new();
    owner_queue_excludes_and_wakes_with_random_preempted: OwnerQueue::new();
    malthusian_excludes_and_wakes_with_random_preempted: Malthusian::new();
    cull_excludes_and_wakes_with_random_preempted: Cull::new();
}
