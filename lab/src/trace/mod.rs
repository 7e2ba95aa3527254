//! Traces: a run as a picture, a row for each CPU and each vCPU.
//!
//! Everything in it was recorded while the run went on, in places of bounded size whose losses are counted: the policy's
//! decisions ([`crate::steer::log`]), the kernel's switches, the parks of this monitor, and what took long in the guests. All of
//! it is on one clock, the host's monotonic one. Here it is put together, when the run is over; how it is written for a viewer,
//! [`perfetto`] knows.
//!
//! | row | shows |
//! |---|---|
//! | a CPU | whose vCPU had it |
//! | its plan | whose it was to be; an instant for each decision |
//! | a vCPU | running, preempted, parked, asleep; an instant for each preemption by decision, and for each kick |
//! | its byte | while it was set |
//! | its locks | waiting and holding, where that took 10 us and more |
//! | counters | each guest's steal, and its acquisitions in a millisecond |

pub mod perfetto;

use protocol::exchange::EpisodeKind;

use crate::guest::LabRun;
use crate::policy::{Ns, Vcpu};
use crate::steer::SteeringRemains;
use crate::steer::fidelity::Stay;
use steal_time::publisher::PublisherKind;
use vmm::hooks::Descheduled;

/// A row, or what holds rows together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Its name.
    pub name: String,
    /// The row that it belongs to, by its place in [`Trace::tracks`].
    pub parent: Option<usize>,
    /// What a counter counts.
    pub unit: Option<&'static str>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When (ns of the monotonic clock).
    pub at: Ns,
    /// In which row, by its place in [`Trace::tracks`].
    pub track: usize,
    /// What.
    pub what: What,
}

/// What happened in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Something ended, which had begun. It comes before what begins at the same moment.
    End,
    /// Something begins.
    Begin(String),
    /// Something happened, and took no time.
    Instant(&'static str),
    /// A counter's value.
    Count(i64),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The rows.
    pub tracks: Vec<Track>,
    /// What happened, in order of time.
    pub events: Vec<Event>,
    /// What found no room when it was recorded.
    pub lost: u64,
}

/// An instant for each time that a vCPU was to run no more, by decision.
pub const PREEMPTION: &str = "preempted by policy";

/// How often counters are drawn.
const COUNTED_NS: Ns = 1_000_000;

impl Trace {
    fn track(&mut self, parent: Option<usize>, name: String) -> usize {
        self.tracks.push(Track { name, parent, unit: None });
        self.tracks.len() - 1
    }

    fn counter(&mut self, parent: usize, name: &str, unit: &'static str) -> usize {
        self.tracks.push(Track { name: name.to_owned(), parent: Some(parent), unit: Some(unit) });
        self.tracks.len() - 1
    }

    fn slice(&mut self, track: usize, name: impl Into<String>, from: Ns, to: Ns) {
        if from < to {
            self.events.push(Event { at: from, track, what: What::Begin(name.into()) });
            self.events.push(Event { at: to, track, what: What::End });
        }
    }

    fn instant(&mut self, track: usize, name: &'static str, at: Ns) {
        self.events.push(Event { at, track, what: What::Instant(name) });
    }

    fn count(&mut self, track: usize, at: Ns, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.events.push(Event { at, track, what: What::Count(value) });
    }
}

/// One vCPU, with all that was recorded of it.
struct Subject<'r> {
    /// Where its events go.
    row: usize,
    locks: usize,
    byte: usize,
    stays: Vec<Stay>,
    holds: &'r [Descheduled],
}

/// The trace of guests that were steered.
pub fn of(steering: &SteeringRemains, guests: &[LabRun]) -> Trace {
    let mut trace = Trace {
        lost: steering.log.lost + steering.lost_switches + steering.lost_episodes,
        ..Trace::default()
    };
    let (begin, end) = (steering.began_ns, steering.ended_ns);
    let name = |vcpu: Vcpu| name_of(vcpu, &steering.vcpus);
    let mut stays = steering.stays().unwrap_or_default().into_iter();

    let host = trace.track(None, "host".to_owned());
    let cpus: Vec<_> =
        steering.cpus.iter().map(|cpu| trace.track(Some(host), format!("CPU {cpu}"))).collect();
    let plans: Vec<_> =
        steering.cpus.iter().map(|cpu| trace.track(Some(host), format!("CPU {cpu} plan"))).collect();
    plan(&mut trace, steering, &plans, &name);

    let mut subjects = Vec::new();
    for (guest, run) in guests.iter().enumerate() {
        let group = trace.track(None, format!("guest {guest}"));
        let from = subjects.len();
        for (index, recorded) in run.vcpus.iter().enumerate() {
            let row = trace.track(Some(group), format!("vCPU {index}"));
            let byte = trace.track(Some(group), format!("vCPU {index} byte"));
            let locks = trace.track(Some(group), format!("vCPU {index} locks"));
            let stays = stays.next().unwrap_or_default();
            subjects.push(Subject { row, locks, byte, stays, holds: &recorded.descheduled });
        }
        let steal = trace.counter(group, "steal", "us");
        let acquisitions = trace.counter(group, "acquisitions", "per ms");
        for (index, subject) in subjects.iter().enumerate().skip(from) {
            let is_told = matches!(run.monitor.publisher, PublisherKind::Bpf | PublisherKind::BpfClassic);
            vcpu(&mut trace, subject, is_told, (begin, end));
            for stay in &subject.stays {
                let cpu = steering.cpus.iter().position(|cpu| *cpu == stay.cpu).and_then(|cpu| cpus.get(cpu));
                if let Some(cpu) = cpu {
                    trace.slice(*cpu, name(index), stay.from, stay.to);
                }
            }
        }
        count_steal(&mut trace, steal, &subjects[from..], (begin, end));
        for sample in steering.samples.iter().filter(|sample| sample.guest == guest) {
            trace.count(acquisitions, sample.at_ns, sample.in_a_ms);
        }
    }
    for episode in &steering.episodes {
        let Some(subject) = subjects.get(episode.vcpu) else { continue };
        let name = match episode.kind {
            EpisodeKind::Waited => "waits",
            EpisodeKind::Held => "holds",
        };
        if begin <= episode.from_ns && episode.to_ns <= end {
            trace.slice(subject.locks, name, episode.from_ns, episode.to_ns);
        }
    }
    let is_of = |vcpu: Option<Vcpu>| vcpu.and_then(|vcpu| subjects.get(vcpu)).map(|subject| subject.row);
    let chosen = steering.log.chosen.iter().filter_map(|one| Some((is_of(one.from)?, one.decided_ns)));
    let stopped = steering.log.stopped.iter().filter(|one| one.is_stopped);
    let stopped = stopped.filter_map(|one| Some((is_of(Some(one.vcpu))?, one.at_ns)));
    for (row, at) in chosen.chain(stopped).collect::<Vec<_>>() {
        trace.instant(row, PREEMPTION, at);
    }
    put_in_order(&mut trace.events);
    trace
}

/// What is called what.
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

fn plan(trace: &mut Trace, steering: &SteeringRemains, rows: &[usize], name: &impl Fn(Vcpu) -> String) {
    for (cpu, row) in rows.iter().enumerate() {
        let here: Vec<_> = steering.log.chosen.iter().filter(|one| one.cpu == cpu).collect();
        for (index, one) in here.iter().enumerate() {
            trace.instant(*row, "decision", one.decided_ns);
            let to = here.get(index + 1).map_or(steering.ended_ns, |next| next.decided_ns);
            let who = one.to.map_or_else(|| if one.is_hosts { "host's" } else { "idle" }.to_owned(), name);
            trace.slice(*row, who, one.decided_ns, to);
        }
    }
}

/// A vCPU's row: what its thread did, and in the gaps why not.
fn vcpu(trace: &mut Trace, subject: &Subject<'_>, program_publishes: bool, (begin, end): (Ns, Ns)) {
    let held = |at: Ns| {
        let index = subject.holds.partition_point(|held| held.to_ns <= at);
        subject.holds.get(index).filter(|held| held.from_ns <= at)
    };
    let mut at = begin;
    let mut was_preempted = false;
    let nothing = Stay { from: end, to: end, cpu: 0, was_preempted: false };
    for stay in subject.stays.iter().chain([&nothing]) {
        let middle = at + stay.from.saturating_sub(at) / 2;
        let why = match held(middle) {
            Some(_) => "parked",
            None if was_preempted => "preempted",
            None => "asleep",
        };
        trace.slice(subject.row, why, at, stay.from);
        if why == "preempted" && program_publishes {
            trace.slice(subject.byte, "preempted", at, stay.from);
        }
        trace.slice(subject.row, "running", stay.from, stay.to);
        (at, was_preempted) = (stay.to, stay.was_preempted);
    }
    for held in subject.holds.iter().filter(|held| held.requested_ns >= begin && held.to_ns <= end) {
        trace.instant(subject.row, "kick", held.requested_ns);
        if !program_publishes {
            trace.slice(subject.byte, "preempted", held.published_ns, held.to_ns);
        }
    }
    if program_publishes {
        // The thread itself says it while it is parked, for longer than the program saw it preempted.
        let preempted = |at: Ns| subject.stays.iter().any(|stay| stay.from <= at && at < stay.to);
        for held in subject.holds.iter().filter(|held| held.requested_ns >= begin && held.to_ns <= end) {
            let from = if preempted(held.published_ns) { held.published_ns } else { continue };
            trace.slice(subject.byte, "preempted", from, held.to_ns);
        }
    }
}

/// Time that the vCPUs of a guest wanted to run and could not, so far.
fn count_steal(trace: &mut Trace, track: usize, subjects: &[Subject<'_>], (begin, end): (Ns, Ns)) {
    let mut spans = Vec::new();
    for subject in subjects {
        let gaps = subject.stays.iter().zip(subject.stays.iter().skip(1));
        let gaps =
            gaps.filter(|(before, _)| before.was_preempted).map(|(before, after)| (before.to, after.from));
        let holds = subject.holds.iter().map(|held| (held.from_ns, held.to_ns));
        spans.extend(gaps.chain(holds).filter(|(from, to)| from < to && *from >= begin));
    }
    spans.sort_unstable_by_key(|(_, to)| *to);
    let (mut sum, mut next) = (0, 0);
    let mut at = begin;
    while at < end {
        at += COUNTED_NS;
        while let Some((from, to)) = spans.get(next).filter(|(_, to)| *to <= at) {
            sum += to - from;
            next += 1;
        }
        trace.count(track, at.min(end), sum / 1_000);
    }
}

/// In order of time. What ends comes before what begins at the same moment.
fn put_in_order(events: &mut [Event]) {
    let rank = |event: &Event| match event.what {
        What::End => 0,
        What::Instant(_) | What::Count(_) => 1,
        What::Begin(_) => 2,
    };
    events.sort_by_key(|event| (event.at, rank(event)));
}
