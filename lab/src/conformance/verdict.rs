//! Verdicts: what came of the assertions, one column of the table.

use std::collections::BTreeMap;

use protocol::payload::conformance::Assertion;
use serde::Serialize;

/// What came of one assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It held.
    Held {
        /// So often it was seen to.
        times: u64,
    },
    /// It was found broken.
    Broken {
        /// By whom and how.
        why: String,
    },
    /// Nobody could say.
    Unjudged {
        /// Why not.
        why: String,
    },
}

/// The verdicts on all assertions, as they come in: one that something is broken outweighs any number of others.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(BTreeMap<Assertion, Verdict>);

impl Verdicts {
    /// Nothing could be judged, and why not.
    pub fn none(why: &str) -> Self {
        let mut verdicts = Self::default();
        for assertion in Assertion::ALL {
            verdicts.pass_over(*assertion, why);
        }
        verdicts
    }

    /// `assertion` was seen to hold `times` times.
    pub fn hold(&mut self, assertion: Assertion, times: u64) {
        match self.0.get_mut(&assertion) {
            Some(Verdict::Held { times: before }) => *before = before.saturating_add(times),
            Some(Verdict::Broken { .. }) => {}
            None | Some(Verdict::Unjudged { .. }) => {
                self.0.insert(assertion, Verdict::Held { times });
            }
        }
    }

    /// `assertion` was found broken.
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

    /// Nobody could judge `assertion` here; it counts only where nobody else could elsewhere.
    pub fn pass_over(&mut self, assertion: Assertion, why: impl Into<String>) {
        self.0.entry(assertion).or_insert_with(|| Verdict::Unjudged { why: why.into() });
    }

    /// `assertion` was tried once more; `why` says how it was broken, if it did not hold.
    pub fn judge(&mut self, assertion: Assertion, holds: bool, why: impl FnOnce() -> String) {
        if holds {
            self.hold(assertion, 1);
        } else {
            self.refute(assertion, why());
        }
    }

    /// What came of `assertion`.
    pub fn of(&self, assertion: Assertion) -> Verdict {
        let unseen = || Verdict::Unjudged { why: "it was not seen in this run".to_owned() };
        self.0.get(&assertion).cloned().unwrap_or_else(unseen)
    }

    /// How many assertions were found broken.
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
        verdicts.pass_over(assertion, "nobody looked");
        assert_eq!(verdicts.of(assertion), Verdict::Unjudged { why: "nobody looked".to_owned() });
        verdicts.hold(assertion, 3);
        verdicts.pass_over(assertion, "nobody looked");
        verdicts.judge(assertion, true, String::new);
        assert_eq!(verdicts.of(assertion), Verdict::Held { times: 4 });
        verdicts.judge(assertion, false, || "it read 1".to_owned());
        verdicts.hold(assertion, 3);
        verdicts.refute(assertion, "it read 2");
        assert_eq!(verdicts.of(assertion), Verdict::Broken { why: "it read 1; it read 2".to_owned() });
        assert_eq!(verdicts.broken(), 1);
    }

    #[test]
    fn assertion_that_nobody_tried_is_unjudged() {
        assert!(matches!(Verdicts::default().of(Assertion::ReadsBack), Verdict::Unjudged { .. }));
    }
}
