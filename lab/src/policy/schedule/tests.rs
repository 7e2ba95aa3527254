//! Unit tests of the schedule.

use super::*;

const MS: Ns = 1_000_000;

fn schedule() -> Schedule {
    let mut schedule = Schedule::new(2, &[4]);
    let mut changes = Vec::new();
    let run = |cpu, vcpu| Decision::Run { cpu, vcpu, until: 3 * MS };
    schedule.apply(0, &[run(0, 0), run(1, 1)], &mut changes).unwrap();
    let switch = |cpu, vcpu| Change::Switch { cpu, from: Assignment::Host, to: Assignment::Vcpu(vcpu) };
    assert_eq!(changes, [switch(0, 0), switch(1, 1)]);
    schedule
}

/// Applies `decisions` at 1 ms. A refusal must leave the schedule unchanged.
fn apply(schedule: &mut Schedule, decisions: &[Decision]) -> Result<Vec<Change>, Refusal> {
    let (mut changes, before) = (Vec::new(), schedule.state().clone());
    let applied = schedule.apply(MS, decisions, &mut changes);
    if applied.is_err() {
        assert!(changes.is_empty());
        assert_eq!(*schedule.state(), before);
    }
    applied.map(|()| changes)
}

#[test]
fn decisions_apply_together_or_not_at_all() {
    let run = |cpu, vcpu, until| Decision::Run { cpu, vcpu, until };
    let good = run(0, 2, 4 * MS);
    for (bad, refusal) in [
        (run(1, 3, MS), Refusal::Late),
        (Decision::Alarm { at: 0 }, Refusal::Late),
        (run(0, 3, 4 * MS), Refusal::Contradictory),
        (run(1, 2, 4 * MS), Refusal::Contradictory),
        (Decision::Throttle { vcpu: 2 }, Refusal::Contradictory),
        (Decision::Idle { cpu: 0, until: 4 * MS }, Refusal::Contradictory),
        (run(2, 3, 4 * MS), Refusal::Impossible),
        (run(1, 4, 4 * MS), Refusal::Impossible),
        (Decision::Throttle { vcpu: 4 }, Refusal::Impossible),
        (Decision::Migrate { vcpu: 0, cpu: 2 }, Refusal::Impossible),
        (Decision::Boost { cpu: 1, vcpu: 2, until: 4 * MS }, Refusal::Contradictory),
    ] {
        assert_eq!(apply(&mut schedule(), &[good, bad]), Err(refusal), "{bad:?}");
        assert_eq!(apply(&mut schedule(), &[bad, good]), Err(refusal), "{bad:?} first");
    }
    let switch = Change::Switch { cpu: 0, from: Assignment::Vcpu(0), to: Assignment::Vcpu(2) };
    assert_eq!(apply(&mut schedule(), &[good]), Ok(vec![switch]));
}

#[test]
fn alarm_that_expires_while_the_policy_decides_is_accepted_and_due() {
    let mut schedule = schedule();
    schedule.advance_to(MS);
    let alarm = [Decision::Alarm { at: MS + 1 }];
    assert_eq!(schedule.apply(2 * MS, &alarm, &mut Vec::new()), Ok(()));
    schedule.advance_to(2 * MS);
    assert_eq!(schedule.pop_due(&mut Vec::new()), Some(Event::Alarm { due: MS + 1 }));
}

#[test]
fn vcpus_swap_cpus_in_one_step_but_throttled_and_exited_ones_do_not_run() {
    let mut schedule = schedule();
    let run = |cpu, vcpu| Decision::Run { cpu, vcpu, until: 4 * MS };
    assert_eq!(apply(&mut schedule, &[run(0, 1), run(1, 0)]).unwrap().len(), 2);
    assert_eq!(apply(&mut schedule, &[Decision::Throttle { vcpu: 3 }]), Ok(vec![Change::Throttle(3)]));
    assert_eq!(apply(&mut schedule, &[run(0, 3)]), Err(Refusal::Contradictory));
    assert_eq!(apply(&mut schedule, &[Decision::Unthrottle { vcpu: 3 }, run(0, 3)]).unwrap().len(), 2);
    schedule.remove(3);
    assert_eq!(apply(&mut schedule, &[run(0, 3)]), Err(Refusal::Impossible));
    assert_eq!(
        schedule.pop_due(&mut Vec::new()),
        Some(Event::Tick { cpu: 0, due: MS }),
        "its slice ends at once"
    );
}

#[test]
fn boost_returns_the_rest_of_the_slice() {
    let mut schedule = schedule();
    let boost = Decision::Boost { cpu: 0, vcpu: 2, until: 2 * MS };
    let there = Change::Switch { cpu: 0, from: Assignment::Vcpu(0), to: Assignment::Vcpu(2) };
    assert_eq!(apply(&mut schedule, &[boost]), Ok(vec![there]));
    assert_eq!(schedule.next_due(), Some(2 * MS));
    let mut changes = Vec::new();
    schedule.advance_to(2 * MS);
    assert_eq!(schedule.pop_due(&mut changes), None, "no event for the policy");
    assert_eq!(changes, [Change::Switch { cpu: 0, from: Assignment::Vcpu(2), to: Assignment::Vcpu(0) }]);
    assert_eq!(schedule.next_due(), Some(3 * MS));
}

#[test]
fn boost_ends_in_a_tick_if_the_interrupted_slice_is_over_or_its_vcpu_moved() {
    let mut long = schedule();
    apply(&mut long, &[Decision::Boost { cpu: 0, vcpu: 2, until: 5 * MS }]).unwrap();
    long.advance_to(5 * MS);
    let first = long.pop_due(&mut Vec::new());
    assert_eq!(first, Some(Event::Tick { cpu: 0, due: 3 * MS }));
    let mut taken = schedule();
    apply(&mut taken, &[Decision::Boost { cpu: 0, vcpu: 2, until: 2 * MS }]).unwrap();
    apply(&mut taken, &[Decision::Run { cpu: 1, vcpu: 0, until: 3 * MS }]).unwrap();
    taken.advance_to(2 * MS);
    assert_eq!(taken.pop_due(&mut Vec::new()), Some(Event::Tick { cpu: 0, due: 2 * MS }));
}

#[test]
fn unanswered_tick_extends_the_slice_and_repeats() {
    let mut schedule = schedule();
    schedule.advance_to(3 * MS);
    assert_eq!(schedule.pop_due(&mut Vec::new()), Some(Event::Tick { cpu: 0, due: 3 * MS }));
    let tick = |cpu| Event::Tick { cpu, due: 3 * MS };
    assert!(schedule.complete(tick(0), false) && !schedule.complete(tick(0), false));
    assert_eq!(schedule.pop_due(&mut Vec::new()), Some(Event::Tick { cpu: 1, due: 3 * MS }));
    schedule.advance_to(3 * MS + GRACE);
    assert_eq!(schedule.pop_due(&mut Vec::new()), Some(Event::Tick { cpu: 0, due: 3 * MS + GRACE }));
}

#[test]
fn alarms_expire_in_order_and_once_and_repeat_if_the_answer_is_refused() {
    let mut schedule = schedule();
    let alarm = |at| Decision::Alarm { at: at * MS };
    apply(&mut schedule, &[alarm(8), alarm(2), alarm(8)]).unwrap();
    assert_eq!(schedule.next_due(), Some(2 * MS));
    schedule.advance_to(2 * MS);
    assert_eq!(schedule.pop_due(&mut Vec::new()), Some(Event::Alarm { due: 2 * MS }));
    assert_eq!(schedule.pop_due(&mut Vec::new()), None);
    assert_eq!(schedule.alarms, [8 * MS]);
    let alarm = Event::Alarm { due: 2 * MS };
    assert!(!schedule.complete(alarm, false) && schedule.complete(alarm, true));
    assert_eq!(schedule.alarms, [2 * MS + GRACE, 8 * MS]);
}
