//! What users of steal time have reported, tried on the program without a guest.
//!
//! `resources/reports.md` lists all reports. Two threads yield one CPU to each other, which makes
//! some hundred thousand preemptions in a second.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};
use nix::unistd::Pid;
use steal_time::bpf::{Program, RecordAddr};

use super::contention::{last_cpu, pin_to};
use super::record::{Record, Snapshot};
use super::{load, skip, spin_until, vcpu};

/// Switches of each thread, unless `VMM_TEST_SWITCHES` says otherwise.
const SWITCHES: u64 = 100_000;

const ADDRS: [RecordAddr; 2] = [RecordAddr::new(0, 0), RecordAddr::new(0, 0x40)];

fn switches() -> u64 {
    std::env::var("VMM_TEST_SWITCHES").ok().and_then(|text| text.parse().ok()).unwrap_or(SWITCHES)
}

/// Runs two attached threads that yield the last CPU to each other until both were preempted
/// `switches` times, while the caller runs `beside` until the flag is set. Returns what each thread
/// read at its begin and end, and the result of `beside`.
fn yielding<R>(
    program: &Program,
    switches: u64,
    beside: impl FnOnce(&AtomicBool) -> R,
) -> ([(Snapshot, Snapshot); 2], R) {
    let (cpu, ready, done) = (last_cpu(), AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    let run = |own: usize| {
        pin_to(cpu);
        let attached = program.attach_current_thread(vcpu(own)).expect("a fresh thread");
        let (slot, record) = (attached.slot(), Record::map(program, ADDRS[own]));
        let begin = Snapshot::take(slot, &record);
        attached.account(begin.run_delay);
        attached.publish(ADDRS[own]);
        ready.fetch_add(1, Ordering::SeqCst);
        spin_until("both are attached", || ready.load(Ordering::SeqCst) == 2);
        let is_enough = || slot.counts().sched_out - begin.counts.sched_out >= switches;
        while !is_enough() {
            sched_yield().expect("it never fails");
        }
        // The other thread yields to this one until it has enough, too
        done.fetch_add(1, Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < 2 {
            sched_yield().expect("it never fails");
        }
        is_over.store(true, Ordering::SeqCst);
        (begin, Snapshot::take(slot, &record))
    };
    thread::scope(|scope| {
        let threads = [0, 1].map(|own| {
            scope.spawn({
                let run = &run;
                move || run(own)
            })
        });
        let beside = beside(&is_over);
        (threads.map(|thread| thread.join().expect("a thread of the test")), beside)
    })
}

/// Keeps the calling thread off the last CPU; `None`, with the reason printed, without another.
fn leave_the_last_cpu() -> Option<()> {
    let mut set = sched_getaffinity(Pid::from_raw(0)).expect("our CPUs");
    set.unset(last_cpu()).expect("a CPU number");
    if (0..CpuSet::count()).any(|cpu| set.is_set(cpu).unwrap_or(false)) {
        sched_setaffinity(Pid::from_raw(0), &set).expect("CPUs that we may use");
        return Some(());
    }
    skip("only one CPU may be used");
    None
}

/// Linux 2dbd780e34ac: a run delay that is read twice, once for the sum and once as the last value,
/// loses what accrues in between. Here the increments of all switches add up to schedstat's growth,
/// to the nanosecond.
#[test]
fn run_delay_of_a_hundred_thousand_switches_is_published_each_nanosecond_once() {
    let Some(program) = load(2) else { return };
    let (threads, ()) = yielding(&program, switches(), |_| ());
    for (begin, end) in threads {
        let counted = end.counts.since(begin.counts);
        assert!(counted.sched_out >= switches(), "{counted:?}");
        assert_eq!(end.steal - begin.steal, end.run_delay - begin.run_delay, "{begin:?} {end:?}");
    }
}

/// Zhang, RFC of August 2026: KVM clears `preempted` before it publishes steal, and a guest that
/// reads in between charges stolen time to a task. Here a reader that finds the byte clear after it
/// was set finds steal grown, at each of a hundred thousand preemptions.
#[test]
fn steal_has_grown_when_the_byte_is_found_clear_after_a_preemption() {
    let Some(program) = load(2) else { return };
    let read = |is_over: &AtomicBool| {
        leave_the_last_cpu()?;
        let record = Record::map(&program, ADDRS[0]);
        let (mut looks, mut ended, mut early) = (0_u64, 0_u64, 0_u64);
        // Steal before the byte was found set
        let mut preempted_at = None;
        while !is_over.load(Ordering::Relaxed) {
            let before = record.words[0].load(Ordering::Acquire);
            if record.words[2].load(Ordering::Acquire) & 0xff != 0 {
                preempted_at = preempted_at.or(Some(before));
            } else if let Some(steal) = preempted_at.take() {
                ended += 1;
                early += u64::from(record.words[0].load(Ordering::Acquire) <= steal);
            }
            looks += 1;
        }
        Some((looks, ended, early))
    };
    let (_, Some((looks, ended, early))) = yielding(&program, switches(), read) else { return };
    println!("{looks} looks, {ended} preemptions seen to end, {early} before steal was published");
    assert!(ended > switches() / 100, "{looks} looks saw only {ended} preemptions end");
    assert_eq!(early, 0, "of {ended} preemptions");
}

/// psutil issue 1210: steal stuck at 100 % after months of uptime. Version and steal pass 2^32 and
/// 2^63 like any other value.
#[test]
fn record_near_the_limits_of_version_and_steal_grows_on_by_the_run_delay() {
    for (version, steal) in [(u32::MAX - 21, (1 << 63) - 1000), (u32::MAX - 1, u64::MAX - 1000), (7, 1 << 32)]
    {
        let Some(program) = load(2) else { return };
        for addr in ADDRS {
            let record = Record::map(&program, addr);
            record.words[0].store(steal, Ordering::Relaxed);
            record.words[1].store(u64::from(version), Ordering::Relaxed);
        }
        let (threads, ()) = yielding(&program, 1000, |_| ());
        for ((begin, end), addr) in threads.into_iter().zip(ADDRS) {
            let grown = end.steal.wrapping_sub(begin.steal);
            assert_eq!(grown, end.run_delay - begin.run_delay, "{begin:?} {end:?}");
            let words = Record::map(&program, addr).words();
            // The version has wrapped around; flags, beside it, are untouched
            assert!(words[1] < u64::from(u32::MAX) && words[1].is_multiple_of(2), "{words:x?}");
            assert!(end.steal != steal && grown > 1000, "{begin:?} {end:?}");
        }
    }
}

/// Linux fcb732d8f8cf (Xen's runstate): a write that may sleep cannot be made in the context
/// switch, and was skipped. Here a record is written at each switch although no page table maps its
/// page: the page belongs to the kernel's array and needs no fault.
#[test]
fn record_in_a_page_that_no_page_table_maps_is_written_at_each_switch() {
    let Some(program) = load(2) else { return };
    // The monitor's mapping of this page is never touched, so nothing has faulted it in
    let addr = RecordAddr::new(1, 0x40);
    let (cpu, done) = (last_cpu(), AtomicBool::new(false));
    thread::scope(|scope| {
        let competitor = scope.spawn(|| {
            pin_to(cpu);
            while !done.load(Ordering::Relaxed) {
                sched_yield().expect("it never fails");
            }
        });
        pin_to(cpu);
        let attached = program.attach_current_thread(vcpu(0)).expect("a fresh thread");
        let run_delay = || host::stats::own_run_delay_ns().expect("schedstat");
        let (begin, mut counts) = (run_delay(), attached.counts());
        attached.account(begin);
        attached.publish(addr);
        let published_at = counts.sched_in + counts.healed;
        spin_until("it was preempted a thousand times", || {
            sched_yield().expect("it never fails");
            counts = attached.counts();
            counts.sched_in > published_at + 1000
        });
        done.store(true, Ordering::Relaxed);
        competitor.join().expect("the competitor");
        attached.withdraw();
        counts = attached.counts();
        let record = Record::map(&program, addr);
        let written = u64::from(record.version()) / 2;
        let expected = counts.sched_in + counts.healed - published_at;
        assert!(written >= 1000 && written.abs_diff(expected) <= 1, "{written} of {expected}");
        assert!(record.steal() > 0 && record.steal() <= run_delay() - begin);
    });
}

/// Linux b043138246a4 (CVE-2019-3016): a host that writes the byte back from a stale copy loses the
/// bit by which the guest asks for a TLB flush. That feature is never offered here, and the byte is
/// ours as a whole: bits 1 to 7 that a guest adds to a preempted vCPU's byte stay for the rest of
/// that preemption, bit 0 stays what it is, and the next switch-in clears all. Version, steal and
/// counts are as without them.
#[test]
fn bits_that_a_guest_adds_to_the_byte_stay_until_the_switch_in_and_change_nothing_else() {
    let Some(program) = load(2) else { return };
    let add = |is_over: &AtomicBool| {
        leave_the_last_cpu()?;
        let record = Record::map(&program, ADDRS[0]);
        let slot = program.slot(vcpu(0));
        let (mut added, mut kept) = (0_u64, 0_u64);
        while !is_over.load(Ordering::Relaxed) {
            let timeslices = slot.counts().timeslices();
            if record.preempted() & 1 == 0 {
                continue;
            }
            added += 1;
            // Any of bits 1 to 7, in all combinations
            let bits = (added * 37 % 127 + 1) << 1;
            let before = record.words[2].fetch_or(bits, Ordering::SeqCst) & 0xff;
            let after = u64::from(record.preempted());
            // A byte that was cleared and set again was so by a switch-in, which is counted first
            if before & after & 1 == 1 && slot.counts().timeslices() == timeslices {
                kept += 1;
                assert_eq!(after, before | bits);
            }
        }
        Some((added, kept))
    };
    let (threads, Some((added, kept))) = yielding(&program, switches(), add) else { return };
    println!("bits were added {added} times, and read back {kept} times in the same preemption");
    assert!(kept > 100, "{added} {kept}");
    for (begin, end) in threads {
        assert_eq!(end.steal - begin.steal, end.run_delay - begin.run_delay, "{begin:?} {end:?}");
    }
    for addr in ADDRS {
        assert_eq!(Record::map(&program, addr).version() % 2, 0);
    }
}
