//! Sanity: what a few lines of arithmetic say that policies do to a saturated lock, and whether they did.
//!
//! With k vCPUs a CPU, round robin leaves a test-and-set lock about 1/k: one holder is preempted in each turn, and the lock
//! stands still until that one's next. A lock that passes itself on is given about once a turn to somebody who does not run, and
//! is left next to nothing. Letting holders finish saves the first and not the second; running whoever is next in line saves the
//! second in part, since each grant then costs a switch. A gang is ideal for guests no wider than the host, and of no use to one
//! that is.

use std::fmt::{self, Display};

use protocol::payload::params::Lock;

use crate::cli::Shape;

/// What a point kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) policy: String,
    pub(super) lock: Lock,
    pub(super) shape: Shape,
    pub(super) load: u16,
    pub(super) share: f64,
}

/// Whether a point is where it should be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    what: String,
    kept: f64,
    least: f64,
    most: f64,
}

impl Verdict {
    fn holds(&self) -> bool {
        (self.least..=self.most).contains(&self.kept)
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, kept, least, most } = self;
        let verdict = if self.holds() { "as expected" } else { "NOT AS EXPECTED" };
        write!(f, "{what}: kept {kept:.4}, expected {least:.4} to {most:.4}: {verdict}")
    }
}

/// How far from 1/k a test-and-set lock may be under round robin: what is lost depends on luck.
const LUCK: f64 = 2.0;
/// What is next to nothing.
const COLLAPSE: f64 = 0.02;
/// What is nearly all.
const NEARLY_ALL: f64 = 0.8;
/// How many times more than under round robin a queue gets where the next in line is run.
const IN_PART: f64 = 3.0;

/// Judges those of `points` of which the arithmetic says anything.
pub(super) fn sanity(points: &[Kept]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let rr = |lock, load| {
        points.iter().find(|p| is(p, "rr") && p.lock == lock && p.load == load && p.shape == Shape::Wide)
    };
    for point in points.iter().filter(|point| point.load > 1) {
        let Kept { policy, lock, shape, load, share } = point;
        let bounds = match (lock, shape) {
            (Lock::Tas, Shape::Wide) if is(point, "rr") => {
                Some((1.0 / f64::from(*load) / LUCK, 1.0 / f64::from(*load) * LUCK))
            }
            (Lock::Ticket, Shape::Wide) if is(point, "rr") || is(point, "deferral") => Some((0.0, COLLAPSE)),
            (Lock::Tas, Shape::Wide) if is(point, "deferral") => Some((NEARLY_ALL, 1.1)),
            (Lock::Ticket, Shape::Wide) if is(point, "yield") => {
                rr(*lock, *load).map(|rr| (rr.share * IN_PART, 1.1))
            }
            (Lock::Tas | Lock::Ticket, Shape::Narrow) if is(point, "gang") => Some((NEARLY_ALL, 1.1)),
            _ => None,
        };
        let what = format!("{policy}, {lock}, {load}x, {shape}");
        verdicts.extend(bounds.map(|(least, most)| Verdict { what, kept: *share, least, most }));
    }
    verdicts
}

fn is(point: &Kept, name: &str) -> bool {
    point.policy.split(':').next() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(policy: &str, lock: Lock, load: u16, share: f64) -> Kept {
        Kept { policy: policy.to_owned(), lock, shape: Shape::Wide, load, share }
    }

    #[test]
    fn points_are_judged_by_what_the_arithmetic_says_of_them_and_others_are_not() {
        let points = [
            kept("rr:slice=3ms", Lock::Tas, 4, 0.3),
            kept("rr:slice=3ms", Lock::Tas, 8, 0.3),
            kept("rr:slice=3ms", Lock::Ticket, 4, 0.001),
            kept("yield:target=next", Lock::Ticket, 4, 0.01),
            kept("yield:target=next", Lock::Ticket, 8, 0.01),
            kept("deferral", Lock::Tas, 4, 0.5),
            kept("deferral", Lock::Ticket, 1, 0.5),
            kept("host", Lock::Tas, 4, 0.5),
        ];
        let verdicts: Vec<_> =
            sanity(&points).iter().map(|verdict| (verdict.what.clone(), verdict.holds())).collect();
        let expected = [
            ("rr:slice=3ms, tas, 4x, wide", true),
            ("rr:slice=3ms, tas, 8x, wide", false),
            ("rr:slice=3ms, ticket, 4x, wide", true),
            ("yield:target=next, ticket, 4x, wide", true),
            ("deferral, tas, 4x, wide", false),
        ];
        assert_eq!(verdicts, expected.map(|(what, holds)| (what.to_owned(), holds)));
    }
}
