//! Values of options.

use clap::builder::{PossibleValue, RangedI64ValueParser, TypedValueParser};
use protocol::payload::params::Wait;

use crate::experiment::WaitMode;
use crate::policy::catalogue::PolicyChoice;
use crate::policy::parameters::ParameterError;

use crate::sched::mechanism::{MechanismChoice, MechanismKind};

/// A way to wait, and how often it checks.
pub(super) fn wait_mode(text: &str) -> Result<WaitMode, String> {
    let (wait, every) = text.split_once('/').unwrap_or((text, "1"));
    let wait = Wait::from_name(wait).ok_or_else(|| format!("the wait mode must be {}", Wait::EXPECTED))?;
    match every.parse() {
        Ok(every) if every > 0 => Ok(WaitMode { wait, every }),
        _ => Err("behind the / stands how many turns lie between two checks, 1 or more".to_owned()),
    }
}

/// A policy.
pub(super) fn policy(text: &str) -> Result<PolicyChoice, String> {
    text.parse().map_err(|error: ParameterError| error.to_string())
}

/// A mechanism, or `auto`.
pub(super) fn mechanism(text: &str) -> Result<MechanismChoice, String> {
    match text {
        "auto" => Ok(MechanismChoice::Auto),
        "class" => Ok(MechanismChoice::Only(MechanismKind::Class)),
        "deschedule" => Ok(MechanismChoice::Only(MechanismKind::Deschedule)),
        _ => Err("mechanisms are class and deschedule; auto takes the best that can be had".to_owned()),
    }
}

/// Guests that share the CPUs.
pub(super) fn guests() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=64)
}

/// Rounds of a bench: nobody waits for more.
pub(super) fn rounds() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=10_000)
}

/// Parses one of `.0` by its word `.1`.
#[derive(Clone)]
pub(super) struct Named<T: 'static>(pub(super) &'static [T], pub(super) fn(T) -> &'static str);

impl<T: Copy + Send + Sync + 'static> TypedValueParser for Named<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<T, clap::Error> {
        let words: Vec<&str> = self.0.iter().map(|item| self.1(*item)).collect();
        let word = clap::builder::PossibleValuesParser::new(words).parse_ref(command, arg, value)?;
        let found = self.0.iter().find(|item| self.1(**item) == word);
        found.copied().ok_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidValue))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|item| PossibleValue::new(self.1(*item)))))
    }
}
