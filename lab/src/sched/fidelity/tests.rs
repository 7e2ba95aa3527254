use super::*;
use host::perf::{Switch, SwitchKind};

const US: Ns = 1_000;
const MS: Ns = 1_000_000;

fn switch(at_ns: Ns, kind: SwitchKind) -> Switch {
    Switch { at_ns, kind, cpu: 4 }
}

fn assignment(decided_ns: Ns, from: Option<Vcpu>, to: Option<Vcpu>) -> AssignmentChange {
    AssignmentChange {
        due_ns: decided_ns - 20 * US,
        decided_ns,
        applied_ns: decided_ns + 5 * US,
        cpu: 0,
        from,
        to,
        to_host: false,
    }
}

fn plan<'a>(assignments: &'a [AssignmentChange], cpus: &'a [usize], end: Ns) -> Plan<'a> {
    Plan { assignments, cpus, period: MS..end, is_realtime: true }
}

#[test]
fn on_cpu_intervals_begin_and_end_with_the_period() {
    let log = [
        switch(3 * MS, SwitchKind::Preempted),
        switch(6 * MS, SwitchKind::In),
        switch(7 * MS, SwitchKind::Blocked),
        switch(9 * MS, SwitchKind::In),
    ];
    let interval = |from, to, was_preempted| OnCpu { from: from * MS, to: to * MS, cpu: 4, was_preempted };
    assert_eq!(
        on_cpu(&log, MS..10 * MS),
        [interval(1, 3, true), interval(6, 7, false), interval(9, 10, false)]
    );
}

#[test]
fn time_on_plan_and_delays_are_those_of_the_planned_vcpu_on_the_planned_cpu() {
    let decided = [
        assignment(MS, None, Some(0)),
        assignment(4 * MS, Some(0), Some(1)),
        assignment(7 * MS, Some(1), None),
    ];
    let interval = |from, to| OnCpu { from, to, cpu: 4, was_preempted: true };
    let ran =
        [vec![interval(MS + 30 * US, 4 * MS + 10 * US)], vec![interval(4 * MS + 40 * US, 7 * MS + 5 * US)]];
    let fidelity = Fidelity::new(&plan(&decided, &[4], 10 * MS), &ran);
    assert_eq!(fidelity.planned, 6 * MS);
    assert_eq!(fidelity.on_plan, 6 * MS - 30 * US - 40 * US);
    assert_eq!(fidelity.ran, fidelity.on_plan + 15 * US);
    assert_eq!(fidelity.dispatch_delays, [40 * US, 30 * US]);
    assert_eq!(fidelity.stop_delays, [5 * US, 10 * US]);
    assert_eq!((fidelity.missed, decided.map(|change| change.decision_delay_ns())), (0, [20 * US; 3]));
    let elsewhere = Fidelity::new(&plan(&decided, &[5], 10 * MS), &ran);
    assert_eq!((elsewhere.on_plan, elsewhere.missed), (0, 2));
}

#[test]
fn decision_that_the_next_one_overtakes_is_missed() {
    let decided = [assignment(MS, None, Some(0)), assignment(2 * MS, Some(0), Some(1))];
    let ran = [vec![OnCpu { from: 3 * MS, to: 4 * MS, cpu: 4, was_preempted: false }], Vec::new()];
    let fidelity = Fidelity::new(&plan(&decided, &[4], 10 * MS), &ran);
    assert_eq!((fidelity.missed, fidelity.on_plan, fidelity.dispatch_delays.len()), (2, 0, 0));
}

#[test]
fn gap_of_the_fair_server_is_named_and_a_halt_is_no_gap() {
    let decided = [assignment(MS, None, Some(0))];
    let plan = |is_realtime| Plan { is_realtime, ..plan(&decided, &[4], 2000 * MS) };
    let interval = |from, to, was_preempted| OnCpu { from: from * MS, to: to * MS, cpu: 4, was_preempted };
    let taken = [vec![
        interval(1, 900, true),
        interval(950, 1000, true),
        interval(1000, 1200, true),
        interval(1300, 1400, false),
        interval(1450, 1500, false),
    ]];
    let gaps = Fidelity::new(&plan(true), &taken).gaps;
    let gap = |at, length, holes, cause| Gap { cpu: 4, at_ns: at * MS, length_ns: length * MS, holes, cause };
    assert_eq!(gaps, [gap(899, 50, 1, GapCause::FairServer), gap(1199, 100, 1, GapCause::Other)]);
    let fair = Fidelity::new(&plan(false), &taken).gaps;
    assert_eq!(fair[0], gap(899, 50, 1, GapCause::Other), "in the fair class any task preempts");
    // The fair server may give its time in pieces.
    let pieces = [(0..8).map(|piece| interval(1 + 20 * piece, 15 + 20 * piece, true)).collect::<Vec<_>>()];
    let gaps = Fidelity::new(&plan(true), &pieces).gaps;
    assert_eq!(gaps, [gap(14, 42, 7, GapCause::FairServer)]);
}
