use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;

use super::*;
use host::kick;

/// A vCPU thread whose guest does nothing but be in the guest.
fn vcpu_thread(
    control: &VcpuControl,
    vcpu: VcpuId,
    inside: &AtomicUsize,
    mut exits: impl FnMut(&VcpuControl),
) {
    kick::block().unwrap();
    let handle = control.enter(vcpu);
    loop {
        match control.request(&handle) {
            VcpuRequest::Run => {
                inside.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                exits(control);
            }
            VcpuRequest::Stop => control.wait_exclusive(),
            VcpuRequest::Deschedule => drop(control.wait_while_descheduled(&handle)),
            VcpuRequest::Pause => {
                control.begin_pause();
                while control.request(&handle) == VcpuRequest::Pause {
                    thread::yield_now();
                }
                control.end_pause();
            }
            VcpuRequest::Finish => break,
        }
    }
    control.leave(vcpu);
}

/// Threads that all want to be alone, `times` times each; `beside` happens meanwhile. Gives how often somebody was in
/// the guest while another was alone.
fn all_want_to_be_alone(times: usize, beside: impl FnOnce(&VcpuControl, &AtomicUsize)) -> usize {
    const THREADS: usize = 6;
    let (control, inside, done) = (VcpuControl::new(), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = VcpuId::first(THREADS)
            .map(|vcpu| {
                let (control, inside, done) = (&control, &inside, &done);
                scope.spawn(move || {
                    let (mut so_far, mut violations) = (0, 0);
                    vcpu_thread(control, vcpu, inside, |control| {
                        if so_far < times {
                            so_far += 1;
                            control.stop_all(|_| violations += inside.load(Ordering::SeqCst));
                            if so_far == times && done.fetch_add(1, Ordering::SeqCst) + 1 == THREADS {
                                control.end();
                            }
                        }
                    });
                    violations
                })
            })
            .collect();
        beside(&control, &inside);
        let violations = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(control.threads().is_empty());
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
    let violations = all_want_to_be_alone(300, |control, inside| {
        for _ in 0..100 {
            control.pause().unwrap();
            assert_eq!(control.pause(), Err(AlreadyPaused));
            for _ in 0..10 {
                seen_inside += inside.load(Ordering::SeqCst);
                thread::yield_now();
            }
            control.resume();
        }
    });
    assert_eq!((violations, seen_inside), (0, 0));
}

#[test]
fn guest_that_is_paused_from_the_start_is_entered_by_nobody_and_can_be_ended() {
    let (control, inside) = (VcpuControl::paused(), AtomicUsize::new(0));
    let exits = AtomicUsize::new(0);
    thread::scope(|scope| {
        let count = |_: &VcpuControl| {
            exits.fetch_add(1, Ordering::SeqCst);
        };
        let threads = VcpuId::first(2).map(|vcpu| {
            let (control, inside) = (&control, &inside);
            scope.spawn(move || vcpu_thread(control, vcpu, inside, count))
        });
        let threads: Vec<_> = threads.collect();
        while control.threads().len() < 2 {
            thread::yield_now();
        }
        control.end();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert_eq!(exits.load(Ordering::SeqCst), 0);
}

#[test]
fn end_sends_home_threads_that_are_there_and_those_that_come_later() {
    let control = Arc::new(VcpuControl::new());
    let inside = Arc::new(AtomicUsize::new(0));
    let spawn = |vcpu| {
        let (control, inside) = (Arc::clone(&control), Arc::clone(&inside));
        thread::spawn(move || vcpu_thread(&control, vcpu, &inside, |_| {}))
    };
    let early = spawn(VcpuId::BOOT);
    while control.threads().is_empty() {
        thread::yield_now();
    }
    control.end();
    early.join().unwrap();
    spawn(VcpuId::BOOT).join().unwrap();
}

#[test]
fn held_thread_stays_out_of_the_guest_rests_when_told_to_and_is_no_hindrance() {
    let held = VcpuId::BOOT;
    let mut seen_resting = 0;
    let violations = all_want_to_be_alone(300, |control, inside| {
        for _ in 0..100 {
            // Until it has entered there is nobody to hold.
            while !control.deschedule(held) && !control.threads().is_empty() {
                thread::yield_now();
            }
            control.pause().unwrap();
            seen_resting += inside.load(Ordering::SeqCst);
            control.resume();
            thread::yield_now();
            control.schedule(held);
        }
    });
    assert_eq!((violations, seen_resting), (0, 0));
}

#[test]
fn held_thread_goes_home_and_one_alone_is_released_at_the_moment_that_it_is_told() {
    let (control, inside) = (VcpuControl::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu_thread(&control, VcpuId::BOOT, &inside, |_| {}));
        while !control.deschedule(VcpuId::BOOT) {
            thread::yield_now();
        }
        control.end();
        thread.join().unwrap();
    });
    let control = VcpuControl::new();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            kick::block().unwrap();
            let handle = control.enter(VcpuId::BOOT);
            while control.request(&handle) != VcpuRequest::Deschedule {
                thread::yield_now();
            }
            control.wait_while_descheduled(&handle)
        });
        while !control.deschedule(VcpuId::BOOT) {
            thread::yield_now();
        }
        while !control.lock().none_runs(None) {
            thread::yield_now();
        }
        let before = clock::monotonic_ns();
        control.schedule(VcpuId::BOOT);
        let after = clock::monotonic_ns();
        assert!((before..=after).contains(&thread.join().unwrap()));
    });
}

#[test]
fn pause_waits_for_a_held_thread_to_rest() {
    let (control, inside) = (VcpuControl::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu_thread(&control, VcpuId::BOOT, &inside, |_| {}));
        while !control.deschedule(VcpuId::BOOT) || !control.lock().none_runs(None) {
            thread::yield_now();
        }
        for _ in 0..20 {
            control.pause().unwrap();
            let is_at_rest = control.lock().members.iter().all(|member| member.place == Whereabouts::Paused);
            control.resume();
            assert!(
                is_at_rest || {
                    control.end();
                    false
                }
            );
            while control.lock().members.iter().any(|member| member.place != Whereabouts::Descheduled) {
                thread::yield_now();
            }
        }
        control.end();
        thread.join().unwrap();
    });
}
