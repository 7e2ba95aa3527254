use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;

use super::*;
use host::kick;

/// A vCPU thread whose guest does nothing but be in the guest.
fn vcpu_thread(gate: &Gate, vcpu: VcpuId, inside: &AtomicUsize, mut exits: impl FnMut(&Gate)) {
    kick::block().unwrap();
    let seat = gate.enter(vcpu);
    loop {
        match gate.wanted(&seat) {
            Wanted::Nothing => {
                inside.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                exits(gate);
            }
            Wanted::Park => gate.park(),
            Wanted::Hold => drop(gate.wait_while_held(&seat)),
            Wanted::Rest => {
                gate.begin_rest();
                while gate.wanted(&seat) == Wanted::Rest {
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

#[test]
fn held_thread_stays_out_of_the_guest_rests_when_told_to_and_is_no_hindrance() {
    let held = VcpuId::BOOT;
    let mut seen_resting = 0;
    let violations = all_want_to_be_alone(300, |gate, inside| {
        for _ in 0..100 {
            // Until it has entered there is nobody to hold.
            while !gate.hold(held) && !gate.threads().is_empty() {
                thread::yield_now();
            }
            gate.pause().unwrap();
            seen_resting += inside.load(Ordering::SeqCst);
            gate.resume();
            thread::yield_now();
            gate.release(held);
        }
    });
    assert_eq!((violations, seen_resting), (0, 0));
}

#[test]
fn held_thread_goes_home_and_one_alone_is_released_at_the_moment_that_it_is_told() {
    let (gate, inside) = (Gate::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu_thread(&gate, VcpuId::BOOT, &inside, |_| {}));
        while !gate.hold(VcpuId::BOOT) {
            thread::yield_now();
        }
        gate.end();
        thread.join().unwrap();
    });
    let gate = Gate::new();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            kick::block().unwrap();
            let seat = gate.enter(VcpuId::BOOT);
            while gate.wanted(&seat) != Wanted::Hold {
                thread::yield_now();
            }
            gate.wait_while_held(&seat)
        });
        while !gate.hold(VcpuId::BOOT) {
            thread::yield_now();
        }
        while !gate.lock().none_runs(None) {
            thread::yield_now();
        }
        let before = clock::monotonic_ns();
        gate.release(VcpuId::BOOT);
        let after = clock::monotonic_ns();
        assert!((before..=after).contains(&thread.join().unwrap()));
    });
}

#[test]
fn pause_waits_for_a_held_thread_to_rest() {
    let (gate, inside) = (Gate::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let thread = scope.spawn(|| vcpu_thread(&gate, VcpuId::BOOT, &inside, |_| {}));
        while !gate.hold(VcpuId::BOOT) || !gate.lock().none_runs(None) {
            thread::yield_now();
        }
        for _ in 0..20 {
            gate.pause().unwrap();
            let is_at_rest = gate.lock().members.iter().all(|member| member.place == Whereabouts::Resting);
            gate.resume();
            assert!(
                is_at_rest || {
                    gate.end();
                    false
                }
            );
            while gate.lock().members.iter().any(|member| member.place != Whereabouts::Held) {
                thread::yield_now();
            }
        }
        gate.end();
        thread.join().unwrap();
    });
}
