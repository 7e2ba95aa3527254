//! Unit tests of the judge.

use super::super::sampler::Transition;
use super::*;

const US: u64 = 1_000;

/// In at 0, preempted at 1000 us, in at 2000, and so on: `cycles` times.
fn switches(cycles: u64) -> Vec<Switch> {
    (0..2 * cycles)
        .map(|n| Switch {
            at_ns: n * 1_000 * US,
            kind: if n % 2 == 0 { SwitchKind::In } else { SwitchKind::Preempted },
            cpu: 0,
        })
        .collect()
}

fn samples(cycles: u64, transitions: &[(u64, bool)]) -> Samples {
    let transitions =
        transitions.iter().map(|(us, is_set)| Transition { at_ns: us * US, is_set: *is_set }).collect();
    Samples { from_ns: 0, to_ns: cycles * 2_000 * US, transitions, ..Samples::default() }
}

#[test]
fn preempted_that_follows_late_is_wrong_for_that_time_in_each_direction() {
    let judgement = judge(&switches(2), &[], &samples(2, &[(1_030, true), (2_020, false), (3_050, true)]));
    assert_eq!((judgement.sched_out.happened, judgement.sched_out.missed), (2, 0));
    assert_eq!(judgement.sched_out.latencies_ns, [30_000, 50_000]);
    assert_eq!(judgement.sched_in.latencies_ns, [20_000]);
    assert_eq!(judgement.wrongly_clear, WrongTime { total_ns: 80_000, longest_ns: 50_000 });
    assert_eq!(judgement.wrongly_set, WrongTime { total_ns: 20_000, longest_ns: 20_000 });
    assert_eq!((judgement.observed_ns, judgement.running_ns), (4_000 * US, 2_000 * US));
    assert_eq!(judgement.falsely_set, 0);
    assert_eq!(judgement.sched_out.quantile_ns(0.5), Some(30_000));
    assert_eq!(judgement.sched_out.quantile_ns(0.99), Some(50_000));
}

#[test]
fn preempted_that_is_set_just_before_the_timestamp_has_followed() {
    let mut samples = samples(1, &[(999, true)]);
    samples.transitions[0].at_ns += 900;
    let judgement = judge(&switches(1), &[], &samples);
    assert_eq!(judgement.sched_out.latencies_ns, [-100]);
    assert_eq!((judgement.falsely_set, judgement.wrongly_set.total_ns), (0, 100));
}

#[test]
fn preemption_without_the_flag_is_missed_and_the_flag_without_one_is_false() {
    let judgement = judge(&switches(2), &[], &samples(2, &[(2_500, true), (2_700, false), (3_000, true)]));
    assert_eq!((judgement.sched_out.happened, judgement.sched_out.missed), (2, 1));
    assert_eq!(judgement.falsely_set, 1);
    assert_eq!(judgement.wrongly_set.longest_ns, 200 * US);
    assert_eq!(judgement.wrongly_clear.longest_ns, 1_000 * US);
}

#[test]
fn preempted_that_is_stuck_misses_every_switch_in() {
    let judgement = judge(&switches(3), &[], &samples(3, &[(1_000, true)]));
    assert_eq!((judgement.sched_in.happened, judgement.sched_in.missed), (2, 2));
    assert_eq!((judgement.sched_out.happened, judgement.sched_out.missed), (3, 0));
}

#[test]
fn transition_without_samples_is_unobserved_and_never_correct() {
    let mut samples = samples(2, &[(3_000, true)]);
    samples.gaps = vec![(900 * US, 2_100 * US)];
    let judgement = judge(&switches(2), &[], &samples);
    assert_eq!((judgement.sched_out.missed, judgement.sched_out.unobserved), (0, 1));
    assert_eq!(judgement.wrongly_clear.total_ns, 0);
    assert_eq!(judgement.observed_ns, 2_800 * US);
}

#[test]
fn short_gaps_do_not_hide_a_missed_preemption() {
    let mut samples = samples(1, &[]);
    samples.gaps = (0..9).map(|n| ((1_000 + 100 * n) * US, (1_090 + 100 * n) * US)).collect();
    let judgement = judge(&switches(1), &[], &samples);
    assert_eq!((judgement.sched_out.missed, judgement.sched_out.unobserved), (1, 0));
}

#[test]
fn descheduled_vcpu_should_be_preempted_although_its_thread_is_blocked() {
    let switches = [(0, SwitchKind::In), (1_010, SwitchKind::Blocked), (1_900, SwitchKind::In)]
        .map(|(us, kind)| Switch { at_ns: us * US, kind, cpu: 0 });
    let at = 1_000 * US;
    let held =
        Descheduled { requested_ns: at, from_ns: at, published_ns: at, to_ns: 2_000 * US, descheduled_ns: 0 };
    let judgement = judge(&switches, &[held], &samples(2, &[(1_001, true), (2_000, false)]));
    assert_eq!((judgement.sched_out.happened, judgement.sched_out.missed), (1, 0));
    assert_eq!(judgement.sched_out.latencies_ns, [1_000]);
    assert_eq!(judgement.wrongly_set.total_ns, 0);
    // Asleep of its own will it should not be.
    let asleep = judge(&switches, &[], &samples(2, &[(1_001, true), (2_000, false)]));
    assert_eq!(asleep.falsely_set, 1);
}
