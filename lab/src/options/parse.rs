//! Parsers of option values.

use clap::builder::{PossibleValue, RangedI64ValueParser, TypedValueParser};
use protocol::payload::params::Wait;

use crate::policy::catalogue::PolicyChoice;
use crate::policy::parameters::ParameterError;
use crate::runner::WaitMode;
use crate::sched::mechanism::{MechanismChoice, MechanismKind};

/// Parses a way of waiting: `preempted`, or `preempted/16` to check once per 16 turns of the
/// waiting loop.
///
/// # Errors
/// What is expected.
pub fn wait_mode(text: &str) -> Result<WaitMode, String> {
    let (wait, every) = text.split_once('/').unwrap_or((text, "1"));
    let wait = Wait::from_name(wait).ok_or_else(|| format!("the wait mode must be {}", Wait::EXPECTED))?;
    match every.parse() {
        Ok(every) if every > 0 => Ok(WaitMode { wait, every }),
        _ => Err("the number of turns between two checks, after the /, must be 1 or more".to_owned()),
    }
}

/// Parses a policy with its parameters.
///
/// # Errors
/// What is wrong with the name or a parameter.
pub fn policy(text: &str) -> Result<PolicyChoice, String> {
    text.parse().map_err(|error: ParameterError| error.to_string())
}

/// Parses a mechanism, or `auto`.
///
/// # Errors
/// The names there are.
pub fn mechanism(text: &str) -> Result<MechanismChoice, String> {
    match text {
        "auto" => Ok(MechanismChoice::Auto),
        "class" => Ok(MechanismChoice::Only(MechanismKind::Class)),
        "deschedule" => Ok(MechanismChoice::Only(MechanismKind::Deschedule)),
        _ => Err("mechanisms are class and deschedule; auto takes the best that the host allows".to_owned()),
    }
}

/// The parser for a number of guests.
pub fn guests() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=64)
}

/// The parser for a number of rounds.
pub fn rounds() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=10_000)
}

/// The parser for one of the values `.0`, whose names `.1` returns.
#[derive(Clone, Debug)]
pub struct Named<T: 'static>(pub &'static [T], pub fn(T) -> &'static str);

impl<T: Copy + Send + Sync + 'static> TypedValueParser for Named<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<T, clap::Error> {
        let names: Vec<&str> = self.0.iter().map(|item| self.1(*item)).collect();
        let name = clap::builder::PossibleValuesParser::new(names).parse_ref(command, arg, value)?;
        let found = self.0.iter().find(|item| self.1(**item) == name);
        found.copied().ok_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidValue))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|item| PossibleValue::new(self.1(*item)))))
    }
}
