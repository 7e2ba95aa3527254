//! What holds for policies: the same seed gives the same decisions, all that they decide is taken, and each does what it is for.

use super::board::{Board, Move};
use super::catalogue::{CATALOGUE, PolicyChoice};
use super::rehearsal::{Switch, rehearse};
use super::*;

const MS: Ns = 1_000_000;
const US: Ns = 1_000;
const SECOND: Ns = 1_000 * MS;

fn make(text: &str, seed: u64) -> Box<dyn Policy> {
    text.parse::<PolicyChoice>().and_then(|choice| choice.make(seed)).expect("a policy of the catalogue")
}

fn rehearsed(text: &str, seed: u64, cpus: usize, guests: &[usize]) -> Vec<Switch> {
    rehearse(&mut *make(text, seed), cpus, guests, SECOND, 2 * SECOND)
}

/// Time that each vCPU was given in a second, of which there are `vcpus`.
fn shares(switches: &[Switch], vcpus: usize) -> Vec<f64> {
    let mut given = vec![0; vcpus];
    for (index, switch) in switches.iter().enumerate() {
        let next = switches[index + 1..].iter().find(|next| next.cpu == switch.cpu);
        let end = next.map_or(2 * SECOND, |next| next.at);
        if let Some(vcpu) = switch.vcpu {
            given[vcpu] += end - switch.at;
        }
    }
    given.into_iter().map(|ns| ns as f64 / SECOND as f64).collect()
}

/// A live board that is driven by hand, by a guest that says what a test wants.
struct Stage {
    policy: Box<dyn Policy>,
    board: Board,
    moves: Vec<Move>,
    refused: usize,
}

impl Stage {
    fn new(policy: &str, cpus: usize, guests: &[usize]) -> Self {
        let mut stage =
            Self { policy: make(policy, 1), board: Board::new(cpus, guests), moves: Vec::new(), refused: 0 };
        stage.board.turn_to(SECOND);
        stage.ask(Event::Begin);
        stage
    }

    fn ask(&mut self, event: Event) {
        let mut out = Vec::new();
        self.policy.decide(event, self.board.scene(), &mut out);
        let was_refused = self.board.post(self.board.scene().now, &out, &mut self.moves).is_err();
        self.refused += usize::from(was_refused || self.board.settle(event, was_refused));
    }

    /// Lets time pass until so long after the begin.
    fn until(&mut self, after: Ns) {
        let end = SECOND + after;
        while let Some(due) = self.board.next_due().filter(|due| *due <= end) {
            self.board.turn_to(due.max(self.board.scene().now));
            while let Some(event) = self.board.due(&mut self.moves) {
                self.ask(event);
            }
        }
        self.board.turn_to(end);
    }

    fn tell(&mut self, vcpu: Vcpu, told: Told) {
        self.board.tell(vcpu, told);
    }

    fn on(&self, cpu: Cpu) -> Option<Vcpu> {
        self.board.scene().on(cpu)
    }
}

const HOLDS: Told = Told { hint: 1, holds: 1, waits_since: None, is_halted: false };

fn waits(since: u64) -> Told {
    Told { waits_since: Some(since), ..Told::default() }
}

/// A trace for `replay`, and the text that asks for it.
fn replay(dir: &tempfile::TempDir) -> String {
    let path = dir.path().join("trace.csv");
    let row = |turn| format!("{},{},{},2000000\n", turn * 1_000_000, turn % 2, turn % 4);
    let rows = (0..50).map(row).collect::<Vec<_>>().concat();
    std::fs::write(&path, rows).expect("a temporary file");
    format!("replay:file={}", path.display())
}

#[test]
fn same_seed_gives_the_same_decisions_and_another_seed_gives_others() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in CATALOGUE {
        let text = if entry.name == "replay" { replay(&dir) } else { entry.name.to_owned() };
        for (cpus, guests) in [(2, vec![8]), (2, vec![2, 2, 2]), (3, vec![4]), (1, vec![1])] {
            let first = rehearsed(&text, 7, cpus, &guests);
            assert_eq!(first, rehearsed(&text, 7, cpus, &guests), "{text}");
        }
    }
    for text in ["random", "random:spread=pareto", "random:spread=uniform", "rr:jitter=20%"] {
        assert_ne!(rehearsed(text, 1, 2, &[8]), rehearsed(text, 2, 2, &[8]), "{text}");
    }
}

#[test]
fn policies_of_the_catalogue_are_never_refused_when_they_are_asked_in_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in CATALOGUE {
        let text = if entry.name == "replay" { replay(&dir) } else { entry.name.to_owned() };
        for (cpus, guests) in [(2, vec![8]), (2, vec![3, 3]), (1, vec![2]), (3, vec![5])] {
            let mut stage = Stage::new(&text, cpus, &guests);
            let mut rng = fastrand::Rng::with_seed(3);
            for step in 1..400 {
                stage.until(step * 500 * US);
                let vcpu = rng.usize(..stage.board.scene().vcpus.len());
                let told = [HOLDS, waits(step), Told::default(), Told { is_halted: true, ..Told::default() }];
                if stage.board.tell(vcpu, told[rng.usize(..4)]) {
                    stage.ask(Event::Hint { vcpu });
                }
                let to = rng.usize(..stage.board.scene().vcpus.len());
                stage.ask(
                    [
                        Event::YieldTo { from: vcpu, to },
                        Event::Halted { vcpu },
                        Event::Woke { vcpu },
                        Event::Ready { vcpu },
                    ][rng.usize(..4)],
                );
                stage.board.account(vcpu, step * rng.u64(..MS), step * rng.u64(..MS), rng.bool());
                if step == 300 {
                    stage.board.lose(vcpu);
                    stage.ask(Event::Exit { vcpu });
                }
            }
            assert_eq!(stage.refused, 0, "{text} on {cpus} CPUs with {guests:?}");
        }
    }
}

#[test]
fn round_robin_shares_alike_and_keeps_to_its_grid_however_late_it_is_told() {
    for share in shares(&rehearsed("rr:quantum=3ms", 1, 2, &[8]), 8) {
        assert!((share - 0.25).abs() < 0.005, "{share}");
    }
    let mut stage = Stage::new("rr:quantum=3ms", 1, &[2]);
    stage.board.turn_to(SECOND + 3 * MS + 40 * US);
    let due = stage.board.due(&mut stage.moves).expect("the turn is over");
    stage.ask(due);
    assert_eq!(stage.board.next_due(), Some(SECOND + 6 * MS));
    // A whole turn missed is a turn lost, not two in a row.
    stage.board.turn_to(SECOND + 10 * MS);
    let due = stage.board.due(&mut stage.moves).expect("the turn is over");
    stage.ask(due);
    assert_eq!(stage.board.next_due(), Some(SECOND + 12 * MS));
}

#[test]
fn aligned_turns_end_together_and_staggered_ones_do_not() {
    let ends = |text| {
        let at = |cpu| {
            rehearsed(text, 1, 2, &[4]).into_iter().filter(move |s| s.cpu == cpu).map(|s| s.at % (3 * MS))
        };
        (at(0).nth(3), at(1).nth(3))
    };
    let (first, second) = ends("rr:quantum=3ms");
    assert_eq!(first, second);
    let (first, second) = ends("rr:quantum=3ms,phase=staggered");
    assert_eq!(first.unwrap().abs_diff(second.unwrap()), 3 * MS / 2);
}

#[test]
fn random_turns_have_the_mean_and_the_bounds_that_were_asked_for() {
    for spread in ["exp", "uniform"] {
        let switches = rehearsed(&format!("random:mean=1ms,spread={spread}"), 5, 1, &[2]);
        let mean = SECOND as f64 / switches.len() as f64;
        assert!((0.8e6..1.2e6).contains(&mean), "{spread}: {mean}");
    }
    let switches = rehearsed("random:mean=1ms,spread=pareto,least=900us,most=4ms", 5, 1, &[2]);
    let lengths = || switches.windows(2).map(|pair| pair[1].at - pair[0].at);
    assert!(lengths().all(|length| (900 * US..=4 * MS).contains(&length)));
    assert!(lengths().any(|length| length > 2 * MS), "there is a tail");
}

#[test]
fn gang_runs_siblings_together_and_pads_with_nobody_or_with_others() {
    let together = |text: &str, guests: &[usize]| {
        let mut stage = Stage::new(text, 2, guests);
        (0..12_u64)
            .map(|turn| {
                stage.until(turn * 3 * MS + MS);
                (stage.on(0), stage.on(1))
            })
            .collect::<Vec<_>>()
    };
    let guest = |vcpu: Option<Vcpu>| vcpu.map(|vcpu| vcpu / 2);
    let seen = together("gang:quantum=3ms", &[2, 2]);
    assert!(seen.iter().all(|(a, b)| guest(*a) == guest(*b) && a.is_some()), "{seen:?}");
    assert!(seen.iter().any(|(a, _)| guest(*a) == Some(0)) && seen.iter().any(|(a, _)| guest(*a) == Some(1)));
    // A guest of three vCPUs is a gang of two and a gang of one.
    assert!(together("gang", &[3]).iter().any(|(a, b)| a.is_none() != b.is_none()));
    assert!(together("gang:pad=fill", &[3]).iter().all(|(a, b)| a.is_some() && b.is_some()));
}

#[test]
fn deferral_lets_a_holder_go_on_so_often_and_no_more() {
    let mut stage = Stage::new("deferral:quantum=3ms,grace=50us,most=2", 1, &[2]);
    let first = stage.on(0).unwrap();
    stage.tell(first, HOLDS);
    stage.until(3 * MS + 90 * US);
    assert_eq!(stage.on(0), Some(first));
    stage.until(3 * MS + 110 * US);
    assert_ne!(stage.on(0), Some(first), "two times 50 us were given");
    assert_eq!(stage.board.next_due(), Some(SECOND + 6 * MS), "the next one's turn ends when it was to end");
    let mut stage = Stage::new("deferral:quantum=3ms,grace=50us", 1, &[2]);
    stage.tell(first, HOLDS);
    stage.until(3 * MS + 20 * US);
    stage.tell(first, Told::default());
    stage.until(3 * MS + 60 * US);
    assert_ne!(stage.on(0), Some(first), "it has let go of the lock");
}

#[test]
fn deferral_brings_back_one_that_was_caught_with_a_lock() {
    let mut stage = Stage::new("deferral:quantum=3ms,grace=50us,most=1", 1, &[2]);
    stage.until(3 * MS + US);
    let (off, on) = if stage.on(0) == Some(1) { (0, 1) } else { (1, 0) };
    stage.tell(off, HOLDS);
    stage.ask(Event::Caught { vcpu: off });
    assert_eq!(stage.on(0), Some(off));
    stage.until(3 * MS + 110 * US);
    assert_eq!(stage.on(0), Some(on), "then the other goes on");
    stage.ask(Event::Caught { vcpu: off });
    assert_eq!(stage.on(0), Some(on), "once is enough");
    assert_eq!(stage.board.next_due(), Some(SECOND + 6 * MS));
}

#[test]
fn deferral_with_debt_makes_the_next_turn_shorter() {
    let mut stage = Stage::new("deferral:quantum=3ms,grace=1ms,most=1,debt=on", 1, &[1]);
    stage.tell(0, HOLDS);
    stage.until(4 * MS);
    assert_eq!(stage.board.next_due(), Some(SECOND + 5 * MS), "1 ms of its turn was had before");
}

#[test]
fn directed_yield_runs_whom_its_target_says_on_the_waiters_cpu() {
    for (target, expected) in [("named", 6), ("holder", 4), ("next", 4), ("any", 2)] {
        let mut stage = Stage::new(&format!("yield:target={target},grant=200us"), 2, &[8]);
        assert_eq!((stage.on(0), stage.on(1)), (Some(0), Some(1)));
        stage.tell(4, HOLDS);
        stage.tell(5, waits(10));
        stage.ask(Event::YieldTo { from: 0, to: 6 });
        assert_eq!((stage.on(0), stage.on(1)), (Some(expected), Some(1)), "{target}");
        stage.until(250 * US);
        assert_eq!(stage.on(0), Some(0), "the waiter goes on");
    }
    let mut stage = Stage::new("yield:target=next", 2, &[8]);
    stage.tell(7, waits(20));
    stage.tell(5, waits(10));
    stage.ask(Event::YieldTo { from: 1, to: 6 });
    assert_eq!(stage.on(1), Some(5), "nobody holds it: the one that has waited for longest is next");
    stage.ask(Event::YieldTo { from: 1, to: 6 });
    assert_eq!(stage.on(1), Some(5), "one that does not run has nothing to give");
}

#[test]
fn sustained_yield_lasts_for_the_turn_and_is_not_given_back_at_once() {
    let mut stage = Stage::new("yield:quantum=3ms,sustain=on,grant=100us,rate=6ms", 1, &[4]);
    stage.ask(Event::YieldTo { from: 0, to: 2 });
    stage.until(2 * MS);
    assert_eq!(stage.on(0), Some(2));
    stage.ask(Event::YieldTo { from: 2, to: 0 });
    assert_eq!(stage.on(0), Some(0), "long ago is no ping-pong");
    let mut stage = Stage::new("yield:quantum=3ms,sustain=on,pingpong=600us", 1, &[4]);
    stage.ask(Event::YieldTo { from: 0, to: 2 });
    stage.until(100 * US);
    stage.ask(Event::YieldTo { from: 2, to: 0 });
    assert_eq!(stage.on(0), Some(2));
}

#[test]
fn boost_ends_when_its_budget_is_used_up() {
    let mut stage = Stage::new("boost:quantum=3ms,section=1ms,budget=2ms", 1, &[2]);
    stage.tell(0, HOLDS);
    stage.until(3 * MS + 500 * US);
    assert_eq!(stage.on(0), Some(0), "it went on");
    stage.until(5 * MS);
    assert_eq!(stage.on(0), Some(1));
    stage.ask(Event::Hint { vcpu: 0 });
    assert_eq!(stage.on(0), Some(0), "it came first");
    stage.until(7 * MS);
    assert_eq!(stage.on(0), Some(0), "its own turn");
    stage.until(10 * MS);
    let now_on = stage.on(0);
    stage.ask(Event::Hint { vcpu: 0 });
    assert_eq!(stage.on(0), now_on, "no more in this second");
}

#[test]
fn micro_turns_are_short_on_the_last_cpu_and_take_in_whoever_waits() {
    let switches = rehearsed("micro:quantum=3ms,short=500us", 1, 2, &[8]);
    let count = |cpu| switches.iter().filter(|switch| switch.cpu == cpu).count();
    assert!(count(1) > 5 * count(0));
    let mut stage = Stage::new("micro:quantum=3ms,short=500us,classify=on", 2, &[4]);
    stage.tell(0, waits(1));
    stage.until(3 * MS + 2_100 * US);
    let seen: Vec<_> = (0..20)
        .map(|step| {
            stage.until(6 * MS + step * 500 * US);
            stage.on(1)
        })
        .collect();
    assert!(seen.contains(&Some(0)), "{seen:?}");
}

#[test]
fn throttled_guest_stands_still_until_the_period_ends() {
    let mut stage = Stage::new("throttle:quota=4ms,period=10ms,slice=1ms", 2, &[2]);
    let parked = |stage: &Stage| stage.board.scene().vcpus.iter().filter(|vcpu| vcpu.is_parked).count();
    for step in 1..=3 {
        (0..2).for_each(|vcpu| stage.board.account(vcpu, step * MS, 0, false));
        stage.until(step * MS);
    }
    assert_eq!(parked(&stage), 2);
    stage.until(9 * MS);
    assert_eq!(parked(&stage), 2);
    stage.until(10 * MS + US);
    assert_eq!(parked(&stage), 0);
}

#[test]
fn credit_follows_weights_and_caps() {
    let by_weight = shares(&rehearsed("credit:weight=512/512/256/256,slice=10ms", 1, 2, &[4]), 4);
    assert!((by_weight[0] / by_weight[2] - 2.0).abs() < 0.2, "{by_weight:?}");
    for share in shares(&rehearsed("credit:cap=20,slice=5ms", 1, 1, &[2]), 2) {
        assert!((0.17..=0.27).contains(&share), "{share}");
    }
}

#[test]
fn rtds_gives_each_its_budget_and_the_rest_to_nobody_unless_extra_is_on() {
    for share in shares(&rehearsed("rtds:period=10ms,budget=3ms", 1, 1, &[2]), 2) {
        assert!((share - 0.3).abs() < 0.01, "{share}");
    }
    let total: f64 = shares(&rehearsed("rtds:period=10ms,budget=3ms,extra=on", 1, 1, &[2]), 2).iter().sum();
    assert!(total > 0.99, "{total}");
}

#[test]
fn adversary_takes_the_cpu_of_a_holder_or_of_the_next_in_line_while_others_wait() {
    for (target, victim) in [("holder", 0), ("next", 1)] {
        let mut stage = Stage::new(&format!("adversary:target={target},look=100us,quantum=3ms"), 2, &[8]);
        stage.until(250 * US);
        assert_eq!((stage.on(0), stage.on(1)), (Some(0), Some(1)));
        stage.tell(0, HOLDS);
        stage.tell(1, waits(1));
        stage.tell(3, waits(2));
        stage.until(350 * US);
        assert_ne!(stage.on(victim), Some(victim), "{target}");
        assert_eq!(stage.on(1 - victim), Some(1 - victim), "{target}");
    }
    let mut stage = Stage::new("adversary:look=100us,p=0", 2, &[8]);
    stage.tell(0, HOLDS);
    stage.tell(1, waits(1));
    stage.until(MS);
    assert_eq!(stage.on(0), Some(0));
}

#[test]
fn relaxed_stops_who_leads_and_lets_it_go_on_when_the_others_have_caught_up() {
    let mut stage = Stage::new("relaxed:skew=3ms,restart=1ms,period=1ms", 2, &[2]);
    stage.board.account(0, 4 * MS, 0, false);
    stage.until(MS);
    assert!(stage.board.scene().vcpus[0].is_parked && !stage.board.scene().vcpus[1].is_parked);
    stage.board.account(1, 2 * MS, 0, false);
    stage.until(2 * MS);
    assert!(stage.board.scene().vcpus[0].is_parked, "2 ms is not little enough");
    stage.board.account(1, 3 * MS + 1, 0, false);
    stage.until(3 * MS);
    assert!(!stage.board.scene().vcpus[0].is_parked);
    stage.board.account(1, 3 * MS + 1, 0, true);
    stage.board.account(0, 20 * MS, 0, false);
    stage.until(4 * MS);
    assert!(!stage.board.scene().vcpus[0].is_parked, "nobody waits for one that has nothing to do");
}

#[test]
fn folding_takes_a_vcpu_off_where_steal_is_high_and_brings_it_back_where_it_is_low() {
    let mut stage = Stage::new("folding:high=5%,low=2%,period=10ms", 2, &[3]);
    let parked =
        |stage: &Stage| -> Vec<_> { stage.board.scene().vcpus.iter().map(|vcpu| vcpu.is_parked).collect() };
    (0..3).for_each(|vcpu| stage.board.account(vcpu, 8 * MS, 2 * MS, false));
    stage.tell(2, HOLDS);
    stage.until(11 * MS);
    assert_eq!(parked(&stage), [false; 3], "it holds a lock");
    stage.tell(2, Told::default());
    stage.until(12 * MS);
    assert_eq!(parked(&stage), [false, false, true]);
    (0..3).for_each(|vcpu| stage.board.account(vcpu, 18 * MS, 2 * MS, false));
    stage.until(20 * MS);
    assert_eq!(parked(&stage), [false; 3]);
}

#[test]
fn replay_runs_who_ran_when_and_begins_anew_at_the_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("trace.csv");
    std::fs::write(&path, "0,0,1,2000000\n2000000,0,-,1000000\n3000000,0,0,1000000\n")
        .expect("a temporary file");
    let text = format!("replay:scale=200,file={}", path.display());
    let switches: Vec<_> =
        rehearsed(&text, 1, 1, &[2]).iter().map(|s| (s.at - SECOND, s.vcpu)).take(5).collect();
    let ms = |at: Ns, vcpu| (at * MS, vcpu);
    assert_eq!(switches, [ms(0, Some(1)), ms(4, None), ms(6, Some(0)), ms(8, Some(1)), ms(12, None)]);
}

#[test]
fn policies_that_make_no_sense_are_refused_and_say_what_there_is() {
    for (text, message) in [
        ("sleepy", "there is no policy \"sleepy\" (policies are host, rr,"),
        ("rr:quantum=soon", "quantum=soon cannot be read (the length of a turn"),
        ("rr:quantum=1us", "quantum=1us cannot be read (the length of a turn, 100us at least"),
        ("rr:speed=9", "policy rr has no parameter \"speed\" (it has jitter, phase, halts, quantum)"),
        ("replay", "policy replay needs file= (a trace"),
        ("replay:file=/nowhere/at/all", "cannot read /nowhere/at/all: "),
        ("yield:target=mars", "target=mars cannot be read (named, holder, next, any)"),
        ("adversary:p=2", "p=2 cannot be read (a share"),
        ("credit:weight=0", "weight=0 cannot be read (numbers from 1"),
    ] {
        let error = text.parse::<PolicyChoice>().expect_err(text).to_string();
        assert!(error.starts_with(message), "{error}");
    }
}
