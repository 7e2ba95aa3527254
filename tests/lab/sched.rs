//! Guests under a policy: decisions take effect by either mechanism, and the run ends cleanly with
//! its figures whatever the policy does.

use std::fs;
use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use host::facts::HostFacts;
use host::thread::{Class, set_own_class};
use lab::guest::LabConfig;
use lab::policy::catalogue::PolicyChoice;
use lab::policy::{Decision, Event, Policy, RunQueues, SchedState};
use lab::sched::SchedConfig;
use lab::sched::StopReason;
use lab::sched::mechanism::{MechanismChoice, MechanismKind};
use lab::session::{self, SessionConfig, SessionResult, SessionRun};
use serde_json::Value;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;

use crate::support::{
    Fixture, alone, cpus, end_of, has, judge_undisturbed, kill, needs, skip, start, vmm_lab,
    vmm_lab_in_time_namespace, vmm_run, wait_for, wait_for_cpu_time,
};

const MS: u64 = 1_000_000;

/// The mechanisms that this host allows.
pub(crate) fn mechanisms() -> Vec<MechanismKind> {
    if !has::kvm() {
        return Vec::new();
    }
    let allowed = thread::spawn(|| set_own_class(Class::Fifo(1)).is_ok()).join().unwrap();
    if !allowed {
        skip("mechanism class: no right to a real-time class");
        return vec![MechanismKind::Deschedule];
    }
    vec![MechanismKind::Deschedule, MechanismKind::Class]
}

/// Runs `guests` guests of two vCPUs per CPU each.
fn schedule(
    policy: PolicyChoice,
    mechanism: MechanismKind,
    guests: usize,
    params: &str,
) -> (SessionRun, SessionResult) {
    let vcpus = 2 * cpus().count();
    let timeout = Duration::from_secs(40);
    let guest = LabConfig::embedded(vcpus, cpus(), PublisherKind::Monitor, params.to_owned(), timeout);
    let config = SessionConfig {
        guest,
        guests,
        sched: Some(SchedConfig {
            policy,
            mechanism: MechanismChoice::Only(mechanism),
            seed: 7,
            starvation: Duration::from_secs(1),
            traces: false,
        }),
        cpu_hog: None,
    };
    let run = alone(|| session::run(&config, io::sink, Instant::now())).expect("the guests can be run");
    let result = run.result(&HostFacts::probe(), None);
    (run, result)
}

fn catalogued(text: &str) -> PolicyChoice {
    text.parse().expect("a policy of the catalogue")
}

const CONTEND: &str = "job=contend lock=tas wait=spin warmup_ms=50 duration_ms=300";

#[test]
fn round_robin_follows_its_dry_run_and_every_vcpu_progresses() {
    judge_undisturbed(|| {
        for mechanism in mechanisms() {
            let (run, result) = schedule(catalogued("rr:slice=2ms"), mechanism, 1, CONTEND);
            assert!(
                matches!(run.guests[0].monitor.outcome, Outcome::Reset),
                "{:?}",
                run.guests[0].monitor.outcome
            );
            let sched = result.sched.expect("it was scheduled");
            assert_eq!((sched.mechanism, sched.stop_reason.as_deref()), (mechanism, None));
            assert!(sched.decisions > 50, "{sched:?}");
            assert_eq!(sched.preemptions + cpus().count() as u64, sched.decisions);
            // The dry run ends with the run, which may have lost a slice to the host. The order is
            // the same
            assert!(sched.drift.same + 4 >= sched.decisions.min(sched.drift.dry_run), "{:?}", sched.drift);
            let figures = &result.guests[0].vcpus;
            assert!(figures.iter().all(|vcpu| vcpu.acquisitions > 0), "{figures:?}");
        }
    });
}

#[test]
fn descheduled_vcpu_is_marked_and_its_time_is_steal() {
    needs!(kvm);
    judge_undisturbed(|| {
        let (run, result) = schedule(catalogued("rr:slice=2ms"), MechanismKind::Deschedule, 1, CONTEND);
        let sched = result.sched.as_ref().expect("it was scheduled");
        assert!(sched.preempted_delay.count > 0);
        let held: u64 = run.guests[0]
            .vcpus
            .iter()
            .flat_map(|vcpu| &vcpu.descheduled)
            .map(|held| held.descheduled_ns)
            .sum();
        assert!(held > 0);
        let window = result.guests[0].window.as_ref().expect("a window");
        // Half of the vCPUs are descheduled at any time
        assert!(
            window.guest_steal_ns > window.length_ns / 2,
            "{} of {}",
            window.guest_steal_ns,
            window.length_ns
        );
        assert!(
            run.guests[0]
                .vcpus
                .iter()
                .all(|vcpu| vcpu.stats.counts.is_some_and(|counts| counts.deschedules > 0))
        );
    });
}

#[test]
fn perf_records_show_one_vcpu_per_cpu_in_its_slice() {
    needs!(perf, two_cpus);
    judge_undisturbed(|| {
        for mechanism in mechanisms() {
            let (_, result) =
                schedule(catalogued("rr:slice=5ms"), mechanism, 1, "job=watch warmup_ms=50 duration_ms=300");
            let observed = result.sched.and_then(|sched| sched.observed).expect("perf tells");
            // No vCPU sleeps: one that runs out of its slice is being switched
            assert!(observed.fidelity > 0.5, "{mechanism}: {observed:?}");
            assert!(
                observed.dispatch_delay.count > 20 && observed.planned > 0.9,
                "{mechanism}: {observed:?}"
            );
        }
    });
}

#[test]
fn fidelity_in_a_time_namespace_is_as_without() {
    needs!(perf, two_cpus, time_namespaces);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("run.json");
    let vcpus = (2 * cpus().count()).to_string();
    judge_undisturbed(|| {
        for mechanism in mechanisms() {
            let mut command =
                vmm_lab_in_time_namespace(["run", "--quiet", "--job", "watch", "--vcpus", &vcpus]);
            command.args(["--duration-ms", "300", "--policy", "rr:slice=5ms", "--publisher", "monitor"]);
            command.args(["--mechanism", &mechanism.to_string(), "--json"]).arg(&json);
            let ended = end_of(&mut command);
            assert_eq!(ended.status, Some(0), "{ended:?}");
            let results: Value = serde_json::from_slice(&fs::read(&json).expect("it writes")).expect("JSON");
            let observed = &results["sched"]["observed"];
            let share = |name: &str| observed[name].as_f64().expect("a share");
            assert!(share("fidelity") > 0.8 && share("ran") > 0.8, "{mechanism}: {observed}");
            assert!(observed["dispatch_delay"]["count"].as_u64() > Some(20), "{mechanism}: {observed}");
        }
    });
}

#[test]
fn every_policy_of_the_catalogue_lets_a_guest_end() {
    judge_undisturbed(|| {
        for mechanism in mechanisms() {
            for entry in lab::policy::catalogue::CATALOGUE {
                if entry.name == "replay" {
                    continue; // needs a file and has its own test
                }
                let params = "job=contend lock=mutex wait=preempted warmup_ms=30 duration_ms=60";
                let (run, result) = schedule(catalogued(entry.name), mechanism, 1, params);
                assert!(
                    matches!(run.guests[0].monitor.outcome, Outcome::Reset),
                    "{} by {mechanism}: {:?}, {:?}",
                    entry.name,
                    run.guests[0].monitor.outcome,
                    result.sched
                );
            }
        }
    });
}

#[test]
fn trace_is_replayed_in_order() {
    needs!(kvm);
    judge_undisturbed(|| {
        let rows: String = (0..40)
            .map(|turn: u64| format!("{},{},{},4000000\n", turn / 2 * 4 * MS, turn % 2, turn % 4))
            .fold(String::new(), |all, row| all + &row);
        let timehist: String = (0..40)
            .map(|turn: u64| {
                let (end, cpu, vcpu) = (8 + turn / 2 * 4, turn % 2, turn % 4);
                format!("  100.{end:03}000 [{cpu:04}]  worker {vcpu}[{vcpu}/9]  0.000  0.000  4.000\n")
            })
            .fold(String::new(), |all, row| all + &row);
        let csv = Fixture::file("trace.csv", rows.as_bytes());
        let timehist = Fixture::file("timehist.txt", timehist.as_bytes());
        for policy in [
            format!("replay:file={}", csv.arg()),
            format!(r"replay:file={},threads=^worker (\d)$", timehist.arg()),
        ] {
            let (run, result) = schedule(catalogued(&policy), MechanismKind::Deschedule, 1, CONTEND);
            assert!(matches!(run.guests[0].monitor.outcome, Outcome::Reset), "{policy}");
            assert!(result.sched.expect("it was scheduled").decisions > 20, "{policy}");
        }
    });
}

#[test]
fn several_guests_are_scheduled_together_and_each_has_figures() {
    judge_undisturbed(|| {
        for mechanism in mechanisms() {
            let (run, result) = schedule(catalogued("gang:slice=2ms"), mechanism, 2, CONTEND);
            assert_eq!(run.guests.len(), 2);
            for (guest, figures) in run.guests.iter().zip(&result.guests) {
                assert!(matches!(guest.monitor.outcome, Outcome::Reset), "{:?}", guest.monitor.outcome);
                let lock = figures.window.as_ref().and_then(|window| window.lock.as_ref()).expect("a lock");
                assert!(lock.acquisitions > 0);
            }
            let sched = run.sched.expect("they were scheduled");
            let of_second = |vcpu: Option<usize>| vcpu.is_some_and(|vcpu| vcpu >= sched.vcpus[0]);
            assert!(sched.log.assignments.iter().any(|chosen| of_second(chosen.to)));
            assert!(sched.log.assignments.iter().any(|chosen| chosen.to.is_some() && !of_second(chosen.to)));
        }
    });
}

/// Round robin, and an odd decision now and then.
#[derive(Debug)]
struct Odd {
    queues: RunQueues,
    ticks: u32,
    now_and_then: fn(u32, &SchedState, &mut Vec<Decision>),
    /// A vCPU that never runs.
    forgotten: Option<usize>,
}

impl Odd {
    fn choice(
        name: &str,
        odd: fn(u32, &SchedState, &mut Vec<Decision>),
        forgotten: Option<usize>,
    ) -> PolicyChoice {
        PolicyChoice::own(name, move |_| Self {
            queues: RunQueues::default(),
            ticks: 0,
            now_and_then: odd,
            forgotten,
        })
    }

    fn give(&mut self, cpu: usize, state: &SchedState, out: &mut Vec<Decision>) {
        let until = state.now + 2 * MS;
        let forgotten = self.forgotten;
        out.push(
            match self.queues.pick_next(cpu, |vcpu| state.may_run_on(cpu, vcpu) && Some(vcpu) != forgotten) {
                Some(vcpu) => Decision::Run { cpu, vcpu, until },
                None => Decision::Idle { cpu, until },
            },
        );
    }
}

impl Policy for Odd {
    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.queues = RunQueues::by_home(state);
                (0..state.cpus.len()).for_each(|cpu| self.give(cpu, state, out));
            }
            Event::Tick { cpu, .. } => {
                self.ticks += 1;
                self.give(cpu, state, out);
                (self.now_and_then)(self.ticks, state, out);
            }
            _ => {}
        }
    }
}

#[test]
fn impossible_decisions_are_refused_whole_and_counted_and_the_guest_runs_on() {
    judge_undisturbed(|| {
        let odd = |ticks: u32, state: &SchedState, out: &mut Vec<Decision>| match ticks % 8 {
            1 => out.push(Decision::Run { cpu: 99, vcpu: 0, until: state.now + MS }),
            3 => out.push(Decision::Idle { cpu: 0, until: state.now }),
            5 => out.extend([Decision::Throttle { vcpu: 0 }, Decision::Unthrottle { vcpu: 0 }]),
            _ => {}
        };
        for mechanism in mechanisms() {
            let (run, result) = schedule(Odd::choice("odd", odd, None), mechanism, 1, CONTEND);
            assert!(
                matches!(run.guests[0].monitor.outcome, Outcome::Reset),
                "{:?}",
                run.guests[0].monitor.outcome
            );
            let sched = result.sched.expect("it was scheduled");
            let refused = sched.refused;
            assert!(refused.impossible > 0 && refused.contradictory > 0, "{refused:?}");
            assert!(sched.unanswered_ticks > 0);
            assert!(
                run.sched.expect("it was scheduled").log.throttles.is_empty(),
                "none took effect in part"
            );
        }
    });
}

#[test]
fn policy_that_panics_ends_the_run_cleanly_with_its_message() {
    for mechanism in mechanisms() {
        let odd =
            |ticks: u32, _: &SchedState, _: &mut Vec<Decision>| assert!(ticks < 200, "no idea what to do");
        let params = "job=contend lock=tas wait=spin warmup_ms=10 duration_ms=30000";
        let (run, result) = schedule(Odd::choice("nervous", odd, None), mechanism, 1, params);
        assert!(
            matches!(run.guests[0].monitor.outcome, Outcome::Stopped),
            "{:?}",
            run.guests[0].monitor.outcome
        );
        let end = run.sched.as_ref().and_then(|sched| sched.stop_reason.clone());
        assert_eq!(end, Some(StopReason::Panicked("no idea what to do".to_owned())));
        assert_eq!(result.status(), 5);
        let lock =
            result.guests[0].window.as_ref().and_then(|window| window.lock.as_ref()).expect("figures so far");
        assert!(lock.acquisitions > 0);
    }
}

#[test]
fn policy_that_starves_a_vcpu_ends_the_run_cleanly_with_its_number() {
    for mechanism in mechanisms() {
        // No lock: the starved vCPU might hold it
        let params = "job=watch warmup_ms=10 duration_ms=30000";
        let (run, result) = schedule(Odd::choice("forgetful", |_, _, _| {}, Some(2)), mechanism, 1, params);
        let end = run.sched.as_ref().and_then(|sched| sched.stop_reason.clone());
        assert!(matches!(end, Some(StopReason::Starved { guest: 0, vcpu: 2, .. })), "{end:?}");
        assert!(matches!(run.guests[0].monitor.outcome, Outcome::Stopped));
        let byte =
            result.guests[0].window.as_ref().and_then(|window| window.preempted).expect("figures so far");
        assert!(byte.own_samples > 0);
    }
}

#[test]
fn guest_gives_hints_and_rings_the_doorbell_only_if_the_policy_needs_them() {
    needs!(kvm);
    judge_undisturbed(|| {
        let hints_of = |run: &SessionRun| {
            let report = run.guests[0].report.as_ref().expect("our payload reports");
            let page = &report.hints[0];
            let slice_end = page.host.slice_end.load(Ordering::Relaxed);
            (run.guests[0].workload.expect("it is ours").hints, slice_end)
        };
        let (run, result) = schedule(catalogued("rr"), MechanismKind::Deschedule, 1, CONTEND);
        assert_eq!((hints_of(&run), result.sched.map(|sched| sched.guest_events)), ((false, 0), Some(0)));
        let (run, _) = schedule(catalogued("slice-left"), MechanismKind::Deschedule, 1, CONTEND);
        assert!(hints_of(&run).1 > 0, "the guest knows the end of its slice");
        let params = "job=contend lock=ticket wait=yield warmup_ms=50 duration_ms=300";
        let (run, result) = schedule(catalogued("yield:target=next"), MechanismKind::Deschedule, 1, params);
        assert!(hints_of(&run).0);
        let sched = result.sched.expect("it was scheduled");
        assert!(sched.guest_events > 0 && sched.decisions > 300, "{sched:?}");
        assert_eq!(
            result.guests[0].vcpus.iter().map(|vcpu| vcpu.directed_yields).sum::<u64>(),
            0,
            "the monitor makes no directed yields under a policy"
        );
    });
}

#[test]
fn ctrl_c_ends_a_scheduled_run_with_its_figures() {
    needs!(kvm);
    let args = ["--vcpus", "4", "--duration-ms", "60000", "--policy", "rr", "--mechanism", "deschedule"];
    let mut running = start(vmm_run(args).stdout(std::process::Stdio::piped()));
    let stdout = running.take_stdout().expect("it is piped");
    wait_for_cpu_time(&running, Duration::from_millis(500));
    kill(running.id(), "INT");
    assert_eq!(wait_for(running), Some(130));
    let printed = io::read_to_string(stdout).expect("it prints text");
    assert!(printed.contains("Policy rr (seed 1) by deschedule"), "{printed}");
    assert!(printed.contains("interrupted"), "{printed}");
}

#[test]
fn invalid_policies_and_mechanisms_are_refused_in_one_line() {
    for (args, message) in [
        (["--policy", "rr:slice=never"], "slice=never cannot be read"),
        (["--policy", "prayer"], "there is no policy \"prayer\""),
        (["--mechanism", "magic"], "mechanisms are class and deschedule"),
        (["--cpu-hog", "duty=7"], "duty=7 cannot be read"),
        (["--guests", "0"], "0 is not in 1..=64"),
    ] {
        let ended = end_of(&mut vmm_run(args));
        assert_eq!(ended.status, Some(2), "{args:?}");
        assert!(ended.stderr.contains(message) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    }
    let ended = end_of(&mut vmm_lab(["policies"]));
    assert!(ended.stdout.lines().count() == lab::policy::catalogue::CATALOGUE.len(), "{}", ended.stdout);
}
