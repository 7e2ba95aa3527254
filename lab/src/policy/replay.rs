//! Replay: who ran in a trace, runs again.
//!
//! A trace is a CSV file, a line for each turn, `at_ns,cpu,vcpu,length_ns` (vcpu `-` for nobody), or the text of
//! `perf sched script` or of ftrace, of which the `sched_switch` lines of vCPU threads count: those named `CPU 0/KVM`, `vcpu0`
//! or `fc_vcpu 0`. CPUs and vCPUs are numbered as they first appear; those that are too many here share. `scale` stretches
//! time. At its end the trace begins anew.

use std::collections::BTreeMap;

use super::parameters::{ParameterError, Parameters};
use super::{Cpu, Decision, Event, Ns, Policy, Scene, Vcpu};

/// A turn of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// When it begins, from the begin of the trace on.
    pub at: Ns,
    /// Where.
    pub cpu: Cpu,
    /// Whose it is; `None` for nobody's.
    pub vcpu: Option<Vcpu>,
    /// How long it is.
    pub length: Ns,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Replay {
    turns: Vec<Turn>,
    length: Ns,
    began: Ns,
    /// The next turn of each CPU, and how often the trace was over there.
    next: Vec<(usize, u64)>,
}

impl Replay {
    /// `file`, which `read` reads; `scale`, in percent.
    ///
    /// # Errors
    /// [`ParameterError`], also of a file that is no trace.
    pub fn from_parameters(
        parameters: &mut Parameters<'_>,
        read: &dyn Fn(&str) -> std::io::Result<String>,
    ) -> Result<Self, ParameterError> {
        let percent: u64 = parameters.number("scale", 100, 1..=1_000_000)?;
        let path = parameters.needed("file", "a trace: CSV, or the text of perf sched or ftrace")?;
        let failed = |why: String| ParameterError::File { path: path.to_owned(), why };
        let text = read(path).map_err(|error| failed(error.to_string()))?;
        let mut turns = parse(&text).map_err(failed)?;
        for turn in &mut turns {
            turn.at = turn.at.saturating_mul(percent) / 100;
            turn.length = turn.length.saturating_mul(percent) / 100;
        }
        let length = turns.iter().map(|turn| turn.at.saturating_add(turn.length)).max().unwrap_or(0);
        if length == 0 {
            return Err(failed("no time passes in it".to_owned()));
        }
        Ok(Self { turns, length, began: 0, next: Vec::new() })
    }

    /// The first turn of `cpu` that is not over.
    fn turn(&mut self, cpu: Cpu, scene: &Scene) -> Option<(Option<Vcpu>, Ns)> {
        let cpus = scene.cpus.len().max(1);
        let (next, rounds) = self.next.get_mut(cpu)?;
        // A trace in which this CPU does not occur is gone through once, and no more.
        for _ in 0..=2 * self.turns.len() {
            let Some(turn) = self.turns.get(*next) else {
                (*next, *rounds) = (0, *rounds + 1);
                // Rounds that are over are not gone through.
                *rounds = (*rounds).max(scene.now.saturating_sub(self.began) / self.length);
                continue;
            };
            let end = self.began + self.length * *rounds + turn.at + turn.length;
            if turn.cpu % cpus == cpu && end > scene.now {
                // What comes before it is nobody's.
                let begin = end - turn.length;
                if begin > scene.now {
                    return Some((None, begin));
                }
                *next += 1;
                return Some((turn.vcpu, end));
            }
            *next += 1;
        }
        None
    }

    fn give(&mut self, cpu: Cpu, scene: &Scene, out: &mut Vec<Decision>) {
        let (vcpu, until) = self.turn(cpu, scene).unwrap_or((None, scene.now + self.length));
        let vcpus = scene.vcpus.len().max(1);
        let is_given = |vcpu: Vcpu| {
            out.iter().any(|other| matches!(other, Decision::Run { vcpu: taken, .. } if *taken == vcpu))
        };
        // Two that share a number here may have run at once there.
        let is_free = |vcpu: &Vcpu| scene.may_run_on(cpu, *vcpu) && !is_given(*vcpu);
        out.push(match vcpu.map(|vcpu| vcpu % vcpus).filter(is_free) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

impl Policy for Replay {
    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.began = scene.now;
                self.next = vec![(0, 0); scene.cpus.len()];
                (0..scene.cpus.len()).for_each(|cpu| self.give(cpu, scene, out));
            }
            Event::Tick { cpu, .. } => self.give(cpu, scene, out),
            _ => {}
        }
    }
}

/// The turns of a trace, by begin.
///
/// # Errors
/// Which line is none of a trace, or that there is none.
pub fn parse(text: &str) -> Result<Vec<Turn>, String> {
    let mut turns = if text.contains("sched_switch:") { switches(text)? } else { rows(text)? };
    if turns.is_empty() {
        return Err("it holds no turn of a vCPU".to_owned());
    }
    turns.sort_by_key(|turn| turn.at);
    let begin = turns.iter().map(|turn| turn.at).min().unwrap_or(0);
    for turn in &mut turns {
        turn.at -= begin;
    }
    Ok(turns)
}

fn rows(text: &str) -> Result<Vec<Turn>, String> {
    let mut turns = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("at_ns") {
            continue;
        }
        let bad = || format!("line {number} is not at_ns,cpu,vcpu,length_ns: {line:?}");
        let cells: Vec<_> = line.split(',').map(str::trim).collect();
        let [at, cpu, vcpu, length] = cells[..] else { return Err(bad()) };
        let vcpu = if vcpu == "-" { None } else { Some(vcpu.parse().map_err(|_| bad())?) };
        let number = |cell: &str| cell.parse::<u64>().map_err(|_| bad());
        turns.push(Turn {
            at: number(at)?,
            cpu: cpu.parse().map_err(|_| bad())?,
            vcpu,
            length: number(length)?,
        });
    }
    Ok(turns)
}

/// Numbers whatever it is asked for in the order in which it is.
#[derive(Default)]
struct Numbers(BTreeMap<u64, usize>);

impl Numbers {
    fn of(&mut self, name: u64) -> usize {
        let next = self.0.len();
        *self.0.entry(name).or_insert(next)
    }
}

fn switches(text: &str) -> Result<Vec<Turn>, String> {
    let (mut cpus, mut vcpus) = (Numbers::default(), Numbers::default());
    let mut turns = Vec::new();
    // Who has run on each CPU since when.
    let mut open: BTreeMap<Cpu, (Ns, Option<Vcpu>)> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some((head, tail)) = line.split_once("sched_switch:") else { continue };
        let bad = || format!("line {number} is no sched_switch of ftrace or perf: {:?}", line.trim());
        let at = moment(head).ok_or_else(bad)?;
        let cpu = bracketed(head).ok_or_else(bad)?;
        let (_, next) = tail.split_once("==>").ok_or_else(bad)?;
        let (name, thread) = thread(next.trim()).ok_or_else(bad)?;
        let cpu = cpus.of(cpu);
        let vcpu = is_vcpu(name).then(|| vcpus.of(thread));
        if let Some((since, vcpu)) = open.insert(cpu, (at, vcpu)) {
            turns.push(Turn { at: since, cpu, vcpu, length: at.saturating_sub(since) });
        }
    }
    if vcpus.0.is_empty() {
        return Ok(Vec::new());
    }
    Ok(turns)
}

/// The last number before the event's name, in seconds, as ns.
fn moment(head: &str) -> Option<Ns> {
    let word = head.split_whitespace().rev().find(|word| word.ends_with(':') && word.contains('.'))?;
    let (seconds, fraction) = word.trim_end_matches(':').split_once('.')?;
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9)?;
    let fraction = fraction.parse::<u64>().ok()? * 10_u64.pow(9 - digits);
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
}

fn bracketed(head: &str) -> Option<u64> {
    let digits = |word: &str| word.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    head.split_whitespace().find_map(digits)
}

/// Name and number of the thread that comes: `next_comm=CPU 0/KVM next_pid=7 ...`, or `CPU 0/KVM:7 [120]`.
fn thread(next: &str) -> Option<(&str, u64)> {
    if let Some(rest) = next.strip_prefix("next_comm=") {
        let (name, rest) = rest.split_once(" next_pid=")?;
        return Some((name, rest.split_whitespace().next()?.parse().ok()?));
    }
    let (thread, _) = next.rsplit_once('[').unwrap_or((next, ""));
    let (name, number) = thread.trim().rsplit_once(':')?;
    Some((name, number.parse().ok()?))
}

fn is_vcpu(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let qemu = name.strip_prefix("CPU ").and_then(|rest| rest.strip_suffix("/KVM"));
    qemu.or(name.strip_prefix("vcpu")).or(name.strip_prefix("fc_vcpu ")).is_some_and(is_number)
}

#[cfg(test)]
mod tests {
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

    fn turn(at: Ns, cpu: Cpu, vcpu: Option<Vcpu>, length: Ns) -> Turn {
        Turn { at, cpu, vcpu, length }
    }

    #[test]
    fn turns_are_read_from_csv_ftrace_and_perf() {
        let csv = "at_ns,cpu,vcpu,length_ns\n# one idles\n500,0,1,100\n600,0,-,50\n";
        assert_eq!(parse(csv).unwrap(), [turn(0, 0, Some(1), 100), turn(100, 0, None, 50)]);
        let us = |us: Ns| us * 1_000;
        let ftrace = [
            turn(0, 0, Some(0), us(3_000)),
            turn(us(3_000), 0, None, us(1_500)),
            turn(us(4_500), 0, Some(1), us(500)),
        ];
        assert_eq!(parse(FTRACE).unwrap(), ftrace);
        assert_eq!(parse(PERF).unwrap(), [turn(0, 0, Some(0), us(250)), turn(us(250), 0, Some(1), us(500))]);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        assert_eq!(parse("1,0,0,5\n1,0,0").unwrap_err(), "line 2 is not at_ns,cpu,vcpu,length_ns: \"1,0,0\"");
        assert!(parse("1,0,-1,5").unwrap_err().starts_with("line 1"));
        assert!(parse("").is_err());
        assert!(parse("sched_switch: nonsense").unwrap_err().starts_with("line 1"));
        assert!(parse("x [0] 1.0: sched_switch: a:1 [120] R ==> make:9 [120]").is_err(), "no vCPU in it");
        for broken in [
            "\u{0}",
            "sched_switch:==>",
            "[] 1.: sched_switch: ==> next_comm=",
            "[9] 1.9999999999: sched_switch: ==> a:1",
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }
}
