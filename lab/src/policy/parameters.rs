//! Parameters of a policy, as users write them: `rr:quantum=3ms,phase=staggered`.

use std::collections::BTreeMap;

use super::Ns;

/// A policy's parameters make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Nothing of that name.
    #[error("there is no policy {name:?} (policies are {known})")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What could have been.
        known: String,
    },
    /// Not `key=value`.
    #[error("{0:?} is no parameter (write key=value, separated by commas, as in rr:quantum=3ms)")]
    NotAPair(String),
    /// A key that the policy does not have.
    #[error("policy {policy} has no parameter {key:?} (it has {known})")]
    NoSuchKey {
        /// The policy.
        policy: String,
        /// The key.
        key: String,
        /// Those it has.
        known: String,
    },
    /// A value that cannot be read.
    #[error("{key}={value} cannot be read ({expected})")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// A parameter that must be given.
    #[error("policy {policy} needs {key}= ({expected})")]
    Missing {
        /// The policy.
        policy: String,
        /// The key.
        key: &'static str,
        /// What is expected.
        expected: &'static str,
    },
    /// A file.
    #[error("cannot read {path}: {why}")]
    File {
        /// Its path.
        path: String,
        /// Why not.
        why: String,
    },
}

/// A turn that is shorter would be over before it has begun (ns).
pub const SHORTEST_TURN: Ns = 100_000;

/// See the module. Whoever takes a parameter thereby says that there is one.
#[derive(Clone, Debug, Default)]
pub struct Parameters<'t> {
    policy: &'t str,
    given: BTreeMap<&'t str, &'t str>,
    known: Vec<&'static str>,
}

impl<'t> Parameters<'t> {
    /// Splits `text` into the policy's name and its parameters.
    ///
    /// # Errors
    /// [`ParameterError::NotAPair`].
    pub fn split(text: &'t str) -> Result<Self, ParameterError> {
        let (policy, rest) = text.split_once(':').unwrap_or((text, ""));
        let pair =
            |part: &'t str| part.split_once('=').ok_or_else(|| ParameterError::NotAPair(part.to_owned()));
        let given = rest.split(',').filter(|part| !part.is_empty()).map(pair).collect::<Result<_, _>>()?;
        Ok(Self { policy, given, known: Vec::new() })
    }

    /// The policy's name.
    pub fn policy(&self) -> &'t str {
        self.policy
    }

    /// Those that were asked for so far.
    pub fn known(&self) -> &[&'static str] {
        &self.known
    }

    /// A text; `None` where it is not given.
    pub fn text(&mut self, key: &'static str) -> Option<&'t str> {
        self.known.push(key);
        self.given.remove(key)
    }

    /// As [`Parameters::text`].
    ///
    /// # Errors
    /// [`ParameterError::Missing`].
    pub fn needed(&mut self, key: &'static str, expected: &'static str) -> Result<&'t str, ParameterError> {
        let policy = self.policy.to_owned();
        self.text(key).ok_or(ParameterError::Missing { policy, key, expected })
    }

    /// One of `words`, the first where none is given.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn word(
        &mut self,
        key: &'static str,
        words: &[&'static str],
    ) -> Result<&'static str, ParameterError> {
        let Some(value) = self.text(key) else { return Ok(words.first().copied().unwrap_or_default()) };
        let found = words.iter().find(|word| **word == value);
        found.copied().ok_or_else(|| wrong(key, value, &words.join(", ")))
    }

    /// `on` or `off`.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn switch(&mut self, key: &'static str) -> Result<bool, ParameterError> {
        Ok(self.word(key, &["off", "on"])? == "on")
    }

    /// A time with its unit: `250ns`, `50us`, `3ms`, `1s`.
    ///
    /// # Errors
    /// [`ParameterError::Value`], also of 0.
    pub fn time(&mut self, key: &'static str, default: Ns) -> Result<Ns, ParameterError> {
        match self.text(key) {
            None => Ok(default),
            Some(value) => time(value)
                .filter(|ns| *ns > 0)
                .ok_or_else(|| wrong(key, value, "a time, as in 250ns, 50us, 3ms, 1s")),
        }
    }

    /// The length of a turn: a time of [`SHORTEST_TURN`] at least.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn turn(&mut self, key: &'static str, default: Ns) -> Result<Ns, ParameterError> {
        match self.text(key) {
            None => Ok(default),
            Some(value) => {
                let turn = time(value).filter(|ns| *ns >= SHORTEST_TURN);
                turn.ok_or_else(|| {
                    wrong(key, value, "the length of a turn, 100us at least, as in 500us or 3ms")
                })
            }
        }
    }

    /// A share: `0.5` or `50%`, from 0 to 1.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn share(&mut self, key: &'static str, default: f64) -> Result<f64, ParameterError> {
        match self.text(key) {
            None => Ok(default),
            Some(value) => {
                share(value).ok_or_else(|| wrong(key, value, "a share from 0 to 1, as in 0.5 or 50%"))
            }
        }
    }

    /// A number within `range`.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn number<T>(
        &mut self,
        key: &'static str,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T, ParameterError>
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display,
    {
        match self.text(key) {
            None => Ok(default),
            Some(value) => {
                let number = value.parse().ok().filter(|number| range.contains(number));
                number.ok_or_else(|| {
                    wrong(key, value, &format!("a number from {} to {}", range.start(), range.end()))
                })
            }
        }
    }

    /// Numbers separated by `/`.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn numbers(&mut self, key: &'static str) -> Result<Vec<u32>, ParameterError> {
        let Some(value) = self.text(key) else { return Ok(Vec::new()) };
        let numbers = value
            .split('/')
            .map(|part| part.parse().ok().filter(|number| *number > 0))
            .collect::<Option<_>>();
        numbers.ok_or_else(|| wrong(key, value, "numbers from 1, as in 4/2/1"))
    }

    /// That everything given was taken.
    ///
    /// # Errors
    /// [`ParameterError::NoSuchKey`].
    pub fn finish(self) -> Result<(), ParameterError> {
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        match self.given.keys().next() {
            None => Ok(()),
            Some(key) => Err(ParameterError::NoSuchKey {
                policy: self.policy.to_owned(),
                key: (*key).to_owned(),
                known,
            }),
        }
    }
}

fn wrong(key: &str, value: &str, expected: &str) -> ParameterError {
    ParameterError::Value { key: key.to_owned(), value: value.to_owned(), expected: expected.to_owned() }
}

/// A time with its unit (ns).
pub fn time(text: &str) -> Option<Ns> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    let ns = number.parse::<f64>().ok()? * unit;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a day in ns fits, and no digit says less than 0"
    )]
    (ns <= 86_400e9).then_some(ns as Ns)
}

/// A share.
pub fn share(text: &str) -> Option<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (0.0..=1.0).contains(&share).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read_with_their_units_and_nothing_else_is() {
        for (text, ns) in [("250ns", 250), ("50us", 50_000), ("1.5ms", 1_500_000), ("2s", 2_000_000_000)] {
            assert_eq!(time(text), Some(ns), "{text}");
        }
        for text in ["", "3", "ms", "-1ms", "1e3ms", "1h", "1.2.3ms", "90000000s", "NaNs"] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!((share("50%"), share("0.25"), share("1")), (Some(0.5), Some(0.25), Some(1.0)));
        for text in ["", "-0.1", "101%", "NaN", "half"] {
            assert_eq!(share(text), None, "{text}");
        }
    }

    #[test]
    fn what_nobody_takes_is_refused_and_says_what_there_is() {
        let mut parameters = Parameters::split("rr:quantum=1ms,quantity=2").unwrap();
        assert_eq!(parameters.time("quantum", 5), Ok(1_000_000));
        let error = parameters.finish().unwrap_err().to_string();
        assert_eq!(error, "policy rr has no parameter \"quantity\" (it has quantum)");
        assert!(Parameters::split("rr:quantum").is_err());
        let mut parameters = Parameters::split("rr:quantum=0ms").unwrap();
        assert!(parameters.time("quantum", 5).is_err());
        let mut parameters = Parameters::split("rr:quantum=99us,short=100us").unwrap();
        assert_eq!(
            (parameters.turn("short", 5), parameters.turn("quantum", 5).is_err()),
            (Ok(100_000), true)
        );
    }
}
