//! Fidelity: how far what happened is what was planned.
//!
//! Pure: the log of decisions and perf's record of switches go in, both on one clock; how long whoever was planned ran where he
//! was planned comes out, how long decisions took, and which gaps nobody had planned.

use super::log::Chosen;
use crate::policy::{Cpu, Ns, Vcpu};
use host::perf::{Switch, SwitchKind};

/// Time in which no vCPU ran on a CPU that was planned for one, and the planned one wanted to, is a hole from so long on.
const HOLE_NS: Ns = 1_000_000;
/// Holes that are closer than this are of one gap.
const APART_NS: Ns = 100_000_000;
/// A gap is told from so long on, all its holes together.
const GAP_NS: Ns = 20_000_000;

/// The fair server's share of each second, where anybody of the fair class is starved: 50 ms, of which some may have been had
/// before. Nothing else comes before the real-time classes for so long.
const FAIR_SERVER_NS: std::ops::RangeInclusive<Ns> = GAP_NS..=60_000_000;

/// A time for which a vCPU thread had a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnCpu {
    /// From when.
    pub from: Ns,
    /// Until when.
    pub to: Ns,
    /// The host's number of the CPU.
    pub cpu: usize,
    /// Whether it lost the CPU; it gave it up otherwise.
    pub was_preempted: bool,
}

/// A gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    /// The host's number of the CPU.
    pub cpu: usize,
    /// When it began, from the begin of steering on (ns).
    pub at_ns: Ns,
    /// How long its holes were together (ns).
    pub length_ns: Ns,
    /// How many there were.
    pub holes: usize,
    /// `fair server` where nothing else can take a CPU from a real-time class for so long, `foreign` otherwise.
    pub name: &'static str,
}

/// What came of a plan. Times in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fidelity {
    /// CPU time of all vCPU threads.
    pub ran: Ns,
    /// CPU time for which a vCPU was planned.
    pub planned: Ns,
    /// Of what they ran, in their turns.
    pub in_turn: Ns,
    /// From the moment that a decision was due to that at which it was made.
    pub late: Vec<Ns>,
    /// From a decision to the new vCPU's thread having the CPU.
    pub on: Vec<Ns>,
    /// From a decision to the old one's having lost it.
    pub off: Vec<Ns>,
    /// Decisions whose vCPU did not get the CPU before the next one.
    pub missed: u64,
    /// Gaps.
    pub gaps: Vec<Gap>,
}

/// The times for which a thread had a CPU, of its `switches` between `begin` and `end`.
pub fn on_cpu(switches: &[Switch], begin: Ns, end: Ns) -> Vec<OnCpu> {
    let mut on_cpu = Vec::new();
    let mut open: Option<(Ns, u32)> = None;
    // One that loses a CPU first has had it from the beginning on.
    if let Some(first) = switches.iter().find(|switch| switch.at_ns >= begin)
        && first.kind != SwitchKind::In
    {
        open = Some((begin, first.cpu));
    }
    let mut close = |from: Ns, to: Ns, cpu: u32, was_preempted| {
        let (from, to) = (from.max(begin), to.min(end));
        if from < to {
            on_cpu.push(OnCpu { from, to, cpu: cpu as usize, was_preempted });
        }
    };
    for switch in switches {
        match switch.kind {
            SwitchKind::In => open = Some((switch.at_ns, switch.cpu)),
            kind => {
                if let Some((from, cpu)) = open.take() {
                    close(from, switch.at_ns, cpu, kind == SwitchKind::Preempted);
                }
            }
        }
    }
    if let Some((from, cpu)) = open {
        close(from, end, cpu, false);
    }
    on_cpu
}

/// A time for which something was planned for a CPU.
#[derive(Clone, Copy, Debug)]
struct Slot {
    from: Ns,
    to: Ns,
    cpu: Cpu,
    vcpu: Option<Vcpu>,
}

/// The plan, from `begin` to `end`, by begin. What was left to the host is not in it.
fn slots(chosen: &[Chosen], begin: Ns, end: Ns) -> Vec<Slot> {
    let cpus = chosen.iter().map(|chosen| chosen.cpu + 1).max().unwrap_or(0);
    let mut slots = Vec::with_capacity(chosen.len());
    for cpu in 0..cpus {
        let here: Vec<_> = chosen.iter().filter(|chosen| chosen.cpu == cpu).collect();
        for (index, one) in here.iter().enumerate() {
            let to = here.get(index + 1).map_or(end, |next| next.decided_ns).min(end);
            let from = one.decided_ns.max(begin);
            if from < to && !one.is_hosts {
                slots.push(Slot { from, to, cpu, vcpu: one.to });
            }
        }
    }
    slots.sort_by_key(|slot| slot.from);
    slots
}

/// Judges what `chosen` planned by the `on_cpu` of each vCPU, from `begin` to `end`. `cpus` are the host's numbers;
/// `are_first` says whether vCPU threads are of a real-time class.
pub fn judge(
    chosen: &[Chosen],
    on_cpu: &[Vec<OnCpu>],
    cpus: &[usize],
    (begin, end): (Ns, Ns),
    are_first: bool,
) -> Fidelity {
    let slots = slots(chosen, begin, end);
    let number = |cpu: Cpu| cpus.get(cpu).copied();
    let mut result = Fidelity {
        ran: on_cpu.iter().flatten().map(|span| span.to - span.from).sum(),
        planned: slots.iter().filter(|slot| slot.vcpu.is_some()).map(|slot| slot.to - slot.from).sum(),
        late: chosen.iter().map(|one| one.decided_ns.saturating_sub(one.due_ns)).collect(),
        ..Fidelity::default()
    };
    let mut next = vec![0; on_cpu.len()];
    for slot in &slots {
        let Some((vcpu, own)) = slot.vcpu.and_then(|vcpu| Some((vcpu, on_cpu.get(vcpu)?))) else { continue };
        // Slots come by begin, so what is over for one is over for those behind it.
        while own.get(next[vcpu]).is_some_and(|span| span.to <= slot.from) {
            next[vcpu] += 1;
        }
        let within = own.iter().skip(next[vcpu]).take_while(|span| span.from < slot.to);
        let here = within.filter(|span| Some(span.cpu) == number(slot.cpu));
        result.in_turn += here.map(|span| span.to.min(slot.to) - span.from.max(slot.from)).sum::<Ns>();
    }
    reactions(chosen, on_cpu, &number, end, &mut result);
    result.gaps = gaps(&slots, on_cpu, &number, begin, are_first);
    result
}

/// How long it took from each decision until it was so.
fn reactions(
    chosen: &[Chosen],
    on_cpu: &[Vec<OnCpu>],
    number: &impl Fn(Cpu) -> Option<usize>,
    end: Ns,
    result: &mut Fidelity,
) {
    // For each CPU, when it is decided on next; so backwards.
    let mut until = vec![end; chosen.iter().map(|one| one.cpu + 1).max().unwrap_or(0)];
    for one in chosen.iter().rev() {
        let next = std::mem::replace(&mut until[one.cpu], one.decided_ns);
        let span_of = |vcpu: Option<Vcpu>| {
            let own = on_cpu.get(vcpu?)?;
            own.get(own.partition_point(|span| span.to <= one.decided_ns)).filter(|span| span.from < end)
        };
        match span_of(one.to).filter(|span| span.from < next && Some(span.cpu) == number(one.cpu)) {
            Some(span) if span.from >= one.decided_ns => result.on.push(span.from - one.decided_ns),
            // It had the CPU already, the one before having halted.
            Some(_) => {}
            None => result.missed += u64::from(one.to.is_some()),
        }
        if let Some(span) = span_of(one.from).filter(|span| span.from < one.decided_ns && span.to < next) {
            result.off.push(span.to - one.decided_ns);
        }
    }
}

/// Gaps on CPUs for which a vCPU was planned that wanted to run.
fn gaps(
    slots: &[Slot],
    on_cpu: &[Vec<OnCpu>],
    number: &impl Fn(Cpu) -> Option<usize>,
    begin: Ns,
    are_first: bool,
) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let cpus = slots.iter().map(|slot| slot.cpu + 1).max().unwrap_or(0);
    for cpu in 0..cpus {
        let Some(host_cpu) = number(cpu) else { continue };
        let planned: Vec<_> = slots.iter().filter(|slot| slot.cpu == cpu && slot.vcpu.is_some()).collect();
        // From the begin of its first hole to the end of its last.
        let mut open: Option<(Gap, Ns)> = None;
        for (from, to) in holes(&planned, on_cpu, host_cpu) {
            match &mut open {
                Some((gap, end)) if from - *end < APART_NS => {
                    gap.length_ns += to - from;
                    gap.holes += 1;
                    *end = to;
                }
                _ => {
                    gaps.extend(open.take().map(|(gap, _)| gap));
                    let at_ns = from.saturating_sub(begin);
                    open = Some((Gap { cpu: host_cpu, at_ns, length_ns: to - from, holes: 1, name: "" }, to));
                }
            }
        }
        gaps.extend(open.map(|(gap, _)| gap));
    }
    gaps.retain(|gap| gap.length_ns >= GAP_NS);
    for gap in &mut gaps {
        let is_fair_server = are_first && FAIR_SERVER_NS.contains(&gap.length_ns);
        gap.name = if is_fair_server { "fair server" } else { "foreign" };
    }
    gaps.sort_by_key(|gap| gap.at_ns);
    gaps
}

/// Times for which no vCPU ran on this CPU, though the last one had lost it against its will and one was `planned`, in order.
fn holes(planned: &[&Slot], on_cpu: &[Vec<OnCpu>], host_cpu: usize) -> Vec<(Ns, Ns)> {
    let mut here: Vec<_> = on_cpu.iter().flatten().filter(|span| span.cpu == host_cpu).collect();
    here.sort_by_key(|span| span.from);
    let is_planned = |from: Ns, to: Ns| {
        let first = planned.partition_point(|slot| slot.to <= from);
        let within = planned.iter().skip(first).take_while(|slot| slot.from < to);
        within.map(|slot| slot.to.min(to) - slot.from.max(from)).sum::<Ns>() >= (to - from) / 2
    };
    let pairs = here.iter().zip(here.iter().skip(1)).filter(|(before, _)| before.was_preempted);
    let holes = pairs.map(|(before, after)| (before.to, after.from.max(before.to)));
    holes.filter(|(from, to)| to - from >= HOLE_NS && is_planned(*from, *to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Ns = 1_000;
    const MS: Ns = 1_000_000;

    fn switch(at_ns: Ns, kind: SwitchKind) -> Switch {
        Switch { at_ns, kind, cpu: 4 }
    }

    fn chosen(decided_ns: Ns, from: Option<Vcpu>, to: Option<Vcpu>) -> Chosen {
        Chosen {
            due_ns: decided_ns - 20 * US,
            decided_ns,
            done_ns: decided_ns + 5 * US,
            cpu: 0,
            from,
            to,
            is_hosts: false,
        }
    }

    #[test]
    fn stays_begin_where_the_log_does_and_end_with_it() {
        let log = [
            switch(3 * MS, SwitchKind::Preempted),
            switch(6 * MS, SwitchKind::In),
            switch(7 * MS, SwitchKind::Blocked),
            switch(9 * MS, SwitchKind::In),
        ];
        let span = |from, to, was_preempted| OnCpu { from: from * MS, to: to * MS, cpu: 4, was_preempted };
        assert_eq!(on_cpu(&log, MS, 10 * MS), [span(1, 3, true), span(6, 7, false), span(9, 10, false)]);
    }

    #[test]
    fn time_in_turn_and_reactions_are_those_of_the_planned_one_on_the_planned_cpu() {
        let plan =
            [chosen(MS, None, Some(0)), chosen(4 * MS, Some(0), Some(1)), chosen(7 * MS, Some(1), None)];
        let span = |from, to| OnCpu { from, to, cpu: 4, was_preempted: true };
        let ran = [vec![span(MS + 30 * US, 4 * MS + 10 * US)], vec![span(4 * MS + 40 * US, 7 * MS + 5 * US)]];
        let judged = judge(&plan, &ran, &[4], (MS, 10 * MS), true);
        assert_eq!(judged.planned, 6 * MS);
        assert_eq!(judged.in_turn, 6 * MS - 30 * US - 40 * US);
        assert_eq!(judged.ran, judged.in_turn + 15 * US);
        assert_eq!((judged.on, judged.off), (vec![40 * US, 30 * US], vec![5 * US, 10 * US]));
        assert_eq!((judged.missed, judged.late), (0, vec![20 * US; 3]));
        let elsewhere = judge(&plan, &ran, &[5], (MS, 10 * MS), true);
        assert_eq!((elsewhere.in_turn, elsewhere.missed), (0, 2));
    }

    #[test]
    fn decision_that_is_overtaken_by_the_next_is_missed() {
        let plan = [chosen(MS, None, Some(0)), chosen(2 * MS, Some(0), Some(1))];
        let ran = [vec![OnCpu { from: 3 * MS, to: 4 * MS, cpu: 4, was_preempted: false }], Vec::new()];
        let judged = judge(&plan, &ran, &[4], (MS, 10 * MS), true);
        assert_eq!((judged.missed, judged.in_turn, judged.on.len()), (2, 0, 0));
    }

    #[test]
    fn fair_servers_gaps_are_named_and_a_halt_is_none() {
        let plan = [chosen(MS, None, Some(0))];
        let span = |from, to, was_preempted| OnCpu { from: from * MS, to: to * MS, cpu: 4, was_preempted };
        let taken = [vec![
            span(1, 900, true),
            span(950, 1000, true),
            span(1000, 1200, true),
            span(1300, 1400, false),
            span(1450, 1500, false),
        ]];
        let gaps = judge(&plan, &taken, &[4], (MS, 2000 * MS), true).gaps;
        let gap =
            |at, length, holes, name| Gap { cpu: 4, at_ns: at * MS, length_ns: length * MS, holes, name };
        assert_eq!(gaps, [gap(899, 50, 1, "fair server"), gap(1199, 100, 1, "foreign")]);
        let in_turn = judge(&plan, &taken, &[4], (MS, 2000 * MS), false).gaps;
        assert_eq!(in_turn[0], gap(899, 50, 1, "foreign"), "among equals it may have been anybody");
        // The fair server gives its time in pieces where that is how it is asked for.
        let pieces = [(0..8).map(|piece| span(1 + 20 * piece, 15 + 20 * piece, true)).collect::<Vec<_>>()];
        let gaps = judge(&plan, &pieces, &[4], (MS, 2000 * MS), true).gaps;
        assert_eq!(gaps, [gap(14, 42, 7, "fair server")]);
    }
}
