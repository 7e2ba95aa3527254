//! One vCPU thread, step by step.

use std::fs;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use protocol::VcpuId;
use steal_time::bpf::{AttachedThread, BpfError, EmptyProgram, Program, RecordAddr, RunStats, Slot};

use super::record::{Record, Snapshot};
use super::{load, skip, spin_until, vcpu};

/// Sleeps until the program reports a switch-in of the calling thread, which publishes the record.
fn sleep_and_return(slot: &Slot) {
    let ins = slot.counts().sched_in;
    spin_until("the switch-in is seen", || {
        thread::sleep(Duration::from_millis(1));
        slot.counts().sched_in > ins
    });
}

/// Runs `test` on this thread as vCPU 0 of a new program that publishes into page 0. Skips without
/// the right to load BPF programs.
fn publishing(test: impl FnOnce(&Program, &AttachedThread<'_>, &Record)) {
    let Some(program) = load(1) else { return };
    let vcpu = program.attach_current_thread(VcpuId::BOOT).expect("a fresh thread");
    let addr = RecordAddr::new(0, 0x40);
    let record = Record::map(&program, addr);
    vcpu.account(Snapshot::take(vcpu.slot(), &record).run_delay);
    vcpu.publish(addr);
    test(&program, &vcpu, &record);
}

#[test]
fn byte_of_sleeping_thread_stays_clear() {
    let Some(program) = load(1) else { return };
    let addr = RecordAddr::new(0, 0);
    let record = Record::map(&program, addr);
    let (send_tid, tid) = mpsc::channel();
    let (wake, woken) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let program = &program;
        scope.spawn(move || {
            let vcpu = program.attach_current_thread(VcpuId::BOOT).expect("a fresh thread");
            vcpu.publish(addr);
            send_tid.send(nix::unistd::gettid()).expect("the test waits");
            woken.recv().expect_err("the sender is dropped");
        });
        let stat = format!("/proc/self/task/{}/stat", tid.recv().expect("the thread sends its id"));
        let asleep = || fs::read_to_string(&stat).expect("the thread lives").contains(") S ");
        let slot = program.slot(VcpuId::BOOT);
        spin_until("the thread sleeps", || asleep() && slot.counts().blocked > 0);
        assert_eq!(record.preempted(), 0);
        drop(wake);
    });
}

#[test]
fn version_left_odd_by_the_guest_ends_even() {
    publishing(|_, vcpu, record| {
        record.words[1].store(7, Ordering::Relaxed);
        sleep_and_return(vcpu.slot());
        assert!(record.version() >= 10 && record.version() % 2 == 0, "{}", record.version());
    });
}

#[test]
fn withdrawn_record_is_not_written_while_switches_are_still_counted() {
    publishing(|program, vcpu, record| {
        sleep_and_return(vcpu.slot());
        assert_ne!(record.version(), 0);
        vcpu.withdraw();
        let before: Vec<u8> =
            program.pages().page(0).expect("an element").iter().map(|b| b.load(Ordering::Relaxed)).collect();
        for _ in 0..20 {
            sleep_and_return(vcpu.slot());
        }
        let after = program.pages().page(0).expect("an element").iter().map(|b| b.load(Ordering::Relaxed));
        assert!(after.eq(before), "{:?}", record.words());
    });
}

#[test]
fn moved_publication_leaves_the_old_record_alone() {
    publishing(|program, vcpu, old| {
        let addr = RecordAddr::new(0, 0xfc0);
        let new = Record::map(program, addr);
        vcpu.publish(addr);
        let before = old.words();
        sleep_and_return(vcpu.slot());
        assert_eq!(old.words(), before);
        assert_ne!(new.version(), 0);
    });
}

#[test]
fn byte_set_while_the_thread_runs_is_corrected_and_counted() {
    publishing(|program, vcpu, record| {
        let byte = program.pages().preempted(RecordAddr::new(0, 0x40)).expect("an element");
        let mut by_timer = 0;
        for _ in 0..50 {
            let before = vcpu.slot().counts();
            byte.store(1, Ordering::Relaxed);
            spin_until("the byte is clear", || record.preempted() == 0);
            let after = vcpu.slot().counts();
            // The timer clears the byte, or the switch-in after a preemption does, traced or
            // healed, or both come at one tick
            let came_back = after.sched_in > before.sched_in || after.healed > before.healed;
            assert!(after.corrected > before.corrected || came_back, "{before:?} {after:?}");
            by_timer += u64::from(!came_back);
        }
        let corrected = vcpu.slot().counts().corrected;
        assert!(corrected > 0 && corrected >= by_timer, "{by_timer} by timer, {corrected} corrected");
    });
}

#[test]
fn byte_of_descheduled_vcpu_stays_set_while_its_thread_runs_and_switches() {
    publishing(|program, vcpu, record| {
        let byte = program.pages().preempted(RecordAddr::new(0, 0x40)).expect("an element");
        vcpu.deschedule();
        let corrected = vcpu.slot().counts().corrected;
        for _ in 0..10 {
            sleep_and_return(vcpu.slot());
            // Some ticks long
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(20) {
                assert_eq!(record.preempted(), 1);
            }
        }
        assert_eq!(vcpu.slot().counts().corrected, corrected);

        vcpu.schedule();
        assert_eq!(record.preempted(), 0);
        // The program heals the byte again
        byte.store(1, Ordering::Relaxed);
        spin_until("the byte is clear", || record.preempted() == 0);
    });
}

#[test]
fn byte_is_cleared_by_its_thread_without_waiting_for_a_timer() {
    publishing(|program, vcpu, record| {
        let byte = program.pages().preempted(RecordAddr::new(0, 0x40)).expect("an element");
        assert!(!vcpu.clear_preempted());
        let mut found = 0;
        for _ in 0..1000 {
            byte.store(1, Ordering::Relaxed);
            found += u64::from(vcpu.clear_preempted());
            assert_eq!(record.preempted(), 0);
        }
        // A timer or a switch may be faster now and then
        assert!((900..=1000).contains(&found), "{found}");
    });
}

#[test]
fn descheduled_time_is_added_to_the_run_delay_once() {
    publishing(|_, vcpu, record| {
        let begin = Snapshot::take(vcpu.slot(), record);
        vcpu.slot().add_descheduled_ns(5_000_000_000);
        vcpu.slot().add_descheduled_ns(1);
        for _ in 0..3 {
            sleep_and_return(vcpu.slot());
        }
        let end = Snapshot::take(vcpu.slot(), record);
        assert_eq!(end.steal - begin.steal, 5_000_000_001 + end.run_delay - begin.run_delay);
    });
}

#[test]
fn thread_is_detached_when_its_guard_is_dropped() {
    let Some(program) = load(1) else { return };
    let slot = program.slot(VcpuId::BOOT);
    let vcpu = program.attach_current_thread(VcpuId::BOOT).expect("a fresh thread");
    sleep_and_return(vcpu.slot());
    drop(vcpu);
    let counts = slot.counts();
    thread::sleep(Duration::from_millis(1));
    assert_eq!(slot.counts(), counts);
    let vcpu = program.attach_current_thread(VcpuId::BOOT).expect("a detached thread");
    sleep_and_return(vcpu.slot());
}

#[test]
fn thread_attached_twice_is_refused() {
    let Some(program) = load(2) else { return };
    let _first = program.attach_current_thread(vcpu(0)).expect("a fresh thread");
    let second = program.attach_current_thread(vcpu(1));
    assert!(matches!(second, Err(BpfError::Kernel { .. })), "{second:?}");
}

#[test]
fn vcpu_that_the_program_was_not_loaded_for_is_refused() {
    let Some(program) = load(2) else { return };
    let attached = program.attach_current_thread(vcpu(2));
    assert!(matches!(attached, Err(BpfError::NoSuchVcpu { vcpus: 2, .. })), "{attached:?}");
}

#[test]
fn lost_switch_in_is_healed_and_each_is_counted_once() {
    publishing(|_, vcpu, record| {
        let slot = vcpu.slot();
        sleep_and_return(slot);
        let begin = Snapshot::take(slot, record);
        slot.lose_every(3);
        for _ in 0..300 {
            thread::sleep(Duration::from_micros(100));
        }
        slot.lose_every(0);
        sleep_and_return(slot);
        let end = Snapshot::take(slot, record);
        let counted = end.counts.since(begin.counts);
        // A third of 300, less the sleeps that ended before the thread could be switched out
        assert!(counted.healed + counted.unseen >= 80, "{counted:?}");
        assert_eq!(counted.timeslices(), end.timeslices - begin.timeslices, "{counted:?}");
        // Late publication publishes all of it
        assert_eq!(end.steal - begin.steal, end.run_delay - begin.run_delay);
    });
}

#[test]
fn run_time_is_counted_per_program_while_statistics_are_enabled() {
    let Some(program) = load(1) else { return };
    let stats = match RunStats::enable() {
        Ok(stats) => stats,
        Err(error) => return skip(&error.to_string()),
    };
    let empty = EmptyProgram::load().expect("it needs no more than ours");
    let (ours, its) = (program.switch_time().expect("loaded"), empty.time().expect("loaded"));
    for _ in 0..100 {
        thread::sleep(Duration::from_micros(50));
    }
    for (after, before) in
        [(program.switch_time().expect("loaded"), ours), (empty.time().expect("loaded"), its)]
    {
        assert!(after.runs >= before.runs + 100, "{before:?} {after:?}");
        assert!(after.mean_ns_since(before).is_some_and(|ns| ns > 0.0), "{before:?} {after:?}");
        assert_eq!(before.mean_ns_since(after), None);
    }
    drop(stats);
}
