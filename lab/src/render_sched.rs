//! Text output of scheduled sessions.

use std::fmt::{self, Display};

use crate::render::Summary;
use crate::results::{Observed, Quantiles, SchedFigures};
use crate::sched::fidelity::GapCause;
use crate::session::SessionResult;
use crate::table::{count, fixed, or_dash};

/// Displays the results of a session: each guest, the load, and scheduling.
pub struct SessionSummary<'a>(pub &'a SessionResult);

impl Display for SessionSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SessionResult { guests, sched, cpu_hog, .. } = self.0;
        for (number, guest) in guests.iter().enumerate() {
            if guests.len() > 1 {
                write!(f, "Guest {number}: ")?;
            }
            write!(f, "{}", Summary(guest))?;
        }
        if let Some(load) = cpu_hog {
            writeln!(f, "CPU hog: {load}")?;
        }
        match sched {
            Some(sched) => write!(f, "{}", SchedSummary(sched)),
            None => Ok(()),
        }
    }
}

/// Maximum number of gaps that are printed one by one.
const MAX_GAPS: usize = 6;

/// Displays the results of scheduling.
pub struct SchedSummary<'a>(pub &'a SchedFigures);

impl Display for SchedSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        writeln!(
            f,
            "Policy {} (seed {}) by {} ({}), driver {}: {} decisions in {:.2} s, {} preemptions",
            s.policy,
            s.seed,
            s.mechanism,
            s.mechanism_why,
            s.driver,
            count(s.decisions),
            s.length_ns as f64 / 1e9,
            count(s.preemptions),
        )?;
        if let Some(reason) = &s.stop_reason {
            writeln!(f, "Scheduling stopped: {reason}")?;
        }
        if s.decisions > 0 {
            writeln!(f, "  decision delay   {}", Times(s.decision_delay))?;
        }
        match &s.observed {
            Some(observed) => write_observed(f, observed)?,
            None => writeln!(
                f,
                "  no record of what ran: the host refuses perf (see kernel.perf_event_paranoid)"
            )?,
        }
        if s.preempted_delay.count > 0 {
            writeln!(f, "  preempted delay  {}", Times(s.preempted_delay))?;
        }
        write_refused(f, s)?;
        if s.drift.dry_run > 0 {
            writeln!(
                f,
                "  as in the dry run: the first {} of {} decisions, {} apart",
                count(s.drift.same),
                count(s.decisions),
                Times(s.drift.difference)
            )?;
        }
        Ok(())
    }
}

fn write_observed(f: &mut fmt::Formatter<'_>, observed: &Observed) -> fmt::Result {
    if observed.dispatch_delay.count > 0 {
        writeln!(f, "  dispatch delay   {}, {} missed", Times(observed.dispatch_delay), observed.missed)?;
        writeln!(f, "  stop delay       {}", Times(observed.stop_delay))?;
        writeln!(
            f,
            "  fidelity {}: vCPUs ran for {} of all CPU time, {} was planned, {} on-plan",
            fixed(observed.fidelity, 3),
            fixed(observed.ran, 3),
            fixed(observed.planned, 3),
            fixed(observed.on_plan, 3)
        )?;
    }
    for gap in observed.gaps.iter().take(MAX_GAPS) {
        writeln!(
            f,
            "  gap ({}) on CPU {} at {:.3} s: {:.1} ms, in {} piece{}, in which no planned vCPU ran",
            gap.cause,
            gap.cpu,
            gap.at_ns as f64 / 1e9,
            gap.length_ns as f64 / 1e6,
            gap.holes,
            if gap.holes == 1 { "" } else { "s" }
        )?;
    }
    if observed.gaps.len() > MAX_GAPS {
        let fair_server = observed.gaps.iter().filter(|gap| gap.cause == GapCause::FairServer).count();
        let length_ns: u64 = observed.gaps.iter().map(|gap| gap.length_ns).sum();
        writeln!(
            f,
            "  {} gaps in all, {fair_server} of the fair server, {:.1} ms in sum",
            observed.gaps.len(),
            length_ns as f64 / 1e6
        )?;
    }
    if observed.lost_switches > 0 {
        writeln!(f, "  {} context switches lost: these figures lack them", observed.lost_switches)?;
    }
    Ok(())
}

fn write_refused(f: &mut fmt::Formatter<'_>, s: &SchedFigures) -> fmt::Result {
    let counts = [
        ("late", s.refused.late),
        ("contradictory", s.refused.contradictory),
        ("impossible", s.refused.impossible),
        ("ticks unanswered", s.unanswered_ticks),
        ("lost", s.lost_decisions),
    ];
    let counts = counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{} {what}", count(*n)));
    let counts: Vec<_> = counts.collect();
    if counts.is_empty() { Ok(()) } else { writeln!(f, "  refused: {}", counts.join(", ")) }
}

/// Displays quantiles in us.
struct Times(Quantiles);

impl Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quantiles { count, p50_ns, p99_ns, max_ns } = self.0;
        let us = |ns: u64| or_dash((count > 0).then_some(ns as f64 / 1e3), |us| fixed(us, 1));
        write!(f, "p50 {} us, p99 {}, max {}", us(p50_ns), us(p99_ns), us(max_ns))
    }
}
