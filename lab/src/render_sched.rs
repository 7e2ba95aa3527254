//! Renderings of guests that were steered: what is printed of the plan and the fact.

use std::fmt::{self, Display};

use crate::render::Summary;
use crate::results::{Quantiles, SchedFigures};
use crate::session::SessionResult;
use crate::table::count;

/// What guests under a policy printed on their own are worth.
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
            writeln!(f, "Beside it: {load}")?;
        }
        match sched {
            Some(sched) => write!(f, "{}", SteeringSummary(sched)),
            None => Ok(()),
        }
    }
}

/// So many gaps are shown one by one.
const MOST_GAPS: usize = 6;

/// The plan and the fact.
pub struct SteeringSummary<'a>(pub &'a SchedFigures);

impl Display for SteeringSummary<'_> {
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
        if let Some(ended) = &s.ended {
            writeln!(f, "Scheduling ended by itself: {ended}")?;
        }
        if s.decisions > 0 {
            writeln!(f, "  decided late by      {}", Times(s.late))?;
        }
        if let Some(fact) = &s.fact {
            if fact.on.count > 0 {
                writeln!(f, "  decision to running  {}, {} missed", Times(fact.on), fact.missed)?;
                writeln!(f, "  decision to stopped  {}", Times(fact.off))?;
                writeln!(
                    f,
                    "  fidelity {:.3}: vCPUs ran for {:.3} of all CPU time, {:.3} was planned, {:.3} in turn",
                    fact.fidelity, fact.ran, fact.planned, fact.in_turn
                )?;
            }
            for gap in fact.gaps.iter().take(MOST_GAPS) {
                writeln!(
                    f,
                    "  gap ({}) on CPU {} at {:.3} s: {:.1} ms, in {} piece{}, in which nobody ran who should have",
                    gap.name,
                    gap.cpu,
                    gap.at_ns as f64 / 1e9,
                    gap.length_ns as f64 / 1e6,
                    gap.holes,
                    if gap.holes == 1 { "" } else { "s" }
                )?;
            }
            if fact.gaps.len() > MOST_GAPS {
                let named = fact.gaps.iter().filter(|gap| gap.name == "fair server").count();
                let all: u64 = fact.gaps.iter().map(|gap| gap.length_ns).sum();
                writeln!(
                    f,
                    "  {} gaps in all, {named} of the fair server's, {:.1} ms together",
                    fact.gaps.len(),
                    all as f64 / 1e6
                )?;
            }
            if fact.lost_switches > 0 {
                writeln!(
                    f,
                    "  {} switches found no room: these figures are of the rest",
                    fact.lost_switches
                )?;
            }
        } else {
            writeln!(
                f,
                "  what happened is not known: the host does not let perf tell (kernel.perf_event_paranoid)"
            )?;
        }
        if s.byte.count > 0 {
            writeln!(f, "  order to byte        {}", Times(s.byte))?;
        }
        let refused = [
            ("too late", s.refused.late),
            ("contradictory", s.refused.contradictory),
            ("impossible", s.refused.impossible),
            ("ticks unanswered", s.unanswered),
            ("lost", s.lost_decisions),
        ];
        let refused: Vec<_> =
            refused.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{} {what}", count(*n))).collect();
        if !refused.is_empty() {
            writeln!(f, "  refused: {}", refused.join(", "))?;
        }
        if s.drift.dry_run > 0 {
            writeln!(
                f,
                "  as rehearsed: the first {} of {} decisions, apart by {}",
                count(s.drift.same),
                count(s.decisions),
                Times(s.drift.apart)
            )?;
        }
        Ok(())
    }
}

/// Quantiles in us.
struct Times(Quantiles);

impl Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |ns: u64| ns as f64 / 1e3;
        write!(
            f,
            "p50 {:.1} us, p99 {:.1}, most {:.1}",
            us(self.0.p50_ns),
            us(self.0.p99_ns),
            us(self.0.most_ns)
        )
    }
}
