//! Parameters: what the payload is to do, as `key=value` words on its kernel command line.
//!
//! `lock=mutex wait=preempted section_ns=1000`: words in any order; of several with one key the
//! last counts. QEMU's `-append` takes the same words. An unknown key and a bad value are errors at
//! both ends.
//!
//! - [`Workload`] is what to do. [`Boot`] is what the payload cannot find out by itself.
//! - Each parameter is one entry of one table, with key, type, default, range and help. The parser,
//!   the writer, error messages and the host's command line ([`Workload::PARAMS`]) all use that
//!   entry.
//!
//! ```
//! use protocol::payload::params::{self, Lock, Wait, Workload};
//!
//! let (workload, _boot) = params::parse("lock=mutex wait=preempted section_ns=500").unwrap();
//! assert_eq!((workload.lock, workload.section_ns), (Lock::Mutex, 500));
//! assert_eq!(workload.wait, Wait::Preempted);
//!
//! // A host checks an option of its own command line against the same table.
//! let mut workload = Workload::DEFAULT;
//! let error = workload.set("locks", "9").unwrap_err();
//! assert_eq!(error.to_string(), "Parameter locks=9: the value must be a number from 1 to 8");
//! ```

mod names;
mod table;
mod value;

use core::fmt;

pub use names::{Check, Job, Lock, Scene, Spread, Start, Wait};
pub use table::{Boot, MAX_LOCKS, Workload};

/// A parameter, as parsers, writers and help texts share it.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// The part before `=`.
    pub key: &'static str,
    /// What the parameter means, in one sentence without a full stop, with its unit.
    pub help: &'static str,
    /// What a value must be, to complete "the value must be".
    pub expected: &'static str,
    /// All values by name; empty where the value is a number.
    pub choices: &'static [&'static str],
}

/// A parameter that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamError<'a> {
    /// The word does not have the form `key=value`.
    NotAPair(&'a str),
    /// There is no such key.
    UnknownKey(&'a str),
    /// The key does not take this value.
    BadValue {
        /// The key.
        key: &'a str,
        /// The refused value.
        value: &'a str,
        /// What a value must be.
        expected: &'static str,
    },
}

impl fmt::Display for ParamError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPair(word) => write!(f, "Parameter {word:?} does not have the form key=value"),
            Self::UnknownKey(key) => {
                write!(f, "Parameter {key:?} is unknown (the payload knows ")?;
                let mut separator = "";
                // Not PARAMS: the payload, which prints this, then carries no help texts.
                for key in Workload::KEYS.iter().chain(Boot::KEYS) {
                    write!(f, "{separator}{key}")?;
                    separator = ", ";
                }
                f.write_str(")")
            }
            Self::BadValue { key, value, expected } => {
                write!(f, "Parameter {key}={value}: the value must be {expected}")
            }
        }
    }
}

impl core::error::Error for ParamError<'_> {}

/// Parses a command line. What it does not name has its default.
///
/// # Errors
/// [`ParamError`] for the first word that cannot be used.
pub fn parse(line: &str) -> Result<(Workload, Boot), ParamError<'_>> {
    let (mut workload, mut boot) = (Workload::DEFAULT, Boot::DEFAULT);
    for word in line.split_ascii_whitespace() {
        let (key, value) = word.split_once('=').ok_or(ParamError::NotAPair(word))?;
        match workload.set(key, value) {
            Err(ParamError::UnknownKey(_)) => boot.set(key, value)?,
            result => result?,
        }
    }
    Ok((workload, boot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn parameters_written_by_one_end_are_read_by_the_other() {
        let workload = Workload {
            job: Job::Conformance,
            scene: Scene::Absent,
            moves: 3,
            lock: Lock::Mutex,
            locks: 8,
            check: Check::Save2,
            wait: Wait::Threshold,
            check_every: 16,
            section_ns: 7,
            section_spread: Spread::Exponential,
            think_ns: 0,
            think_spread: Spread::Fixed,
            readers: 100,
            threshold_ns: 9,
            backstop_ns: 0,
            cap_turns: 12,
            warmup_ms: 10,
            duration_ms: 11,
            seed: u64::MAX,
            hints: true,
            doorbell: true,
            trace: true,
            slice_margin_ns: 12,
            steal: false,
        };
        let boot = Boot { vcpus: Some(255), tsc_khz: Some(2_596_100), start: Start::Direct };
        let line = std::format!("{workload} {boot}");
        assert_eq!(parse(&line), Ok((workload, boot)));
        assert_eq!(parse(&Workload::DEFAULT.to_string()), Ok((Workload::DEFAULT, Boot::DEFAULT)));
    }

    #[test]
    fn every_name_reads_back_as_itself() {
        for job in Job::ALL {
            assert_eq!(Job::from_name(job.name()), Some(*job));
            assert!(Job::EXPECTED.contains(job.name()));
        }
        for scene in Scene::ALL {
            assert_eq!(Scene::from_name(scene.name()), Some(*scene));
            assert!(Scene::EXPECTED.contains(scene.name()));
        }
        for lock in Lock::ALL {
            assert_eq!(Lock::from_name(lock.name()), Some(*lock));
        }
        for wait in Wait::ALL {
            assert_eq!(Wait::from_name(wait.name()), Some(*wait));
        }
        for check in Check::ALL {
            assert_eq!(Check::from_name(check.name()), Some(*check));
        }
        for spread in Spread::ALL {
            assert_eq!(Spread::from_name(spread.name()), Some(*spread));
        }
    }

    #[test]
    fn every_key_of_a_full_line_is_listed_in_messages() {
        let boot = Boot { vcpus: Some(1), tsc_khz: Some(1), start: Start::Sipi };
        let message = ParamError::UnknownKey("quiet").to_string();
        let known = message.split_once("knows ").unwrap().1.trim_end_matches(')');
        for word in std::format!("{} {boot}", Workload::DEFAULT).split(' ') {
            let key = word.split('=').next().unwrap();
            assert!(known.split(", ").any(|known| known == key), "{key}");
        }
    }

    #[test]
    fn every_parameter_has_help_and_its_default_reads_back() {
        for param in Workload::PARAMS {
            let mut text = std::string::String::new();
            Workload::DEFAULT.write_value(param.key, &mut text).unwrap();
            let mut workload = Workload::DEFAULT;
            assert_eq!(workload.set(param.key, &text), Ok(()), "{}", param.key);
            assert_eq!(workload, Workload::DEFAULT, "{}", param.key);
            assert!(param.choices.is_empty() || param.choices.contains(&text.as_str()), "{}", param.key);
            assert!(!param.help.is_empty() && !param.help.ends_with('.'), "{}", param.key);
        }
    }

    #[test]
    fn last_value_of_a_key_counts() {
        assert_eq!(parse("lock=ticket  lock=mutex\n").unwrap().0.lock, Lock::Mutex);
    }

    #[test]
    fn unknown_keys_and_bad_values_are_errors_that_name_them() {
        assert_eq!(parse("quiet"), Err(ParamError::NotAPair("quiet")));
        assert_eq!(parse("console=ttyS0"), Err(ParamError::UnknownKey("console")));
        for word in [
            "lock=clh",
            "section_ns=-1",
            "section_ns=4294967296",
            "vcpus=0",
            "vcpus=256",
            "steal=",
            "tsc_khz=0",
            "locks=9",
            "readers=101",
            "wait=byte",
        ] {
            let Err(ParamError::BadValue { key, value, .. }) = parse(word) else { panic!("{word}") };
            assert_eq!(std::format!("{key}={value}"), word);
        }
    }
}
