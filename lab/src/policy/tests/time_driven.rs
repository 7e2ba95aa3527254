//! Policies that use only time, CPU time or a trace.

use super::*;

#[test]
fn round_robin_shares_equally_and_keeps_its_grid_when_events_are_late() {
    for share in shares(&run("rr:slice=3ms", 1, 2, &[8]), 8) {
        assert!((share - 0.25).abs() < 0.005, "{share}");
    }
    let mut harness = Harness::new("rr:slice=3ms", 1, &[2]);
    harness.schedule.advance_to(SECOND + 3 * MS + 40 * US);
    let due = harness.schedule.pop_due(&mut harness.changes).expect("the slice has ended");
    harness.handle(due);
    assert_eq!(harness.schedule.next_due(), Some(SECOND + 6 * MS));
    // A missed slice is lost, not made up for.
    harness.schedule.advance_to(SECOND + 10 * MS);
    let due = harness.schedule.pop_due(&mut harness.changes).expect("the slice has ended");
    harness.handle(due);
    assert_eq!(harness.schedule.next_due(), Some(SECOND + 12 * MS));
}

#[test]
fn aligned_slices_end_together_and_staggered_ones_do_not() {
    let ends = |text| {
        let at =
            |cpu| run(text, 1, 2, &[4]).into_iter().filter(move |s| s.cpu == cpu).map(|s| s.at % (3 * MS));
        (at(0).nth(3), at(1).nth(3))
    };
    let (first, second) = ends("rr:slice=3ms");
    assert_eq!(first, second);
    let (first, second) = ends("rr:slice=3ms,phase=staggered");
    assert_eq!(first.unwrap().abs_diff(second.unwrap()), 3 * MS / 2);
}

#[test]
fn jittered_slices_have_the_mean_and_the_bounds_of_their_distribution() {
    let switches = run("rr:slice=1ms,jitter=100%", 5, 1, &[2]);
    let mean = SECOND as f64 / switches.len() as f64;
    assert!((0.8e6..1.2e6).contains(&mean), "{mean}");
    let lengths = || switches.windows(2).map(|pair| pair[1].at - pair[0].at);
    assert!(lengths().all(|length| (100 * US..=2 * MS).contains(&length)));
    assert!(lengths().any(|length| length < 400 * US) && lengths().any(|length| length > 1_600 * US));
}

#[test]
fn gang_runs_siblings_together_and_pads_with_idle_or_other_vcpus() {
    let together = |text: &str, guests: &[usize]| {
        let mut harness = Harness::new(text, 2, guests);
        (0..12_u64)
            .map(|slice| {
                harness.run_until(slice * 3 * MS + MS);
                (harness.on(0), harness.on(1))
            })
            .collect::<Vec<_>>()
    };
    let guest = |vcpu: Option<Vcpu>| vcpu.map(|vcpu| vcpu / 2);
    let seen = together("gang:slice=3ms", &[2, 2]);
    assert!(seen.iter().all(|(a, b)| guest(*a) == guest(*b) && a.is_some()), "{seen:?}");
    assert!(seen.iter().any(|(a, _)| guest(*a) == Some(0)) && seen.iter().any(|(a, _)| guest(*a) == Some(1)));
    // A guest of three vCPUs is a gang of two and a gang of one.
    assert!(together("gang", &[3]).iter().any(|(a, b)| a.is_none() != b.is_none()));
    assert!(together("gang:pad=fill", &[3]).iter().all(|(a, b)| a.is_some() && b.is_some()));
}

#[test]
fn throttled_guest_stops_until_the_period_ends() {
    let mut harness = Harness::new("throttle:quota=4ms,period=10ms,slice=1ms", 2, &[2]);
    let throttled =
        |harness: &Harness| harness.schedule.state().vcpus.iter().filter(|vcpu| vcpu.is_throttled).count();
    for step in 1..=3 {
        (0..2).for_each(|vcpu| harness.schedule.set_cpu_time(vcpu, step * MS, 0, false));
        harness.run_until(step * MS);
    }
    assert_eq!(throttled(&harness), 2);
    harness.run_until(9 * MS);
    assert_eq!(throttled(&harness), 2);
    harness.run_until(10 * MS + US);
    assert_eq!(throttled(&harness), 0);
}

#[test]
fn credit_follows_weights_and_caps() {
    let by_weight = shares(&run("credit:weight=512/512/256/256,slice=10ms", 1, 2, &[4]), 4);
    assert!((by_weight[0] / by_weight[2] - 2.0).abs() < 0.2, "{by_weight:?}");
    for share in shares(&run("credit:cap=20,slice=5ms", 1, 1, &[2]), 2) {
        assert!((0.17..=0.27).contains(&share), "{share}");
    }
}

#[test]
fn rtds_runs_each_vcpu_for_its_budget_and_beyond_it_only_with_extra() {
    for share in shares(&run("rtds:period=10ms,budget=3ms", 1, 1, &[2]), 2) {
        assert!((share - 0.3).abs() < 0.01, "{share}");
    }
    let total: f64 = shares(&run("rtds:period=10ms,budget=3ms,extra=on", 1, 1, &[2]), 2).iter().sum();
    assert!(total > 0.99, "{total}");
}

#[test]
fn relaxed_throttles_the_leader_until_its_siblings_catch_up() {
    let mut harness = Harness::new("relaxed:skew=3ms,restart=1ms,period=1ms", 2, &[2]);
    harness.schedule.set_cpu_time(0, 4 * MS, 0, false);
    harness.run_until(MS);
    assert!(
        harness.schedule.state().vcpus[0].is_throttled && !harness.schedule.state().vcpus[1].is_throttled
    );
    harness.schedule.set_cpu_time(1, 2 * MS, 0, false);
    harness.run_until(2 * MS);
    assert!(harness.schedule.state().vcpus[0].is_throttled, "a lead of 2 ms is not below restart");
    harness.schedule.set_cpu_time(1, 3 * MS + 1, 0, false);
    harness.run_until(3 * MS);
    assert!(!harness.schedule.state().vcpus[0].is_throttled);
    harness.schedule.set_cpu_time(1, 3 * MS + 1, 0, true);
    harness.schedule.set_cpu_time(0, 20 * MS, 0, false);
    harness.run_until(4 * MS);
    assert!(!harness.schedule.state().vcpus[0].is_throttled, "an idle sibling does not hold it back");
}

#[test]
fn replay_follows_the_trace_and_repeats_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("trace.csv");
    std::fs::write(&path, "0,0,1,2000000\n2000000,0,-,1000000\n3000000,0,0,1000000\n")
        .expect("a temporary file");
    let text = format!("replay:scale=200,file={}", path.display());
    let switches: Vec<_> = run(&text, 1, 1, &[2]).iter().map(|s| (s.at - SECOND, s.vcpu)).take(5).collect();
    let ms = |at: Ns, vcpu| (at * MS, vcpu);
    assert_eq!(switches, [ms(0, Some(1)), ms(4, None), ms(6, Some(0)), ms(8, Some(1)), ms(12, None)]);
}
