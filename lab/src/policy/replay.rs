//! Replay: runs the schedule of a recorded trace.
//!
//! [`trace_file`](super::trace_file) defines the formats. CPUs and vCPUs of the trace map to those
//! of the guest modulo their numbers. `threads` selects the threads that are vCPUs. `scale`
//! stretches time, in percent. The trace repeats when it ends.
//!
//! Source: this repository.

use super::parameters::{ParameterError, Parameters};
use super::trace_file::{ThreadPattern, TracedSlice, VCPU_NAMES, parse};
use super::{Cpu, Decision, Event, Ns, Policy, SchedState, Vcpu};

/// The shortest slice that is carried out (ns).
const MIN_SLICE: Ns = 10_000;

/// Policy `replay`.
#[derive(Clone, Debug)]
pub struct Replay {
    slices: Vec<TracedSlice>,
    /// Length of the trace (ns).
    length: Ns,
    /// Time of [`Event::Begin`] (ns).
    began: Ns,
    cursors: Vec<Cursor>,
}

/// Position of a CPU in the trace.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// Index of its next slice.
    next: usize,
    /// Number of completed repetitions.
    rounds: u64,
}

impl Replay {
    /// Parameters: `file`, a path that `read` resolves to text; `threads`, a regular expression
    /// without a comma; and `scale`.
    ///
    /// # Errors
    /// [`ParameterError`] for a value that cannot be parsed, an unreadable file, or one that is not
    /// a trace.
    pub fn from_parameters(
        parameters: &mut Parameters<'_>,
        read: &dyn Fn(&str) -> std::io::Result<String>,
    ) -> Result<Self, ParameterError> {
        let percent: u64 = parameters.number("scale", 100, 1..=1_000_000)?;
        let pattern = parameters.text("threads").unwrap_or(VCPU_NAMES);
        let threads = ThreadPattern::new(pattern).map_err(|why| ParameterError::Value {
            key: "threads".to_owned(),
            value: pattern.to_owned(),
            expected: format!("a regular expression without a comma: {why}"),
        })?;
        let path = parameters.required(
            "file",
            "a trace: CSV, or the text of `perf sched script`, `perf sched timehist` or ftrace",
        )?;
        let failed = |why: String| ParameterError::File { path: path.to_owned(), why };
        let text = read(path).map_err(|error| failed(error.to_string()))?;
        let mut slices = parse(&text, &threads).map_err(failed)?;
        // A trace lasts up to a day, and its end stays below 2^60 ns at any scale.
        let scaled = |ns: Ns| u64::try_from(u128::from(ns) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        for slice in &mut slices {
            (slice.at, slice.length) = (scaled(slice.at), scaled(slice.length));
        }
        let length = slices.iter().map(|slice| slice.at.saturating_add(slice.length)).max().unwrap_or(0);
        if length == 0 {
            return Err(failed("all slices are empty".to_owned()));
        }
        Ok(Self { slices, length, began: 0, cursors: Vec::new() })
    }

    /// The vCPU of the next slice on `cpu` that has not ended, and the end of that slice (ns).
    /// `None` if no slice is on `cpu`.
    fn next_slice(&mut self, cpu: Cpu, state: &SchedState) -> Option<(Option<Vcpu>, Ns)> {
        let cpus = state.cpus.len().max(1);
        let Cursor { next, rounds } = self.cursors.get_mut(cpu)?;
        // The bound ends the search if the trace has no slice for this CPU.
        for _ in 0..=2 * self.slices.len() {
            let Some(slice) = self.slices.get(*next) else {
                (*next, *rounds) = (0, *rounds + 1);
                // Skip repetitions that are in the past.
                *rounds = (*rounds).max(state.now.saturating_sub(self.began) / self.length);
                continue;
            };
            let end = self.began + self.length * *rounds + slice.at + slice.length;
            if slice.cpu % cpus == cpu && end > state.now {
                // The CPU is idle until the slice begins.
                let begin = end - slice.length;
                if begin > state.now {
                    return Some((None, begin));
                }
                *next += 1;
                return Some((slice.vcpu, end));
            }
            *next += 1;
        }
        None
    }

    fn dispatch(&mut self, cpu: Cpu, state: &SchedState, out: &mut Vec<Decision>) {
        let (vcpu, until) = self.next_slice(cpu, state).unwrap_or((None, state.now + self.length));
        // Shorter slices end before they are carried out, and would keep the driver busy for ever.
        let until = until.max(state.now.saturating_add(MIN_SLICE));
        let vcpus = state.vcpus.len().max(1);
        let is_assigned = |vcpu: Vcpu| {
            out.iter().any(|other| matches!(other, Decision::Run { vcpu: taken, .. } if *taken == vcpu))
        };
        // Two vCPUs of the trace that map to one vCPU may have run at the same time.
        let is_free = |vcpu: &Vcpu| state.may_run_on(cpu, *vcpu) && !is_assigned(*vcpu);
        out.push(match vcpu.map(|vcpu| vcpu % vcpus).filter(is_free) {
            Some(vcpu) => Decision::Run { cpu, vcpu, until },
            None => Decision::Idle { cpu, until },
        });
    }
}

impl Policy for Replay {
    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>) {
        match event {
            Event::Begin => {
                self.began = state.now;
                self.cursors = vec![Cursor::default(); state.cpus.len()];
                (0..state.cpus.len()).for_each(|cpu| self.dispatch(cpu, state, out));
            }
            Event::Tick { cpu, .. } => self.dispatch(cpu, state, out),
            _ => {}
        }
    }
}
