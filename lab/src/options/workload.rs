//! Workload options: one `--key` for each parameter of the payload.
//!
//! Key, help, range and names of values come from [`Workload::PARAMS`], the table that the payload
//! parses its command line with. An option is checked against that table, and travels on as a
//! `key=value` word.

use std::fmt;
use std::marker::PhantomData;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use protocol::payload::params::{Param, Workload};

/// Heading of these options in help texts.
const HEADING: &str = "Workload of the embedded payload";

/// Parameters that are no options, because the lab sets them: hints and their doorbell for a
/// policy, `trace` for `--trace`, the others for conformance.
const INTERNAL_KEYS: [&str; 6] = ["moves", "hints", "doorbell", "trace", "slice_margin_ns", "steal"];

/// Parameters that all points of a bench share: what a lock guards, and how it is used.
const LOAD_KEYS: [&str; 10] = [
    "locks",
    "section_ns",
    "section_spread",
    "think_ns",
    "think_spread",
    "readers",
    "threshold_ns",
    "backstop_ns",
    "cap_turns",
    "seed",
];

/// The parameters that a command takes as options.
pub trait ParamKeys {
    /// Whether the parameter `key` is an option.
    fn has(key: &str) -> bool;
}

/// Keys of a guest's workload: all but those that the lab sets.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadKeys;

impl ParamKeys for WorkloadKeys {
    fn has(key: &str) -> bool {
        !INTERNAL_KEYS.contains(&key)
    }
}

/// Keys that all points of a bench share.
#[derive(Clone, Copy, Debug)]
pub struct LoadKeys;

impl ParamKeys for LoadKeys {
    fn has(key: &str) -> bool {
        LOAD_KEYS.contains(&key)
    }
}

/// Options of `vmm-lab run`: the whole workload of one guest.
pub type WorkloadArgs = ParamArgs<WorkloadKeys>;

/// Options of benches that choose lock and way of waiting themselves.
pub type LoadArgs = ParamArgs<LoadKeys>;

/// Workload parameters given as options, in the order of the table. `Display` writes them as
/// `key=value` words.
#[derive(Clone, Debug, Default)]
pub struct ParamArgs<K> {
    given: Vec<(&'static str, String)>,
    keys: PhantomData<K>,
}

impl<K> ParamArgs<K> {
    /// Returns `workload` with the given parameters in place of its own.
    pub fn apply_to(&self, mut workload: Workload) -> Workload {
        for (key, value) in &self.given {
            // The value parser of the option has accepted the value.
            let _ = workload.set(key, value);
        }
        workload
    }

    /// The seed of all random numbers: the given one, or the default.
    pub fn seed(&self) -> u64 {
        self.apply_to(Workload::DEFAULT).seed
    }
}

impl<K> fmt::Display for ParamArgs<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (key, value) in &self.given {
            write!(f, "{separator}{key}={value}")?;
            separator = " ";
        }
        Ok(())
    }
}

impl<K: ParamKeys> ParamArgs<K> {
    fn params() -> impl Iterator<Item = &'static Param> {
        Workload::PARAMS.iter().filter(|param| K::has(param.key))
    }
}

impl<K: ParamKeys> Args for ParamArgs<K> {
    fn augment_args(command: Command) -> Command {
        command.args(Self::params().map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<K: ParamKeys> FromArgMatches for ParamArgs<K> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |param: &Param| Some((param.key, matches.get_one::<String>(param.key)?.clone()));
        Ok(Self { given: Self::params().filter_map(value).collect(), keys: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The option for one parameter.
fn option(param: &'static Param) -> Arg {
    Arg::new(param.key)
        .long(param.key.replace('_', "-"))
        .value_name(value_name(param))
        .value_parser(value_parser(param))
        .help(format!("{} [default: {}]", param.help, default(param.key)))
        .help_heading(HEADING)
}

/// The placeholder in help texts: the unit of a time, the last word of a key with named values.
fn value_name(param: &Param) -> String {
    let word = param.key.rsplit('_').next().unwrap_or(param.key);
    let is_telling = !param.choices.is_empty() || matches!(word, "ns" | "ms");
    if is_telling { word.to_uppercase() } else { "N".to_owned() }
}

/// Accepts what the payload accepts.
fn value_parser(param: &'static Param) -> ValueParser {
    if !param.choices.is_empty() {
        return PossibleValuesParser::new(param.choices.iter().copied()).into();
    }
    ValueParser::new(|text: &str| {
        let is_valid = Workload::DEFAULT.clone().set(param.key, text).is_ok();
        if is_valid { Ok(text.to_owned()) } else { Err(format!("the value must be {}", param.expected)) }
    })
}

fn default(key: &str) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = Workload::DEFAULT.write_value(key, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::payload::params::{self, Job, Lock, Wait};

    fn parse<K: ParamKeys>(words: &[&str]) -> Result<ParamArgs<K>, clap::Error> {
        let command = ParamArgs::<K>::augment_args(Command::new("test").no_binary_name(true));
        ParamArgs::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn lists_of_keys_name_parameters_that_exist() {
        for key in INTERNAL_KEYS.iter().chain(&LOAD_KEYS) {
            assert!(Workload::KEYS.contains(key), "{key}");
        }
    }

    #[test]
    fn options_become_words_that_the_payload_reads() {
        let args = ["--lock", "mutex", "--wait", "threshold", "--section-ns", "5", "--seed", "9"];
        let args: WorkloadArgs = parse(&[&args[..], &["--job", "watch"]].concat()).unwrap();
        let line = args.to_string();
        let (workload, _) = params::parse(&line).unwrap();
        assert_eq!((workload.lock, workload.wait, workload.job), (Lock::Mutex, Wait::Threshold, Job::Watch));
        assert_eq!((workload.section_ns, workload.seed), (5, 9));
        assert_eq!((args.apply_to(Workload::DEFAULT), args.seed()), (workload, 9));
    }

    #[test]
    fn parameters_that_are_not_given_keep_their_values() {
        let args: LoadArgs = parse(&["--locks", "3"]).unwrap();
        assert_eq!(args.to_string(), "locks=3");
        let base = Workload { backstop_ns: 0, seed: 7, ..Workload::DEFAULT };
        assert_eq!(args.apply_to(base), Workload { locks: 3, ..base });
    }

    #[test]
    fn bad_values_are_refused_with_option_and_range() {
        for (option, value, expected) in [
            ("--readers", "101", "a number from 0 to 100"),
            ("--locks", "9", "a number from 1 to 8"),
            ("--check-every", "0", "more than 0"),
            ("--lock", "spin", "mutex"),
        ] {
            let error = parse::<WorkloadKeys>(&[option, value]).unwrap_err().to_string();
            for word in [option, value, expected] {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
        assert!(parse::<LoadKeys>(&["--lock", "tas"]).is_err());
        assert!(parse::<WorkloadKeys>(&["--steal", "off"]).is_err());
    }
}
