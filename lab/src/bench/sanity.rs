//! Sanity: compares what saturated locks retain under policies with a two-line model.
//!
//! With k vCPUs per CPU, round robin leaves a test-and-set lock about 1/k: one holder is preempted
//! in each slice, and the lock waits until that vCPU's next slice. A lock that is handed over in
//! order goes about once per slice to a vCPU that does not run, which leaves nearly nothing.
//! Deferring the preemption of holders saves the first lock and not the second. Running the next
//! vCPU in line saves the second in part, because each grant then costs a switch. A gang is ideal
//! for guests as wide as the host, and useless for a wider one.

use std::fmt::{self, Display};

use protocol::payload::params::Lock;

use super::policies::Shape;

/// What a point retained.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Retained {
    pub(super) policy: String,
    pub(super) lock: Lock,
    pub(super) shape: Shape,
    pub(super) overcommit: u16,
    pub(super) share: f64,
    /// Whether others disturbed each round that was compared.
    pub(super) is_disturbed: bool,
}

/// Whether a point is as the model expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    AsExpected,
    NotAsExpected,
    /// Others took CPU time, which is not in the model.
    Disturbed,
}

/// A point beside the bounds that the model gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    what: String,
    retained: f64,
    min: f64,
    max: f64,
    is_disturbed: bool,
}

impl Verdict {
    fn judgement(&self) -> Judgement {
        match (self.min..=self.max).contains(&self.retained) {
            _ if self.is_disturbed => Judgement::Disturbed,
            true => Judgement::AsExpected,
            false => Judgement::NotAsExpected,
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, retained, min, max, .. } = self;
        let verdict = match self.judgement() {
            Judgement::AsExpected => "as expected",
            Judgement::NotAsExpected => "NOT AS EXPECTED",
            Judgement::Disturbed => "disturbed",
        };
        write!(f, "{what}: retained {retained:.4}, expected {min:.4} to {max:.4}: {verdict}")
    }
}

/// Factor by which test-and-set may differ from 1/k under round robin, as holders are hit by
/// chance.
const CHANCE: f64 = 2.0;
/// Upper bound of nearly nothing.
const COLLAPSE: f64 = 0.02;
/// Lower bound of nearly everything.
const NEARLY_ALL: f64 = 0.8;
/// Factor over round robin that a queue gains at least when the next vCPU in line is run.
const IN_PART: f64 = 3.0;

/// Judges those `points` for which the model gives bounds.
pub(super) fn sanity(points: &[Retained]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let rr = |lock, overcommit| {
        points
            .iter()
            .find(|p| is(p, "rr") && p.lock == lock && p.overcommit == overcommit && p.shape == Shape::Wide)
    };
    for point in points.iter().filter(|point| point.overcommit > 1) {
        let Retained { policy, lock, shape, overcommit, share, is_disturbed } = point;
        let bounds = match (lock, shape) {
            (Lock::Tas, Shape::Wide) if is(point, "rr") => {
                Some((1.0 / f64::from(*overcommit) / CHANCE, 1.0 / f64::from(*overcommit) * CHANCE))
            }
            (Lock::Ticket, Shape::Wide) if is(point, "rr") || is(point, "deferral") => Some((0.0, COLLAPSE)),
            (Lock::Tas, Shape::Wide) if is(point, "deferral") => Some((NEARLY_ALL, 1.1)),
            (Lock::Ticket, Shape::Wide) if is(point, "yield") => {
                rr(*lock, *overcommit).map(|rr| (rr.share * IN_PART, 1.1))
            }
            (Lock::Tas | Lock::Ticket, Shape::Narrow) if is(point, "gang") => Some((NEARLY_ALL, 1.1)),
            _ => None,
        };
        let what = format!("{policy}, {lock}, {overcommit}x, {shape}");
        let is_disturbed = *is_disturbed;
        verdicts.extend(bounds.map(|(min, max)| Verdict { what, retained: *share, min, max, is_disturbed }));
    }
    verdicts
}

fn is(point: &Retained, name: &str) -> bool {
    point.policy.split(':').next() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retained(policy: &str, lock: Lock, overcommit: u16, share: f64) -> Retained {
        Retained {
            policy: policy.to_owned(),
            lock,
            shape: Shape::Wide,
            overcommit,
            share,
            is_disturbed: false,
        }
    }

    #[test]
    fn points_with_bounds_are_judged_and_others_are_not() {
        let points = [
            retained("rr:slice=3ms", Lock::Tas, 4, 0.3),
            retained("rr:slice=3ms", Lock::Tas, 8, 0.3),
            retained("rr:slice=3ms", Lock::Ticket, 4, 0.001),
            retained("yield:target=next", Lock::Ticket, 4, 0.01),
            retained("yield:target=next", Lock::Ticket, 8, 0.01),
            retained("deferral", Lock::Tas, 4, 0.5),
            retained("deferral", Lock::Ticket, 1, 0.5),
            retained("host", Lock::Tas, 4, 0.5),
        ];
        let verdicts: Vec<_> =
            sanity(&points).iter().map(|verdict| (verdict.what.clone(), verdict.judgement())).collect();
        let expected = [
            ("rr:slice=3ms, tas, 4x, wide", Judgement::AsExpected),
            ("rr:slice=3ms, tas, 8x, wide", Judgement::NotAsExpected),
            ("rr:slice=3ms, ticket, 4x, wide", Judgement::AsExpected),
            ("yield:target=next, ticket, 4x, wide", Judgement::AsExpected),
            ("deferral, tas, 4x, wide", Judgement::NotAsExpected),
        ];
        assert_eq!(verdicts, expected.map(|(what, judgement)| (what.to_owned(), judgement)));
    }

    #[test]
    fn disturbed_point_is_neither_as_expected_nor_not() {
        for share in [0.25, 1.0] {
            let point = Retained { is_disturbed: true, ..retained("rr", Lock::Tas, 4, share) };
            let verdicts = sanity(&[point]);
            assert_eq!(verdicts.iter().map(Verdict::judgement).collect::<Vec<_>>(), [Judgement::Disturbed]);
            assert!(verdicts.iter().all(|verdict| verdict.to_string().ends_with(": disturbed")));
        }
    }
}
