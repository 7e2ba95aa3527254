//! Unit tests of all policies: determinism, valid decisions, parameters. Submodules test single
//! policies.

mod hint_driven;
mod time_driven;

use super::catalogue::{CATALOGUE, PolicyChoice};
use super::dry_run::{PlannedSwitch, dry_run};
use super::schedule::{Change, Schedule};
use super::*;

const MS: Ns = 1_000_000;
const US: Ns = 1_000;
const SECOND: Ns = 1_000 * MS;

fn make(text: &str, seed: u64) -> Box<dyn Policy> {
    text.parse::<PolicyChoice>().and_then(|choice| choice.make(seed)).expect("a policy of the catalogue")
}

fn run(text: &str, seed: u64, cpus: usize, guests: &[usize]) -> Vec<PlannedSwitch> {
    dry_run(&mut *make(text, seed), cpus, guests, SECOND, 2 * SECOND)
}

/// CPU share of each of `vcpus` vCPUs in a dry run of one second.
fn shares(switches: &[PlannedSwitch], vcpus: usize) -> Vec<f64> {
    let mut ran = vec![0; vcpus];
    for (index, switch) in switches.iter().enumerate() {
        let next = switches[index + 1..].iter().find(|next| next.cpu == switch.cpu);
        let end = next.map_or(2 * SECOND, |next| next.at);
        if let Some(vcpu) = switch.vcpu {
            ran[vcpu] += end - switch.at;
        }
    }
    ran.into_iter().map(|ns| ns as f64 / SECOND as f64).collect()
}

/// A policy and its schedule, with time and hints under the control of a test.
struct Harness {
    policy: Box<dyn Policy>,
    schedule: Schedule,
    changes: Vec<Change>,
    refused: usize,
}

impl Harness {
    fn new(policy: &str, cpus: usize, guests: &[usize]) -> Self {
        let mut harness = Self {
            policy: make(policy, 1),
            schedule: Schedule::new(cpus, guests),
            changes: Vec::new(),
            refused: 0,
        };
        harness.schedule.advance_to(SECOND);
        harness.handle(Event::Begin);
        harness
    }

    fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.policy.decide(event, self.schedule.state(), &mut out);
        let was_refused = self.schedule.apply(self.schedule.state().now, &out, &mut self.changes).is_err();
        self.refused += usize::from(was_refused || self.schedule.complete(event, was_refused));
    }

    /// Advances time to `after` ns past the start, and handles all events on the way.
    fn run_until(&mut self, after: Ns) {
        let end = SECOND + after;
        while let Some(due) = self.schedule.next_due().filter(|due| *due <= end) {
            self.schedule.advance_to(due.max(self.schedule.state().now));
            while let Some(event) = self.schedule.pop_due(&mut self.changes) {
                self.handle(event);
            }
        }
        self.schedule.advance_to(end);
    }

    fn set_hints(&mut self, vcpu: Vcpu, hints: GuestHints) {
        self.schedule.set_hints(vcpu, hints);
    }

    fn on(&self, cpu: Cpu) -> Option<Vcpu> {
        self.schedule.state().on(cpu)
    }
}

const HOLDS: GuestHints = GuestHints { hint: 1, locks_held: 1, waiting_since_tsc: None, is_halted: false };

fn waits(since: u64) -> GuestHints {
    GuestHints { waiting_since_tsc: Some(since), ..GuestHints::default() }
}

/// Writes a trace to `dir`, and returns the policy that replays it.
fn replay(dir: &tempfile::TempDir) -> String {
    let path = dir.path().join("trace.csv");
    let row = |slice| format!("{},{},{},2000000\n", slice * 1_000_000, slice % 2, slice % 4);
    let rows = (0..50).map(row).collect::<Vec<_>>().concat();
    std::fs::write(&path, rows).expect("a temporary file");
    format!("replay:file={}", path.display())
}

#[test]
fn same_seed_yields_the_same_decisions_and_another_seed_others() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in CATALOGUE {
        let text = if entry.name == "replay" { replay(&dir) } else { entry.name.to_owned() };
        for (cpus, guests) in [(2, vec![8]), (2, vec![2, 2, 2]), (3, vec![4]), (1, vec![1])] {
            let first = run(&text, 7, cpus, &guests);
            assert_eq!(first, run(&text, 7, cpus, &guests), "{text}");
        }
    }
    for text in ["rr:jitter=20%", "rr:jitter=100%"] {
        assert_ne!(run(text, 1, 2, &[8]), run(text, 2, 2, &[8]), "{text}");
    }
}

#[test]
fn decisions_of_the_catalogue_are_never_refused_when_events_are_on_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in CATALOGUE {
        let text = if entry.name == "replay" { replay(&dir) } else { entry.name.to_owned() };
        for (cpus, guests) in [(2, vec![8]), (2, vec![3, 3]), (1, vec![2]), (3, vec![5])] {
            let mut harness = Harness::new(&text, cpus, &guests);
            let mut rng = fastrand::Rng::with_seed(3);
            for step in 1..400 {
                harness.run_until(step * 500 * US);
                let vcpu = rng.usize(..harness.schedule.state().vcpus.len());
                let hints = [
                    HOLDS,
                    waits(step),
                    GuestHints::default(),
                    GuestHints { is_halted: true, ..GuestHints::default() },
                ];
                if harness.schedule.set_hints(vcpu, hints[rng.usize(..4)]) {
                    harness.handle(Event::Hint { vcpu });
                }
                let to = rng.usize(..harness.schedule.state().vcpus.len());
                harness.handle(
                    [
                        Event::YieldTo { from: vcpu, to },
                        Event::Halted { vcpu },
                        Event::Woke { vcpu },
                        Event::Ready { vcpu },
                    ][rng.usize(..4)],
                );
                harness.schedule.set_cpu_time(vcpu, step * rng.u64(..MS), step * rng.u64(..MS), rng.bool());
                if step == 300 {
                    harness.schedule.remove(vcpu);
                    harness.handle(Event::Exit { vcpu });
                }
            }
            assert_eq!(harness.refused, 0, "{text} on {cpus} CPUs with {guests:?}");
        }
    }
}

#[test]
fn invalid_policies_are_refused_with_the_valid_alternatives() {
    for (text, message) in [
        ("sleepy", "there is no policy \"sleepy\" (policies are host, rr,"),
        ("rr:slice=soon", "slice=soon cannot be read (the length of a slice"),
        ("rr:slice=1us", "slice=1us cannot be read (the length of a slice, at least 100us"),
        ("rr:speed=9", "policy rr has no parameter \"speed\" (it has jitter, phase, halts, slice)"),
        ("replay", "policy replay needs file= (a trace"),
        ("replay:file=/nowhere/at/all", "cannot read /nowhere/at/all: "),
        ("yield:target=mars", "target=mars cannot be read (named, holder, next, any)"),
        ("adversary:p=2", "p=2 cannot be read (a fraction"),
        ("credit:weight=0", "weight=0 cannot be read (numbers from 1"),
    ] {
        let error = text.parse::<PolicyChoice>().expect_err(text).to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn code_of_the_readme_is_that_of_the_example() {
    let (readme, example) = (include_str!("README.md"), include_str!("../../examples/own_policy.rs"));
    let blocks: Vec<_> =
        readme.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        assert!(example.contains(block), "{block}");
    }
}
