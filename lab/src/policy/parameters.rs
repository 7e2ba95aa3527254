//! Parameters of a policy as text: `rr:slice=3ms,phase=staggered`.

use std::collections::BTreeMap;

use super::Ns;

/// An invalid policy name or parameter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The policy does not exist.
    #[error("there is no policy {name:?} (policies are {known})")]
    Unknown {
        /// The requested name.
        name: String,
        /// Names of all policies.
        known: String,
    },
    /// A parameter is not of the form `key=value`.
    #[error("{0:?} is not a parameter (write key=value, separated by commas, as in rr:slice=3ms)")]
    NotAPair(String),
    /// The policy has no parameter of this name.
    #[error("policy {policy} has no parameter {key:?} (it has {known})")]
    NoSuchKey {
        /// Name of the policy.
        policy: String,
        /// The unknown key.
        key: String,
        /// Keys of the policy.
        known: String,
    },
    /// A value cannot be parsed.
    #[error("{key}={value} cannot be read ({expected})")]
    Value {
        /// The key.
        key: String,
        /// The invalid value.
        value: String,
        /// Description of valid values.
        expected: String,
    },
    /// A required parameter is missing.
    #[error("policy {policy} needs {key}= ({expected})")]
    Missing {
        /// Name of the policy.
        policy: String,
        /// The missing key.
        key: &'static str,
        /// Description of valid values.
        expected: &'static str,
    },
    /// A file cannot be read or parsed.
    #[error("cannot read {path}: {why}")]
    File {
        /// Path of the file.
        path: String,
        /// The cause.
        why: String,
    },
}

/// Minimum length of a slice (ns). A shorter slice would end before the vCPU runs.
pub const MIN_SLICE: Ns = 100_000;

/// Unparsed parameters. A getter consumes its key, and records that the policy has that key.
#[derive(Clone, Debug, Default)]
pub struct Parameters<'t> {
    policy: &'t str,
    seed: u64,
    given: BTreeMap<&'t str, &'t str>,
    known: Vec<&'static str>,
}

impl<'t> Parameters<'t> {
    /// Splits `text` into the name of the policy and its parameters.
    ///
    /// # Errors
    /// [`ParameterError::NotAPair`].
    pub fn split(text: &'t str) -> Result<Self, ParameterError> {
        let (policy, rest) = text.split_once(':').unwrap_or((text, ""));
        let pair =
            |part: &'t str| part.split_once('=').ok_or_else(|| ParameterError::NotAPair(part.to_owned()));
        let given = rest.split(',').filter(|part| !part.is_empty()).map(pair).collect::<Result<_, _>>()?;
        Ok(Self { policy, seed: 0, given, known: Vec::new() })
    }

    /// Sets the seed of the policy's random numbers.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Name of the policy.
    pub fn policy(&self) -> &'t str {
        self.policy
    }

    /// Seed of the policy's random numbers.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The keys that getters have asked for so far.
    pub fn known(&self) -> &[&'static str] {
        &self.known
    }

    /// The unparsed value of `key`; `None` if it is not given.
    pub fn text(&mut self, key: &'static str) -> Option<&'t str> {
        self.known.push(key);
        self.given.remove(key)
    }

    /// The unparsed value of a required `key`.
    ///
    /// # Errors
    /// [`ParameterError::Missing`], with the description `expected`.
    pub fn required(&mut self, key: &'static str, expected: &'static str) -> Result<&'t str, ParameterError> {
        let policy = self.policy.to_owned();
        self.text(key).ok_or(ParameterError::Missing { policy, key, expected })
    }

    /// The value of `key`, parsed by `parse`; `default` if it is not given.
    fn parsed<T>(
        &mut self,
        key: &'static str,
        default: T,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ParameterError> {
        let Some(value) = self.text(key) else { return Ok(default) };
        parse(value).ok_or_else(|| ParameterError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            expected: expected.to_owned(),
        })
    }

    /// One of `words`; the first one is the default.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn one_of(
        &mut self,
        key: &'static str,
        words: &[&'static str],
    ) -> Result<&'static str, ParameterError> {
        let default = words.first().copied().unwrap_or_default();
        let find = |value: &str| words.iter().find(|word| **word == value).copied();
        self.parsed(key, default, &words.join(", "), find)
    }

    /// `on` or `off`; the default is `off`.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn on_off(&mut self, key: &'static str) -> Result<bool, ParameterError> {
        Ok(self.one_of(key, &["off", "on"])? == "on")
    }

    /// A positive duration with its unit: `250ns`, `50us`, `3ms`, `1s`. Returns ns.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn time(&mut self, key: &'static str, default: Ns) -> Result<Ns, ParameterError> {
        let positive = |value: &str| time(value).filter(|ns| *ns > 0);
        self.parsed(key, default, "a time, as in 250ns, 50us, 3ms, 1s", positive)
    }

    /// A duration with its unit, which may be 0. Returns ns.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn time_or_zero(&mut self, key: &'static str, default: Ns) -> Result<Ns, ParameterError> {
        self.parsed(key, default, "a time, as in 0us or 20us", time)
    }

    /// The length of a slice: a duration of at least [`MIN_SLICE`]. Returns ns.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn slice(&mut self, key: &'static str, default: Ns) -> Result<Ns, ParameterError> {
        let long_enough = |value: &str| time(value).filter(|ns| *ns >= MIN_SLICE);
        self.parsed(key, default, "the length of a slice, at least 100us, as in 500us or 3ms", long_enough)
    }

    /// A fraction from 0 to 1: `0.5` or `50%`.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn fraction(&mut self, key: &'static str, default: f64) -> Result<f64, ParameterError> {
        self.parsed(key, default, "a fraction from 0 to 1, as in 0.5 or 50%", fraction)
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
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let in_range = |value: &str| value.parse().ok().filter(|number| range.contains(number));
        self.parsed(key, default, &expected, in_range)
    }

    /// Positive numbers, separated by `/`; the default is an empty list.
    ///
    /// # Errors
    /// [`ParameterError::Value`].
    pub fn numbers(&mut self, key: &'static str) -> Result<Vec<u32>, ParameterError> {
        let positive = |part: &str| part.parse().ok().filter(|number| *number > 0);
        let all = |value: &str| value.split('/').map(positive).collect();
        self.parsed(key, Vec::new(), "numbers from 1, as in 4/2/1", all)
    }

    /// Checks that getters have consumed all parameters.
    ///
    /// # Errors
    /// [`ParameterError::NoSuchKey`].
    pub fn finish(self) -> Result<(), ParameterError> {
        let Some(key) = self.given.keys().next() else { return Ok(()) };
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        Err(ParameterError::NoSuchKey { policy: self.policy.to_owned(), key: (*key).to_owned(), known })
    }
}

/// Parses a duration with its unit, of at most a day. Returns ns.
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
        reason = "a day in ns fits, and digits without a sign are not negative"
    )]
    (ns <= 86_400e9).then_some(ns as Ns)
}

/// Parses a fraction from 0 to 1: `0.5` or `50%`.
pub fn fraction(text: &str) -> Option<f64> {
    let fraction = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (0.0..=1.0).contains(&fraction).then_some(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_fractions_are_parsed_with_their_units_and_nothing_else_is() {
        for (text, ns) in [("250ns", 250), ("50us", 50_000), ("1.5ms", 1_500_000), ("2s", 2_000_000_000)] {
            assert_eq!(time(text), Some(ns), "{text}");
        }
        for text in ["", "3", "ms", "-1ms", "1e3ms", "1h", "1.2.3ms", "90000000s", "NaNs"] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!((fraction("50%"), fraction("0.25"), fraction("1")), (Some(0.5), Some(0.25), Some(1.0)));
        for text in ["", "-0.1", "101%", "NaN", "half"] {
            assert_eq!(fraction(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_key_is_refused_and_names_the_known_ones() {
        let mut parameters = Parameters::split("rr:slice=1ms,quantity=2").unwrap();
        assert_eq!(parameters.time("slice", 5), Ok(1_000_000));
        let error = parameters.finish().unwrap_err().to_string();
        assert_eq!(error, "policy rr has no parameter \"quantity\" (it has slice)");
        assert!(Parameters::split("rr:slice").is_err());
        let mut parameters = Parameters::split("rr:slice=0ms").unwrap();
        assert!(parameters.time("slice", 5).is_err());
        let mut parameters = Parameters::split("rr:slice=99us,short=100us").unwrap();
        assert_eq!(
            (parameters.slice("short", 5), parameters.slice("slice", 5).is_err()),
            (Ok(100_000), true)
        );
    }
}
