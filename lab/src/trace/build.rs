//! Builds a trace from the records of a run.

use protocol::payload::hints::EpisodeKind;

use super::{Event, PREEMPTION, Trace, What};
use crate::guest::LabRun;
use crate::policy::{Ns, Vcpu};
use crate::sched::SchedOutcome;
use crate::sched::fidelity::OnCpu;
use steal_time::publisher::PublisherKind;
use vmm::hooks::Descheduled;

/// Interval between two values of a counter (ns).
const COUNTER_INTERVAL_NS: Ns = 1_000_000;

/// Tracks and recorded data of a vCPU.
struct VcpuTracks<'r> {
    /// Track of its thread's state.
    state: usize,
    /// Track of its `preempted` byte.
    preempted: usize,
    /// Track of its lock episodes.
    locks: usize,
    on_cpu: Vec<OnCpu>,
    descheduled: &'r [Descheduled],
}

/// Builds the trace of a scheduled run.
pub fn of(sched: &SchedOutcome, guests: &[LabRun]) -> Trace {
    let mut trace =
        Trace { lost: sched.log.lost + sched.lost_switches + sched.lost_episodes, ..Trace::default() };
    let window = (sched.began_ns, sched.ended_ns);
    let name = |vcpu: Vcpu| name_of(vcpu, &sched.vcpus);
    let mut on_cpu = sched.on_cpu().unwrap_or_default().into_iter();

    let host = trace.track(None, "host".to_owned());
    let cpus: Vec<_> = sched.cpus.iter().map(|cpu| trace.track(Some(host), format!("CPU {cpu}"))).collect();
    let plans: Vec<_> =
        sched.cpus.iter().map(|cpu| trace.track(Some(host), format!("CPU {cpu} plan"))).collect();
    add_plan(&mut trace, sched, &plans, &name);

    let mut vcpus = Vec::new();
    for (guest, run) in guests.iter().enumerate() {
        let group = trace.track(None, format!("guest {guest}"));
        let first = vcpus.len();
        for (index, recorded) in run.vcpus.iter().enumerate() {
            vcpus.push(VcpuTracks {
                state: trace.track(Some(group), format!("vCPU {index}")),
                preempted: trace.track(Some(group), format!("vCPU {index} preempted")),
                locks: trace.track(Some(group), format!("vCPU {index} locks")),
                on_cpu: on_cpu.next().unwrap_or_default(),
                descheduled: &recorded.descheduled,
            });
        }
        let steal = trace.counter(group, "steal", "us");
        let acquisitions = trace.counter(group, "acquisitions", "per ms");
        let program_publishes =
            matches!(run.monitor.publisher, PublisherKind::Bpf | PublisherKind::BpfClassic);
        for (index, vcpu) in vcpus.iter().enumerate().skip(first) {
            add_state(&mut trace, vcpu, window);
            add_preempted(&mut trace, vcpu, program_publishes, window);
            for span in &vcpu.on_cpu {
                let cpu = sched.cpus.iter().position(|cpu| *cpu == span.cpu).and_then(|cpu| cpus.get(cpu));
                if let Some(cpu) = cpu {
                    trace.slice(*cpu, name(index), span.from, span.to);
                }
            }
        }
        add_steal(&mut trace, steal, &vcpus[first..], window);
        for sample in sched.samples.iter().filter(|sample| sample.guest == guest) {
            trace.count(acquisitions, sample.at_ns, sample.per_ms);
        }
    }
    add_episodes(&mut trace, sched, &vcpus);
    add_preemptions(&mut trace, sched, &vcpus);
    sort(&mut trace.events);
    trace
}

/// Label of a vCPU: its index in its guest, and the guest if there are several. `vcpus` holds the
/// number of each guest.
fn name_of(vcpu: Vcpu, vcpus: &[usize]) -> String {
    let mut first = 0;
    for (guest, count) in vcpus.iter().enumerate() {
        if vcpu < first + count {
            let vcpu = vcpu - first;
            return if vcpus.len() == 1 {
                format!("vCPU {vcpu}")
            } else {
                format!("guest {guest} vCPU {vcpu}")
            };
        }
        first += count;
    }
    format!("vCPU {vcpu}")
}

/// Adds the assignments and decisions of each CPU.
fn add_plan(trace: &mut Trace, sched: &SchedOutcome, rows: &[usize], name: &impl Fn(Vcpu) -> String) {
    for (cpu, row) in rows.iter().enumerate() {
        let here: Vec<_> = sched.log.assignments.iter().filter(|one| one.cpu == cpu).collect();
        for (index, one) in here.iter().enumerate() {
            trace.instant(*row, "decision", one.decided_ns);
            let to = here.get(index + 1).map_or(sched.ended_ns, |next| next.decided_ns);
            let label = one.to.map_or_else(|| if one.to_host { "host" } else { "idle" }.to_owned(), name);
            trace.slice(*row, label, one.decided_ns, to);
        }
    }
}

/// The gaps of `vcpu` between two intervals on a CPU: its state, start and end (ns).
fn off_cpu(vcpu: &VcpuTracks<'_>, (begin, end): (Ns, Ns)) -> Vec<(&'static str, Ns, Ns)> {
    let is_descheduled = |at: Ns| {
        let index = vcpu.descheduled.partition_point(|interval| interval.to_ns <= at);
        vcpu.descheduled.get(index).is_some_and(|interval| interval.from_ns <= at)
    };
    let (mut at, mut was_preempted) = (begin, false);
    let mut gaps = Vec::with_capacity(vcpu.on_cpu.len() + 1);
    let last = OnCpu { from: end, to: end, cpu: 0, was_preempted: false };
    for span in vcpu.on_cpu.iter().chain([&last]) {
        let middle = at + span.from.saturating_sub(at) / 2;
        let state = match was_preempted {
            _ if is_descheduled(middle) => "descheduled",
            true => "preempted",
            false => "blocked",
        };
        gaps.push((state, at, span.from));
        (at, was_preempted) = (span.to, span.was_preempted);
    }
    gaps
}

/// The intervals that lie within `window` for which the monitor descheduled `vcpu`.
fn descheduled_within<'r>(
    vcpu: &VcpuTracks<'r>,
    (begin, end): (Ns, Ns),
) -> impl Iterator<Item = &'r Descheduled> {
    vcpu.descheduled.iter().filter(move |interval| interval.requested_ns >= begin && interval.to_ns <= end)
}

/// Adds the states of the thread of `vcpu`, and its kicks.
fn add_state(trace: &mut Trace, vcpu: &VcpuTracks<'_>, window: (Ns, Ns)) {
    for (state, from, to) in off_cpu(vcpu, window) {
        trace.slice(vcpu.state, state, from, to);
    }
    for span in &vcpu.on_cpu {
        trace.slice(vcpu.state, "running", span.from, span.to);
    }
    for interval in descheduled_within(vcpu, window) {
        trace.instant(vcpu.state, "kick", interval.requested_ns);
    }
}

/// Adds the intervals for which the `preempted` byte of `vcpu` is set. With a BPF publisher the
/// program sets it for preemptions; the thread sets it while it is descheduled.
fn add_preempted(trace: &mut Trace, vcpu: &VcpuTracks<'_>, program_publishes: bool, window: (Ns, Ns)) {
    if program_publishes {
        for (state, from, to) in off_cpu(vcpu, window) {
            if state == "preempted" {
                trace.slice(vcpu.preempted, state, from, to);
            }
        }
    }
    // If the thread was off its CPU already, the program has set the byte.
    let is_on_cpu = |at: Ns| vcpu.on_cpu.iter().any(|span| span.from <= at && at < span.to);
    for interval in descheduled_within(vcpu, window) {
        if !program_publishes || is_on_cpu(interval.published_ns) {
            trace.slice(vcpu.preempted, "preempted", interval.published_ns, interval.to_ns);
        }
    }
}

/// Adds the cumulative steal of the vCPUs of a guest (us): time preempted or descheduled.
fn add_steal(trace: &mut Trace, track: usize, vcpus: &[VcpuTracks<'_>], (begin, end): (Ns, Ns)) {
    let mut stolen = Vec::new();
    for vcpu in vcpus {
        let pairs = vcpu.on_cpu.iter().zip(vcpu.on_cpu.iter().skip(1));
        let preempted =
            pairs.filter(|(before, _)| before.was_preempted).map(|(before, after)| (before.to, after.from));
        let descheduled = vcpu.descheduled.iter().map(|interval| (interval.from_ns, interval.to_ns));
        stolen.extend(preempted.chain(descheduled).filter(|(from, to)| from < to && *from >= begin));
    }
    stolen.sort_unstable_by_key(|(_, to)| *to);
    let (mut sum, mut next) = (0, 0);
    let mut at = begin;
    while at < end {
        at += COUNTER_INTERVAL_NS;
        while let Some((from, to)) = stolen.get(next).filter(|(_, to)| *to <= at) {
            sum += to - from;
            next += 1;
        }
        trace.count(track, at.min(end), sum / 1_000);
    }
}

/// Adds the lock episodes that lie within the run.
fn add_episodes(trace: &mut Trace, sched: &SchedOutcome, vcpus: &[VcpuTracks<'_>]) {
    let has_several_locks = sched.episodes.iter().any(|episode| episode.lock > 0);
    for episode in &sched.episodes {
        let Some(vcpu) = vcpus.get(episode.vcpu) else { continue };
        let label = match episode.kind {
            EpisodeKind::Waited => "waits",
            EpisodeKind::Held => "holds",
            EpisodeKind::Read => "reads",
        };
        let label =
            if has_several_locks { format!("{label} lock {}", episode.lock) } else { label.to_owned() };
        if sched.began_ns <= episode.from_ns && episode.to_ns <= sched.ended_ns {
            trace.slice(vcpu.locks, label, episode.from_ns, episode.to_ns);
        }
    }
}

/// Adds an instant for each vCPU that a decision preempts or throttles.
fn add_preemptions(trace: &mut Trace, sched: &SchedOutcome, vcpus: &[VcpuTracks<'_>]) {
    let log = &sched.log;
    let switched = log.assignments.iter().filter_map(|one| Some((one.from?, one.decided_ns)));
    let throttled = log.throttles.iter().filter(|one| one.is_throttled).map(|one| (one.vcpu, one.decided_ns));
    for (vcpu, at) in switched.chain(throttled) {
        if let Some(vcpu) = vcpus.get(vcpu) {
            trace.instant(vcpu.state, PREEMPTION, at);
        }
    }
}

/// Sorts events by time. At equal times, slices end before others begin.
fn sort(events: &mut [Event]) {
    let rank = |event: &Event| match event.what {
        What::End => 0,
        What::Instant(_) | What::Count(_) => 1,
        What::Begin(_) => 2,
    };
    events.sort_by_key(|event| (event.at, rank(event)));
}
