//! The locks on threads: exclusion, and no lost wake-up.
//!
//! A [`Thread`] is a CPU whose halts really sleep and whose bytes lie at random: now and then a vCPU is said to be
//! preempted, running or not. A hint may be wrong at any time, and nothing but speed may depend on it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex as HostMutex};
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;

use super::{
    Cull, Lock, Malthusian, Mcs, Mutex, OwnerQueue, Preemptable, PvQspin, PvState, PvTicket, Qspin, Rwsem,
    Tas, Ticket, Variant, Virt,
};
use crate::cpu::Cpu;
use crate::park::{Lot, Me};
use crate::patience::{Strategy, Tally};

/// No halt needs so long; one that does has lost its wake-up.
const LIMIT: Duration = Duration::from_secs(10);

/// The machine: who was kicked, and a source of lies.
pub(super) struct Machine {
    kicked: Vec<(HostMutex<bool>, Condvar)>,
    lies: AtomicU64,
    gave_up: AtomicBool,
    began: Instant,
}

impl Machine {
    pub(super) fn new(cpus: usize) -> Self {
        Self {
            kicked: (0..cpus).map(|_| Default::default()).collect(),
            lies: AtomicU64::new(1),
            gave_up: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    pub(super) fn assert_no_wake_up_was_lost(&self) {
        assert!(!self.gave_up.load(Ordering::Relaxed), "a wake-up was lost");
    }
}

/// One of the machine's CPUs.
pub(super) struct Thread<'m> {
    machine: &'m Machine,
    id: VcpuId,
}

impl<'m> Thread<'m> {
    pub(super) fn new(machine: &'m Machine, id: VcpuId) -> Self {
        Self { machine, id }
    }
}

impl Cpu for Thread<'_> {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn is_preempted(&self, vcpu: VcpuId) -> bool {
        // splitmix64 of a counter: two questions in a row must be free to get the same answer.
        let mut lie = self.machine.lies.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        lie = (lie ^ lie >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        lie = (lie ^ lie >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (lie >> 62) as usize == vcpu.index() % 4
    }

    /// A halt that is not ended within the limit is a lost wake-up: everybody is told to give up.
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

const BYTE: Strategy = Strategy::Byte { every: 1, twice: false, backstop: 50_000 };
pub(super) const THRESHOLD: Strategy = Strategy::Threshold(500);
const STRATEGIES: [Strategy; 6] = [
    Strategy::Ignore,
    THRESHOLD,
    Strategy::Cap(3),
    BYTE,
    Strategy::Byte { every: 4, twice: true, backstop: 50_000 },
    Strategy::Yield { every: 1 },
];

/// Eight threads take `lock` a thousand times each, one section in four to read.
fn exclude_and_wake(lock: &impl Lock, strategy: Strategy) {
    const THREADS: usize = 8;
    const TIMES: u64 = 1_000;
    let (machine, lot) = (Machine::new(THREADS), Lot::new());
    let (writer, readers) = (AtomicU32::new(0), AtomicU32::new(0));
    let written = AtomicU64::new(0);
    let tallies = thread::scope(|scope| {
        let threads: Vec<_> = VcpuId::first(THREADS)
            .map(|id| {
                let (machine, lot, writer, readers, written) = (&machine, &lot, &writer, &readers, &written);
                scope.spawn(move || {
                    let mut me = Me::new(Thread::new(machine, id), strategy, lot);
                    let name = u32::from(id.apic_id()) + 1;
                    // Long enough for the others to look, and to lose their patience.
                    let work = || (0..4).for_each(|_| thread::yield_now());
                    for time in 0..TIMES {
                        if time % 4 == 0 {
                            lock.acquire_shared(&mut me);
                            readers.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(writer.load(Ordering::SeqCst), 0, "a writer among readers");
                            work();
                            readers.fetch_sub(1, Ordering::SeqCst);
                            lock.release_shared(&mut me);
                            continue;
                        }
                        lock.acquire(&mut me);
                        assert_eq!(writer.swap(name, Ordering::SeqCst), 0, "two writers");
                        assert_eq!(readers.load(Ordering::SeqCst), 0, "a reader with a writer");
                        // Not atomic: it is right only if nobody else does it meanwhile.
                        written.store(written.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        work();
                        assert_eq!(writer.swap(0, Ordering::SeqCst), name, "somebody else came in");
                        lock.release(&mut me);
                    }
                    me.tally
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(written.load(Ordering::Relaxed), THREADS as u64 * TIMES * 3 / 4);
    machine.assert_no_wake_up_was_lost();
    let total = |figure: fn(&Tally) -> u64| tallies.iter().map(figure).sum::<u64>();
    if strategy.halts() {
        assert!(
            total(|tally| tally.halts) > 0,
            "nobody ever halted with {strategy:?}: the test tests nothing"
        );
    } else {
        assert_eq!(total(|tally| tally.halts), 0, "nobody halts with {strategy:?}");
    }
}

macro_rules! each_lock_excludes_and_wakes {
    ($($test:ident: $lock:expr;)+) => {
        $(#[test]
        fn $test() {
            for strategy in STRATEGIES {
                exclude_and_wake(&$lock, strategy);
            }
        })+
    };
}

each_lock_excludes_and_wakes! {
    tas_excludes_and_wakes_whatever_the_byte_says: Tas::new();
    virt_excludes_and_wakes_whatever_the_byte_says: Virt::new();
    ticket_excludes_and_wakes_whatever_the_byte_says: Ticket::new();
    preemptable_excludes_and_wakes_whatever_the_byte_says: Preemptable::new();
    pv_ticket_excludes_and_wakes_whatever_the_byte_says: PvTicket::new();
    mcs_excludes_and_wakes_whatever_the_byte_says: Mcs::new();
    qspin_excludes_and_wakes_whatever_the_byte_says: Qspin::new();
    pvq_excludes_and_wakes_whatever_the_byte_says: PvQspin::new(&PvState::new(), Variant::Plain);
    pvq_steal_excludes_and_wakes_whatever_the_byte_says: PvQspin::new(&PvState::new(), Variant::Steal);
    pvq_hybrid_excludes_and_wakes_whatever_the_byte_says: PvQspin::new(&PvState::new(), Variant::Hybrid);
    pvq_state_excludes_and_wakes_whatever_the_byte_says: PvQspin::new(&PvState::new(), Variant::State);
    pvq_byte_excludes_and_wakes_whatever_the_byte_says: PvQspin::new(&PvState::new(), Variant::Byte);
    mutex_excludes_and_wakes_whatever_the_byte_says: Mutex::new();
    rwsem_excludes_and_wakes_whatever_the_byte_says: Rwsem::new();
    owner_queue_excludes_and_wakes_whatever_the_byte_says: OwnerQueue::new();
    malthusian_excludes_and_wakes_whatever_the_byte_says: Malthusian::new();
    cull_excludes_and_wakes_whatever_the_byte_says: Cull::new();
}
