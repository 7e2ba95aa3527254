//! Where the time of a vCPU goes: each nanosecond is run time, or steal, or the monitor was
//! stopped.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use host::facts::HostFacts;
use lab::policy::catalogue::PolicyChoice;
use lab::policy::{Decision, Event, Needs, Policy, SchedState};
use lab::sched::SchedConfig;
use lab::sched::mechanism::{MechanismChoice, MechanismKind};
use lab::session::{self, SessionConfig, SessionResult, SessionRun};
use serde_json::Value;
use steal_time::publisher::PublisherKind;

use crate::sched::mechanisms;
use crate::support::{
    Fixture, Running, alone, cpus, end_of, guest, has_publisher, judge_undisturbed, kill, needs, skip, start,
    vmm_run, wait_for, wait_for_cpu_time, wait_until,
};

const PUBLISHERS: [PublisherKind; 4] =
    [PublisherKind::Bpf, PublisherKind::BpfClassic, PublisherKind::Perf, PublisherKind::Monitor];

/// The publishers that this host allows.
fn publishers() -> impl Iterator<Item = PublisherKind> {
    PUBLISHERS.into_iter().filter(|publisher| has_publisher(*publisher))
}

/// Runs `vcpus` vCPUs that spin on one CPU, under `policy`.
fn spin(
    publisher: PublisherKind,
    mechanism: MechanismKind,
    vcpus: usize,
    policy: PolicyChoice,
) -> (SessionRun, SessionResult) {
    let guest = guest(vcpus, publisher, "job=watch warmup_ms=50 duration_ms=1500").on(cpus().first(1));
    let config = SessionConfig {
        sched: Some(SchedConfig {
            policy,
            mechanism: MechanismChoice::Only(mechanism),
            seed: 1,
            starvation: Duration::from_secs(1),
            traces: false,
        }),
        ..SessionConfig::of(guest)
    };
    let run = alone(|| session::run(&config, io::sink, Instant::now())).expect("the guest can be run");
    let result = run.result(&HostFacts::probe(), None);
    (run, result)
}

fn round_robin(slice_ms: u32) -> PolicyChoice {
    format!("rr:slice={slice_ms}ms").parse().expect("a policy of the catalogue")
}

/// An outer hypervisor takes time that is neither, so `/proc/stat`'s steal is allowed for.
#[test]
fn run_time_and_steal_of_vcpus_that_always_want_to_run_add_up_to_wall_time() {
    for mechanism in mechanisms() {
        for publisher in publishers() {
            for (vcpus, slice_ms) in [(2, 1), (4, 3)] {
                judge_undisturbed(|| {
                    let (_, result) = spin(publisher, mechanism, vcpus, round_robin(slice_ms));
                    let guest = result.guests.first().expect("one guest");
                    let accounted = guest.accounted().expect("each vCPU has a window");
                    let outside = guest.window.as_ref().expect("a window").host.disturbance.steal_cpus();
                    assert!(
                        (0.99 - outside..=1.01).contains(&accounted),
                        "{mechanism}, {publisher}, {vcpus} vCPUs, {slice_ms} ms: {accounted}, {outside}"
                    );
                });
            }
        }
    }
}

/// A way to stop a process.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// SIGSTOP and SIGCONT.
    Signal,
    /// The freezer of cgroup version 2.
    Freezer,
}

/// A cgroup of version 2 with one process. Dropping it removes it, once the process has ended.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Moves `process` into a cgroup of its own; `None` if this host refuses that.
    fn around(process: &Running) -> Option<Self> {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
        let group = Self(root.join(format!("vmm-test-{}", process.id())));
        fs::create_dir(&group.0).ok()?;
        group.write("cgroup.procs", &process.id().to_string()).ok()?;
        Some(group)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.0.join(file), value)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while the process is still a member, which leaves an empty group behind.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Runs two vCPUs on one CPU under round robin by `deschedule`, in a window of `stopped` and two
/// seconds, and stops the process for that long in its middle. Returns the status and the results;
/// `None` if this host cannot stop it so.
fn stopped_run(publisher: PublisherKind, how: Stop, stopped: Duration) -> Option<(Option<i32>, Value)> {
    let json = Fixture::file("stopped.json", b"");
    let window = stopped + Duration::from_secs(2);
    let options = format!(
        "--quiet --vcpus 2 --cpus {} --publisher {publisher} --policy rr:slice=2ms --mechanism deschedule \
         --job watch --warmup-ms 50 --duration-ms {} --json {}",
        cpus().first(1),
        window.as_millis(),
        json.arg(),
    );
    let process = start(&mut vmm_run(options.split(' ')));
    wait_for_cpu_time(&process, Duration::from_secs(1));
    match how {
        Stop::Signal => {
            kill(process.id(), "STOP");
            thread::sleep(stopped);
            kill(process.id(), "CONT");
        }
        Stop::Freezer => {
            let group = Cgroup::around(&process)?;
            group.write("cgroup.freeze", "1").ok()?;
            let is_frozen =
                || fs::read_to_string(group.0.join("cgroup.events")).unwrap().contains("frozen 1");
            wait_until("the process is frozen", is_frozen);
            thread::sleep(stopped);
            assert!(is_frozen());
            group.write("cgroup.freeze", "0").expect("it can be thawed");
        }
    }
    let status = wait_for(process);
    let results = fs::read_to_string(&json.path).expect("the results are written");
    Some((status, serde_json::from_str(&results).expect("JSON")))
}

/// Asserts that run time and steal of each vCPU lack the time for which the process was `stopped`.
fn assert_stop_is_no_steal(results: &Value, stopped: Duration, what: &str) {
    let vcpus = results["guests"][0]["vcpus"].as_array().expect("vCPUs");
    assert_eq!(vcpus.len(), 2);
    for vcpu in vcpus {
        let ns = |field: &str| vcpu["window"][field].as_u64().expect("a time");
        let neither = ns("length_ns").saturating_sub(ns("run_ns")).saturating_sub(ns("steal_ns"));
        let neither = Duration::from_nanos(neither);
        assert!(neither >= stopped.mul_f64(0.95), "{what}: stopped for {stopped:?}, {vcpu}");
    }
}

#[test]
fn time_for_which_the_monitor_is_stopped_is_no_steal() {
    needs!(kvm);
    let length = Duration::from_secs(1);
    for publisher in publishers() {
        let ways = if publisher == PublisherKind::Monitor {
            &[Stop::Signal, Stop::Freezer][..]
        } else {
            &[Stop::Signal]
        };
        for how in ways.iter().copied() {
            let Some((status, results)) = stopped_run(publisher, how, length) else {
                skip("this process may not freeze a cgroup of version 2");
                continue;
            };
            assert_eq!(status, Some(0), "{publisher}, {how:?}");
            assert_stop_is_no_steal(&results, length, &format!("{publisher}, {how:?}"));
        }
    }
}

/// A policy starves a vCPU after 5 s. A stopped monitor runs none.
#[test]
fn monitor_that_is_stopped_for_longer_than_the_starvation_limit_does_not_blame_its_policy() {
    needs!(kvm);
    let length = Duration::from_secs(7);
    let (status, results) = stopped_run(PublisherKind::Monitor, Stop::Signal, length).expect("signals work");
    assert_eq!((status, &results["sched"]["stop_reason"]), (Some(0), &Value::Null), "{}", results["sched"]);
    assert_stop_is_no_steal(&results, length, "7 s");
}

/// Runs the vCPU that has waited longest, for 2 ms at a time.
#[derive(Debug, Default)]
struct LongestWaitFirst;

impl Policy for LongestWaitFirst {
    fn needs(&self) -> Needs {
        Needs { cpu_time: true, ..Needs::default() }
    }

    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        // The times of vCPUs are read at least each millisecond
        if matches!(event, Event::Begin | Event::Alarm { .. }) {
            out.push(Decision::Alarm { at: state.now + 1_000_000 });
        }
        let cpu = match event {
            Event::Begin => 0,
            Event::Tick { cpu, .. } => cpu,
            _ => return,
        };
        let candidates = (0..state.vcpus.len()).filter(|vcpu| state.may_run_on(cpu, *vcpu));
        let longest = candidates.max_by_key(|vcpu| state.vcpus[*vcpu].waited);
        let until = state.now + 2_000_000;
        out.push(longest.map_or(Decision::Idle { cpu, until }, |vcpu| Decision::Run { cpu, vcpu, until }));
    }
}

#[test]
fn policy_that_runs_the_vcpu_that_has_waited_longest_starves_none() {
    judge_undisturbed(|| {
        for mechanism in mechanisms() {
            let policy = PolicyChoice::own("longest-wait", |_| LongestWaitFirst);
            let (run, result) = spin(PublisherKind::Monitor, mechanism, 3, policy);
            let sched = run.sched.expect("it was scheduled");
            assert_eq!(sched.stop_reason, None, "{mechanism}");
            let runs = |vcpu| sched.log.assignments.iter().filter(|change| change.to == Some(vcpu)).count();
            let (runs, all) = ([0, 1, 2].map(runs), sched.log.assignments.len());
            assert!(all > 50 && runs.iter().all(|runs| 6 * runs > all), "{mechanism}: {runs:?} of {all}");
            assert_eq!(result.status(), 0);
        }
    });
}

/// `vmm-lab run` in a PID namespace of its own whose `/proc` is that of the outer one.
fn run_in_pid_namespace(options: &str) -> Command {
    let lab = vmm_run(options.split(' '));
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--"]).arg(lab.get_program()).args(lab.get_args());
    command
}

/// Whether this process may create a PID namespace.
fn has_pid_namespaces() -> bool {
    let is_allowed = end_of(Command::new("unshare").args(["--pid", "--fork", "true"])).status == Some(0);
    if !is_allowed {
        skip("this process may not create a PID namespace");
    }
    is_allowed
}

/// There, `/proc` knows the threads by other IDs.
#[test]
fn figures_that_a_stale_proc_does_not_show_are_unknown_and_not_zero() {
    needs!(kvm, program("unshare"));
    if !has_pid_namespaces() {
        return;
    }
    for publisher in publishers().chain([PublisherKind::Off]) {
        let json = Fixture::file("stale.json", b"");
        let options =
            format!("--vcpus 2 --publisher {publisher} --job watch --duration-ms 200 --json {}", json.arg());
        let ended = end_of(&mut run_in_pid_namespace(&options));
        assert_eq!(ended.status, Some(0), "{publisher}: {ended:?}");
        let results: Value = serde_json::from_slice(&fs::read(&json.path).unwrap()).unwrap();
        let guest = if results["guests"].is_array() { &results["guests"][0] } else { &results };
        let host = &guest["window"]["host"];
        for field in ["run_ns", "run_delay_ns", "preemptions", "sleeps"] {
            assert_eq!(host[field], Value::Null, "{publisher}: {field} of {host}");
        }
        // What a thread reads of itself is right there, too
        for vcpu in guest["vcpus"].as_array().expect("vCPUs") {
            let is_known = |figure: &Value| figure.as_u64().is_some_and(|ns| ns > 0);
            assert!(is_known(&vcpu["run_ns"]) && is_known(&vcpu["window"]["run_ns"]), "{publisher}: {vcpu}");
        }
    }
}

#[test]
fn policy_that_needs_cpu_times_is_refused_where_a_stale_proc_does_not_show_them() {
    needs!(kvm, program("unshare"));
    if !has_pid_namespaces() {
        return;
    }
    let options = "--vcpus 2 --publisher off --job watch --duration-ms 200 --policy relaxed";
    let ended = end_of(&mut run_in_pid_namespace(options));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("CPU time") && ended.stderr.contains("/proc"), "{ended:?}");
}
