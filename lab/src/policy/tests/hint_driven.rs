//! Policies that use hints from the guest.

use super::*;

#[test]
fn deferral_extends_the_slice_of_a_lock_holder_up_to_its_limit() {
    let mut harness = Harness::new("deferral:slice=3ms,grace=50us,max=2", 1, &[2]);
    let first = harness.on(0).unwrap();
    harness.set_hints(first, HOLDS);
    harness.run_until(3 * MS + 90 * US);
    assert_eq!(harness.on(0), Some(first));
    harness.run_until(3 * MS + 110 * US);
    assert_ne!(harness.on(0), Some(first), "deferred twice, by 50 us");
    assert_eq!(harness.schedule.next_due(), Some(SECOND + 6 * MS), "the next slice keeps its planned end");
    let mut harness = Harness::new("deferral:slice=3ms,grace=50us", 1, &[2]);
    harness.set_hints(first, HOLDS);
    harness.run_until(3 * MS + 20 * US);
    harness.set_hints(first, GuestHints::default());
    harness.run_until(3 * MS + 60 * US);
    assert_ne!(harness.on(0), Some(first), "it has released the lock");
}

#[test]
fn deferral_boosts_a_preempted_lock_holder_once() {
    let mut harness = Harness::new("deferral:slice=3ms,grace=50us,max=1", 1, &[2]);
    harness.run_until(3 * MS + US);
    let (off, on) = if harness.on(0) == Some(1) { (0, 1) } else { (1, 0) };
    harness.set_hints(off, HOLDS);
    harness.handle(Event::HolderPreempted { vcpu: off });
    assert_eq!(harness.on(0), Some(off));
    harness.run_until(3 * MS + 110 * US);
    assert_eq!(harness.on(0), Some(on), "the interrupted slice continues");
    harness.handle(Event::HolderPreempted { vcpu: off });
    assert_eq!(harness.on(0), Some(on), "max=1");
    assert_eq!(harness.schedule.next_due(), Some(SECOND + 6 * MS));
}

#[test]
fn deferral_with_debt_shortens_the_next_slice() {
    let mut harness = Harness::new("deferral:slice=3ms,grace=1ms,max=1,debt=on", 1, &[1]);
    harness.set_hints(0, HOLDS);
    harness.run_until(4 * MS);
    assert_eq!(harness.schedule.next_due(), Some(SECOND + 5 * MS), "its slice is 1 ms shorter");
}

#[test]
fn directed_yield_boosts_its_target_on_the_waiters_cpu() {
    for (target, expected) in [("named", 6), ("holder", 4), ("next", 4), ("any", 2)] {
        let mut harness = Harness::new(&format!("yield:target={target},grant=200us"), 2, &[8]);
        assert_eq!((harness.on(0), harness.on(1)), (Some(0), Some(1)));
        harness.set_hints(4, HOLDS);
        harness.set_hints(5, waits(10));
        harness.handle(Event::YieldTo { from: 0, to: 6 });
        assert_eq!((harness.on(0), harness.on(1)), (Some(expected), Some(1)), "{target}");
        harness.run_until(250 * US);
        assert_eq!(harness.on(0), Some(0), "the waiter continues");
    }
    let mut harness = Harness::new("yield:target=next", 2, &[8]);
    harness.set_hints(7, waits(20));
    harness.set_hints(5, waits(10));
    harness.handle(Event::YieldTo { from: 1, to: 6 });
    assert_eq!(harness.on(1), Some(5), "no holder: the longest waiter");
    harness.handle(Event::YieldTo { from: 1, to: 6 });
    assert_eq!(harness.on(1), Some(5), "the waiter was not running");
}

#[test]
fn sustained_yield_lasts_for_the_slice_and_does_not_ping_pong() {
    let mut harness = Harness::new("yield:slice=3ms,sustain=on,grant=100us,rate=6ms", 1, &[4]);
    harness.handle(Event::YieldTo { from: 0, to: 2 });
    harness.run_until(2 * MS);
    assert_eq!(harness.on(0), Some(2));
    harness.handle(Event::YieldTo { from: 2, to: 0 });
    assert_eq!(harness.on(0), Some(0), "after the ping-pong interval");
    let mut harness = Harness::new("yield:slice=3ms,sustain=on,pingpong=600us", 1, &[4]);
    harness.handle(Event::YieldTo { from: 0, to: 2 });
    harness.run_until(100 * US);
    harness.handle(Event::YieldTo { from: 2, to: 0 });
    assert_eq!(harness.on(0), Some(2));
}

#[test]
fn boost_stops_when_its_budget_is_exhausted() {
    let mut harness = Harness::new("boost:slice=3ms,section=1ms,budget=2ms", 1, &[2]);
    harness.set_hints(0, HOLDS);
    harness.run_until(3 * MS + 500 * US);
    assert_eq!(harness.on(0), Some(0), "its slice is extended");
    harness.run_until(5 * MS);
    assert_eq!(harness.on(0), Some(1));
    harness.handle(Event::Hint { vcpu: 0 });
    assert_eq!(harness.on(0), Some(0), "it is boosted");
    harness.run_until(7 * MS);
    assert_eq!(harness.on(0), Some(0), "its own slice");
    harness.run_until(10 * MS);
    let now_on = harness.on(0);
    harness.handle(Event::Hint { vcpu: 0 });
    assert_eq!(harness.on(0), now_on, "no budget left in this second");
}

#[test]
fn micro_slices_are_short_on_the_last_cpu_and_attract_waiters() {
    let switches = run("micro:slice=3ms,short=500us", 1, 2, &[8]);
    let count = |cpu| switches.iter().filter(|switch| switch.cpu == cpu).count();
    assert!(count(1) > 5 * count(0));
    let mut harness = Harness::new("micro:slice=3ms,short=500us,classify=on", 2, &[4]);
    harness.set_hints(0, waits(1));
    harness.run_until(3 * MS + 2_100 * US);
    let seen: Vec<_> = (0..20)
        .map(|step| {
            harness.run_until(6 * MS + step * 500 * US);
            harness.on(1)
        })
        .collect();
    assert!(seen.contains(&Some(0)), "{seen:?}");
}

#[test]
fn adversary_preempts_a_lock_holder_or_the_longest_waiter_while_others_wait() {
    for (target, victim) in [("holder", 0), ("next", 1)] {
        let mut harness = Harness::new(&format!("adversary:target={target},period=100us,slice=3ms"), 2, &[8]);
        harness.run_until(250 * US);
        assert_eq!((harness.on(0), harness.on(1)), (Some(0), Some(1)));
        harness.set_hints(0, HOLDS);
        harness.set_hints(1, waits(1));
        harness.set_hints(3, waits(2));
        harness.run_until(350 * US);
        assert_ne!(harness.on(victim), Some(victim), "{target}");
        assert_eq!(harness.on(1 - victim), Some(1 - victim), "{target}");
    }
    let mut harness = Harness::new("adversary:period=100us,p=0", 2, &[8]);
    harness.set_hints(0, HOLDS);
    harness.set_hints(1, waits(1));
    harness.run_until(MS);
    assert_eq!(harness.on(0), Some(0));
}

#[test]
fn folding_throttles_a_vcpu_while_steal_is_high_and_unthrottles_it_when_low() {
    let mut harness = Harness::new("folding:high=5%,low=2%,period=10ms", 2, &[3]);
    let throttled = |harness: &Harness| -> Vec<_> {
        harness.schedule.state().vcpus.iter().map(|vcpu| vcpu.is_throttled).collect()
    };
    (0..3).for_each(|vcpu| harness.schedule.set_cpu_time(vcpu, 8 * MS, 2 * MS, false));
    harness.set_hints(2, HOLDS);
    harness.run_until(11 * MS);
    assert_eq!(throttled(&harness), [false; 3], "it holds a lock");
    harness.set_hints(2, GuestHints::default());
    harness.run_until(12 * MS);
    assert_eq!(throttled(&harness), [false, false, true]);
    (0..3).for_each(|vcpu| harness.schedule.set_cpu_time(vcpu, 18 * MS, 2 * MS, false));
    harness.run_until(20 * MS);
    assert_eq!(throttled(&harness), [false; 3]);
}
