//! Verdicts on the assertions, for one subject.

use std::collections::BTreeMap;

use protocol::payload::conformance::Assertion;
use serde::Serialize;

/// The verdict on one assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It held whenever it was tested.
    Held {
        /// How often it was tested.
        times: u64,
    },
    /// It did not hold at least once.
    Broken {
        /// What was observed, and by which judge.
        why: String,
    },
    /// It could not be tested.
    Unjudged {
        /// The reason.
        why: String,
    },
}

/// The verdicts on all assertions, as they come in. A broken assertion stays broken, however often
/// it holds elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(BTreeMap<Assertion, Verdict>);

impl Verdicts {
    /// No assertion could be tested, because of `why`.
    pub fn none(why: &str) -> Self {
        let mut verdicts = Self::default();
        for assertion in Assertion::ALL {
            verdicts.skip(*assertion, why);
        }
        verdicts
    }

    /// Records that `assertion` held `times` times.
    pub fn hold(&mut self, assertion: Assertion, times: u64) {
        match self.0.get_mut(&assertion) {
            Some(Verdict::Held { times: before }) => *before = before.saturating_add(times),
            Some(Verdict::Broken { .. }) => {}
            None | Some(Verdict::Unjudged { .. }) => {
                self.0.insert(assertion, Verdict::Held { times });
            }
        }
    }

    /// Records that `assertion` did not hold, because of `why`.
    pub fn refute(&mut self, assertion: Assertion, why: impl Into<String>) {
        match self.0.get_mut(&assertion) {
            Some(Verdict::Broken { why: before }) => {
                before.push_str("; ");
                before.push_str(&why.into());
            }
            _ => {
                self.0.insert(assertion, Verdict::Broken { why: why.into() });
            }
        }
    }

    /// Records that `assertion` could not be tested here, because of `why`. Any other verdict wins.
    pub fn skip(&mut self, assertion: Assertion, why: impl Into<String>) {
        self.0.entry(assertion).or_insert_with(|| Verdict::Unjudged { why: why.into() });
    }

    /// Records one test of `assertion`. `why` is called if it did not hold.
    pub fn judge(&mut self, assertion: Assertion, holds: bool, why: impl FnOnce() -> String) {
        if holds {
            self.hold(assertion, 1);
        } else {
            self.refute(assertion, why());
        }
    }

    /// The verdict on `assertion`.
    pub fn of(&self, assertion: Assertion) -> Verdict {
        let unobserved = || Verdict::Unjudged { why: "it was not observed in this run".to_owned() };
        self.0.get(&assertion).cloned().unwrap_or_else(unobserved)
    }

    /// Number of broken assertions.
    pub fn broken(&self) -> usize {
        self.0.values().filter(|verdict| matches!(verdict, Verdict::Broken { .. })).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_outweighs_held_and_both_outweigh_unjudged() {
        let (mut verdicts, assertion) = (Verdicts::default(), Assertion::ReadsBack);
        verdicts.skip(assertion, "needs two CPUs");
        assert_eq!(verdicts.of(assertion), Verdict::Unjudged { why: "needs two CPUs".to_owned() });
        verdicts.hold(assertion, 3);
        verdicts.skip(assertion, "needs two CPUs");
        verdicts.judge(assertion, true, String::new);
        assert_eq!(verdicts.of(assertion), Verdict::Held { times: 4 });
        verdicts.judge(assertion, false, || "it read 1".to_owned());
        verdicts.hold(assertion, 3);
        verdicts.refute(assertion, "it read 2");
        assert_eq!(verdicts.of(assertion), Verdict::Broken { why: "it read 1; it read 2".to_owned() });
        assert_eq!(verdicts.broken(), 1);
    }

    #[test]
    fn assertion_that_was_not_tested_is_unjudged() {
        assert!(matches!(Verdicts::default().of(Assertion::ReadsBack), Verdict::Unjudged { .. }));
    }
}
