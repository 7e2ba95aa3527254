//! Tests of all formats together.

use super::*;

const FTRACE: &str = "\
# tracer: nop
          <idle>-0       [001] d..2.   100.000000: sched_switch: prev_comm=swapper/1 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=CPU 0/KVM next_pid=71 next_prio=120
       CPU 0/KVM-71      [001] d..2.   100.003000: sched_switch: prev_comm=CPU 0/KVM prev_pid=71 prev_prio=120 prev_state=R ==> next_comm=make next_pid=9 next_prio=120
            make-9       [001] d..2.   100.004500: sched_switch: prev_comm=make prev_pid=9 prev_prio=120 prev_state=S ==> next_comm=CPU 1/KVM next_pid=72 next_prio=120
       CPU 1/KVM-72      [001] d..2.   100.005000: sched_switch: prev_comm=CPU 1/KVM prev_pid=72 prev_prio=120 prev_state=S ==> next_comm=swapper/1 next_pid=0 next_prio=120
";

const PERF: &str = "\
 swapper     0 [003]  7.500000000: sched:sched_switch: swapper/3:0 [120] R ==> vcpu1:40 [120]
 vcpu1      40 [003]  7.500250000: sched:sched_switch: vcpu1:40 [120] R ==> vcpu0:41 [120]
 vcpu0      41 [003]  7.500750000: sched:sched_switch: vcpu0:41 [120] S ==> swapper/3:0 [120]
";

/// The same schedule as [`PERF`].
const TIMEHIST: &str = "\
           time    cpu  task name                       wait time  sch delay   run time
                        [tid/pid]                          (msec)     (msec)     (msec)
--------------- ------  ------------------------------  ---------  ---------  ---------
       7.500000 [0003]  <idle>                              0.000      0.000      0.000
       7.500250 [0003]  vcpu1[40/39]                        0.000      0.000      0.250
       7.500750 [0003]  vcpu0[41/39]                        0.000      0.000      0.500
";

fn slice(at: Ns, cpu: Cpu, vcpu: Option<Vcpu>, length: Ns) -> TracedSlice {
    TracedSlice { at, cpu, vcpu, length }
}

fn parsed(text: &str) -> Result<Vec<TracedSlice>, String> {
    parse(text, &ThreadPattern::new(VCPU_NAMES).unwrap())
}

#[test]
fn slices_are_parsed_from_csv_ftrace_and_perf() {
    let csv = "at_ns,cpu,vcpu,length_ns\n# one idles\n500,0,1,100\n600,0,-,50\n";
    assert_eq!(parsed(csv).unwrap(), [slice(0, 0, Some(1), 100), slice(100, 0, None, 50)]);
    let us = |us: Ns| us * 1_000;
    let ftrace = [
        slice(0, 0, Some(0), us(3_000)),
        slice(us(3_000), 0, None, us(1_500)),
        slice(us(4_500), 0, Some(1), us(500)),
    ];
    assert_eq!(parsed(FTRACE).unwrap(), ftrace);
    for perf in [PERF, TIMEHIST] {
        assert_eq!(
            parsed(perf).unwrap(),
            [slice(0, 0, Some(1), us(250)), slice(us(250), 0, Some(0), us(500))]
        );
    }
}

#[test]
fn threads_are_vcpus_if_their_names_match_the_pattern() {
    let of_make = parse(FTRACE, &ThreadPattern::new("^make$").unwrap()).unwrap();
    let busy: Vec<_> = of_make.iter().filter(|slice| slice.vcpu.is_some()).collect();
    assert_eq!(busy, [&slice(3_000_000, 0, Some(0), 1_500_000)]);
    for text in [FTRACE, PERF, TIMEHIST] {
        let none = parse(text, &ThreadPattern::new("^nothing$").unwrap()).unwrap_err();
        assert!(none.contains("threads=^nothing$ (it has "), "{none}");
    }
}

#[test]
fn invalid_trace_is_refused_with_its_line() {
    assert_eq!(parsed("1,0,0,5\n1,0,0").unwrap_err(), "line 2 is not at_ns,cpu,vcpu,length_ns: \"1,0,0\"");
    assert!(parsed("1,0,-1,5").unwrap_err().starts_with("line 1"));
    assert!(parsed("").is_err());
    assert!(parsed("sched_switch: nonsense").unwrap_err().starts_with("line 1"));
    assert!(parsed("x [0] 1.0: sched_switch: a:1 [120] R ==> make:9 [120]").is_err(), "no vCPU in it");
    for broken in [
        "\u{0}",
        "sched_switch:==>",
        "[] 1.: sched_switch: ==> next_comm=",
        "[9] 1.9999999999: sched_switch: ==> a:1",
    ] {
        assert!(parsed(broken).is_err(), "{broken:?}");
    }
}

#[test]
fn times_that_overflow_or_outlast_a_trace_are_refused_with_their_line() {
    for text in [
        "1,0,0,5\n18446744073709551615,0,0,18446744073709551615",
        "1,0,0,5\n2,0,0,18446744073709551615",
        "1,0,0,5\n86400000000002,0,0,1",
        "0.0 [0] vcpu0[1] 0.0 0.0 0.0\n18446744073.0 [0] vcpu0[1] 0.0 0.0 18446744073000.0\n",
    ] {
        let refused = parsed(text).unwrap_err();
        assert!(refused.contains("line 2 "), "{refused}");
    }
    assert_eq!(parsed("7,0,0,86400000000000").unwrap().len(), 1);
}

/// Only a panic fails this test: any result is accepted.
#[test]
fn corrupt_text_never_panics() {
    let mut rng = fastrand::Rng::with_seed(19);
    let alphabet: Vec<char> = "0 1.[]/:,-\n=>x\u{e4}CPU/KVM sched_switch:".chars().collect();
    for sound in [FTRACE, PERF, TIMEHIST, "0,0,0,5\n5,0,-,7\n"] {
        for _ in 0..3_000 {
            let mut text: Vec<char> = sound.chars().collect();
            for _ in 0..rng.usize(1..8) {
                let at = rng.usize(..text.len());
                text[at] = alphabet[rng.usize(..alphabet.len())];
            }
            text.truncate(rng.usize(..=text.len()));
            let _ = parsed(&text.into_iter().collect::<String>());
        }
    }
}
