use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;

use host::{clock, kick};

use super::*;

/// Runs the loop of a vCPU thread. `inside` counts the threads inside the guest, and `exits` is
/// called after each exit.
fn vcpu_thread(
    control: &VcpuControl,
    vcpu: VcpuId,
    inside: &AtomicUsize,
    mut exits: impl FnMut(&VcpuControl),
) {
    kick::block().unwrap();
    let handle = control.attach(vcpu);
    loop {
        match control.request(&handle) {
            VcpuRequest::Run => {
                inside.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                exits(control);
            }
            VcpuRequest::Stop => control.wait_exclusive(),
            VcpuRequest::Deschedule => {
                control.wait_while_descheduled(&handle, own_times());
            }
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
    control.detach(vcpu);
}

/// Makes six threads call `stop_all` `times` times each, while the caller runs `beside`. Returns
/// how often a thread was inside the guest while another one was exclusive.
fn stop_all_from_every_thread(times: usize, beside: impl FnOnce(&VcpuControl, &AtomicUsize)) -> usize {
    const THREADS: usize = 6;
    let (control, inside, done) = (VcpuControl::new(), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = VcpuId::first(THREADS)
            .map(|vcpu| {
                let (control, inside, done) = (&control, &inside, &done);
                scope.spawn(move || {
                    let (mut calls, mut violations) = (0, 0);
                    vcpu_thread(control, vcpu, inside, |control| {
                        if calls < times {
                            calls += 1;
                            control.stop_all(|_| violations += inside.load(Ordering::SeqCst));
                            if calls == times && done.fetch_add(1, Ordering::SeqCst) + 1 == THREADS {
                                control.finish();
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
fn exclusive_thread_finds_no_other_thread_in_the_guest_even_when_all_stop_all_at_once() {
    assert_eq!(stop_all_from_every_thread(200, |_, _| {}), 0);
}

#[test]
fn paused_guest_has_no_thread_inside_even_while_all_stop_all() {
    let mut seen_inside = 0;
    let violations = stop_all_from_every_thread(300, |control, inside| {
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
fn guest_paused_from_the_start_is_never_entered_and_can_finish() {
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
        control.finish();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert_eq!(exits.load(Ordering::SeqCst), 0);
}

#[test]
fn finish_ends_attached_threads_and_those_that_attach_later() {
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
    control.finish();
    early.join().unwrap();
    spawn(VcpuId::BOOT).join().unwrap();
}

#[test]
fn descheduled_thread_stays_outside_and_neither_pause_nor_stop_all_waits_for_it() {
    let descheduled = VcpuId::BOOT;
    let mut seen_paused = 0;
    let violations = stop_all_from_every_thread(300, |control, inside| {
        for _ in 0..100 {
            // The thread may not have attached yet.
            while !control.deschedule(descheduled) && !control.threads().is_empty() {
                thread::yield_now();
            }
            control.pause().unwrap();
            seen_paused += inside.load(Ordering::SeqCst);
            control.resume();
            thread::yield_now();
            control.schedule(descheduled);
        }
    });
    assert_eq!((violations, seen_paused), (0, 0));
}

#[test]
fn descheduled_thread_finishes_and_returns_when_it_was_scheduled() {
    let (control, inside) = (VcpuControl::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu_thread(&control, VcpuId::BOOT, &inside, |_| {}));
        while !control.deschedule(VcpuId::BOOT) {
            thread::yield_now();
        }
        control.finish();
        thread.join().unwrap();
    });
    let (control, began_ns) = (VcpuControl::new(), clock::monotonic_ns());
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            kick::block().unwrap();
            let handle = control.attach(VcpuId::BOOT);
            while control.request(&handle) != VcpuRequest::Deschedule {
                thread::yield_now();
            }
            control.wait_while_descheduled(&handle, own_times())
        });
        while !control.deschedule(VcpuId::BOOT) {
            thread::yield_now();
        }
        while !control.lock().none_runs(None) {
            thread::yield_now();
        }
        control.schedule(VcpuId::BOOT);
        let slept_ns = thread.join().unwrap().slept_ns();
        assert!(slept_ns <= clock::monotonic_ns() - began_ns, "{slept_ns} ns");
    });
}

#[test]
fn pause_waits_until_a_descheduled_thread_is_paused() {
    let (control, inside) = (VcpuControl::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu_thread(&control, VcpuId::BOOT, &inside, |_| {}));
        while !control.deschedule(VcpuId::BOOT) || !control.lock().none_runs(None) {
            thread::yield_now();
        }
        for _ in 0..20 {
            control.pause().unwrap();
            let is_paused = control.lock().members.iter().all(|member| member.location == Location::Paused);
            control.resume();
            assert!(
                is_paused || {
                    control.finish();
                    false
                }
            );
            while control.lock().members.iter().any(|member| member.location != Location::Descheduled) {
                thread::yield_now();
            }
        }
        control.finish();
        thread.join().unwrap();
    });
}
