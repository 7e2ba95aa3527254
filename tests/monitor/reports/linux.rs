//! What tools show inside a small Linux guest: the first line of its `/proc/stat`, thirty times.
//!
//! One run serves all tests. First the guest sleeps, and is paused, saved, restored and resumed a
//! thousand times. Then it loops, and a task of the host competes for its CPU.

use std::fs;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use host::cpu_hog::{Burst, CpuHog, HogLoad};
use host::thread::Class;
use lab::guest::LabGuest;
use steal_time::publisher::PublisherKind;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

use crate::linux::{LIMIT, Linux, Log};
use crate::support::{Exclusive, Fixture, cpus, needs, steal_ns};

const ROUNDS: u32 = 1000;

/// Ticks of each state of the guest's CPU, in the order of `/proc/stat`.
type Ticks = Vec<u64>;

const IDLE: usize = 3;
const STEAL: usize = 7;

/// A tick (ns).
const TICK_NS: u64 = 10_000_000;

struct Run {
    /// What the guest printed while it slept, and while it looped.
    asleep: Vec<Ticks>,
    busy: Vec<Ticks>,
    /// Run delay of the vCPU's thread while the guest slept and printed (ns).
    host_delay_ns: u64,
    /// Pauses in which the record had less steal than in the one before.
    falls: u32,
}

/// An archive (cpio, newc) of folders, the console's node, and `init`.
fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]| {
        let length = u32::try_from(content.len()).expect("small");
        let name_length = u32::try_from(name.len() + 1).expect("small");
        let fields = [1, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add("dev", 0o040_755, (0, 0), &[]);
    add("dev/console", 0o020_600, (5, 1), &[]);
    add("proc", 0o040_755, (0, 0), &[]);
    add("init", 0o100_755, (0, 0), init);
    add("TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// The ticks that the guest has printed, until the line `busy` and after it.
fn printed(log: &Log) -> [Vec<Ticks>; 2] {
    let lines = log.lines_with("");
    let busy = lines.iter().position(|line| line == "busy").unwrap_or(lines.len());
    let ticks = |line: &String| {
        let fields = line.strip_prefix("cpu ")?.split_ascii_whitespace();
        Some(fields.map(|field| field.parse().expect("a number")).collect())
    };
    [&lines[..busy], &lines[busy..]].map(|lines| lines.iter().filter_map(ticks).collect())
}

fn measure(linux: &Linux) -> Run {
    let init = Fixture::assembled("stat_init.S");
    let initrd = Fixture::file("initramfs.cpio", &initramfs(&fs::read(&init.path).expect("it was built")));
    let payload = Fixture::file("vmlinux", &linux.kernel);
    let cpu = cpus().first(1);
    let config = linux.config(1, PublisherKind::Bpf, &payload, "").on(cpu.clone());
    let config = config.with(|guest| guest.initrd = Some(initrd.path.clone()));
    let _exclusive = Exclusive::take();
    let log = Log::default();
    let guest = LabGuest::start(&config, log.clone(), Timings::since(Instant::now())).expect("it starts");
    let wait_for = |line: &str| {
        let began = Instant::now();
        while log.lines_with(line).is_empty() {
            assert!(began.elapsed() < LIMIT, "no line {line:?} in {:#?}", log.lines_with(""));
            thread::sleep(Duration::from_millis(1));
        }
    };
    wait_for("cpu ");
    let (mut rounds, mut host_delay_ns, mut first, mut falls, mut steal) = (0, 0, None, 0, 0);
    while rounds < ROUNDS || log.lines_with("busy").is_empty() {
        let vm = guest.vm();
        let paused = vm.pause().expect("nothing else pauses it");
        let saved = vm.save_steal_time(&paused).expect("it has not ended");
        vm.restore_steal_time(&paused, &saved).expect("it fits");
        let snapshot = &vm.snapshot(&paused)[0];
        let delay = snapshot.account.expect("/proc is readable").run_delay_ns - snapshot.discarded_ns;
        host_delay_ns = delay - *first.get_or_insert(delay);
        let now = steal_ns(snapshot.record.as_ref());
        falls += u32::from(std::mem::replace(&mut steal, now) > now);
        vm.resume(paused);
        rounds += 1;
        assert!(rounds < 100 * ROUNDS, "no line \"busy\" in {:#?}", log.lines_with(""));
        thread::sleep(Duration::from_millis(2));
    }
    let spin = Burst::with_duty(Duration::from_millis(50), 1.0);
    let load = HogLoad { bursts: vec![spin], jitter: false, class: Class::Fair };
    let hog = CpuHog::start(&load, [cpu]).expect("a thread can be started");
    wait_for("GUEST-DONE");
    drop(hog);
    let run = guest.wait().expect("the guest ends");
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?}", run.monitor.outcome);
    let [asleep, busy] = printed(&log);
    assert!(asleep.len() == 20 && busy.len() == 10, "{asleep:?} {busy:?}");
    eprintln!("asleep {:?} to {:?}", asleep[0], asleep.last());
    eprintln!("busy {:?} to {:?}", busy[0], busy.last());
    Run { asleep, busy, host_delay_ns, falls }
}

/// The run that all tests read; `None` without the small Linux.
fn run() -> Option<&'static Run> {
    static RUN: OnceLock<Option<Run>> = OnceLock::new();
    RUN.get_or_init(|| Some(measure(&Linux::find()?))).as_ref()
}

fn total(ticks: &Ticks) -> u64 {
    // Guest time is contained in user time
    ticks[..8].iter().sum()
}

/// The growth from line to line.
fn intervals<'a>(lines: &'a [Ticks], value: impl Fn(&Ticks) -> u64 + 'a) -> impl Iterator<Item = i64> + 'a {
    let signed = |value: u64| i64::try_from(value).expect("small");
    lines.windows(2).map(move |pair| signed(value(&pair[1])) - signed(value(&pair[0])))
}

/// htop issue 289: after a live migration an idle guest shows 100 % load. Here an idle guest that
/// is saved and restored a thousand times shows no steal but its thread's run delay, and idles.
#[test]
fn idle_linux_saved_and_restored_a_thousand_times_shows_no_load() {
    needs!(bpf);
    let Some(run) = run() else { return };
    let steal: i64 = intervals(&run.asleep, |ticks| ticks[STEAL]).sum();
    let idle: i64 = intervals(&run.asleep, |ticks| ticks[IDLE]).sum();
    let most = i64::try_from(run.host_delay_ns / TICK_NS).expect("small") + 20;
    assert!(steal <= most, "{steal} ticks of steal, at most {most}: {:?}", run.asleep);
    let total: i64 = intervals(&run.asleep, total).sum();
    eprintln!("{steal} ticks of steal, {idle} idle of {total}");
    assert!(idle * 20 > total, "{idle} of {total} ticks are idle: {:?}", run.asleep);
}

/// Prometheus `node_exporter` issue 742: the steal counter falls by 8e8 in a second (Linux 4.4).
/// Here it never falls.
#[test]
fn steal_counter_of_linux_never_falls_over_a_thousand_pauses() {
    needs!(bpf);
    let Some(run) = run() else { return };
    for lines in [&run.asleep, &run.busy] {
        assert!(intervals(lines, |ticks| ticks[STEAL]).all(|grown| grown >= 0), "{lines:?}");
    }
    assert_eq!(run.falls, 0, "the record that the counter is made of never falls either");
}

/// Telegraf issue 2871: "current total CPU time is less than previous CPU time" after a migration.
/// Here no total is less than the one before.
#[test]
fn total_cpu_time_of_linux_never_falls_over_save_and_restore() {
    needs!(bpf);
    let Some(run) = run() else { return };
    for lines in [&run.asleep, &run.busy] {
        assert!(intervals(lines, total).all(|grown| grown >= 0), "{lines:?}");
    }
}

/// sysstat issue 95: steal is 100 % or always 0. Here, by sysstat's arithmetic, a guest that loops
/// beside one task of the host shows a share of steal in between.
#[test]
fn share_of_steal_of_a_busy_linux_is_neither_all_nor_nothing() {
    needs!(bpf);
    let Some(run) = run() else { return };
    let steal: i64 = intervals(&run.busy, |ticks| ticks[STEAL]).sum();
    let total: i64 = intervals(&run.busy, total).sum();
    let share = steal as f64 / total as f64;
    assert!((0.2..0.9).contains(&share), "{steal} of {total} ticks are steal: {:?}", run.busy);
}
