//! Catalogue: policies by name, as text: `rr`, `rr:slice=1ms`, `yield:target=next,grant=100us`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Policy;
use super::adversary::Adversary;
use super::boost::BoostOnHint;
use super::credit::Credit;
use super::deferral::Deferral;
use super::directed::Directed;
use super::folding::Folding;
use super::gang::Gang;
use super::host::Host;
use super::micro::Micro;
use super::parameters::{ParameterError, Parameters};
use super::relaxed::Relaxed;
use super::replay::Replay;
use super::round_robin::RoundRobin;
use super::rtds::Rtds;
use super::slice_left::SliceLeft;
use super::throttle::Throttle;
use super::trace_file;
use host::input;

/// A new policy, or an invalid parameter.
type Made = Result<Box<dyn Policy>, ParameterError>;

/// A policy of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its rule, in a few words.
    pub rule: &'static str,
    make: fn(&mut Parameters<'_>) -> Made,
}

const fn entry(name: &'static str, rule: &'static str, make: fn(&mut Parameters<'_>) -> Made) -> Entry {
    Entry { name, rule, make }
}

fn boxed<P: Policy + 'static>(policy: Result<P, ParameterError>) -> Made {
    Ok(Box::new(policy?))
}

/// All policies.
pub const CATALOGUE: [Entry; 16] = [
    entry("host", "the host decides", |p| boxed(Host::from_parameters(p))),
    entry("rr", "round robin", |p| boxed(RoundRobin::from_parameters(p))),
    entry("gang", "all vCPUs of a guest, or none", |p| boxed(Gang::from_parameters(p))),
    entry("relaxed", "bounded skew between vCPUs", |p| boxed(Relaxed::from_parameters(p))),
    entry("balance", "siblings on distinct CPUs", |_| boxed(Ok(Host::balance()))),
    entry("deferral", "lock holders run on", |p| boxed(Deferral::from_parameters(p))),
    entry("slice-left", "the guest knows its slice", |p| boxed(SliceLeft::from_parameters(p))),
    entry("yield", "directed yield by waiters", |p| boxed(Directed::from_parameters(p))),
    entry("boost", "vCPUs that hint run first", |p| boxed(BoostOnHint::from_parameters(p))),
    entry("micro", "micro-slices on some CPUs", |p| boxed(Micro::from_parameters(p))),
    entry("throttle", "a quota in each period", |p| boxed(Throttle::from_parameters(p))),
    entry("credit", "vCPUs with credit run first", |p| boxed(Credit::from_parameters(p))),
    entry("rtds", "a budget in each period", |p| boxed(Rtds::from_parameters(p))),
    entry("adversary", "preempts at the worst moment", |p| boxed(Adversary::from_parameters(p))),
    entry("replay", "the schedule of a trace", |p| {
        boxed(Replay::from_parameters(p, &|path| input::read_text(path.as_ref(), trace_file::MAX_SIZE)))
    }),
    entry("folding", "fewer vCPUs while steal is high", |p| boxed(Folding::from_parameters(p))),
];

/// Formats the catalogue as a table: name, rule and parameters of each policy.
#[derive(Clone, Copy, Debug)]
pub struct Catalogue;

impl fmt::Display for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in CATALOGUE {
            let mut parameters = Parameters::split(entry.name).unwrap_or_default();
            // Making the policy records its keys, even where a required one is missing.
            let _ = (entry.make)(&mut parameters);
            let known = parameters.known().join(", ");
            writeln!(f, "{:<11} {:<32} {known}", entry.name, entry.rule)?;
        }
        Ok(())
    }
}

/// Makes an instance of a policy from a seed.
type Maker = dyn Fn(u64) -> Made + Send + Sync;

/// A policy and its parameters, of which each run makes a new instance.
#[derive(Clone)]
pub struct PolicyChoice {
    text: String,
    maker: Arc<Maker>,
}

impl PolicyChoice {
    /// A policy outside the catalogue. `name` identifies it in results; `make` makes an instance
    /// from a seed.
    pub fn own<P: Policy + 'static>(name: &str, make: impl Fn(u64) -> P + Send + Sync + 'static) -> Self {
        Self { text: name.to_owned(), maker: Arc::new(move |seed| boxed(Ok(make(seed)))) }
    }

    /// Makes an instance whose random numbers start at `seed`.
    ///
    /// # Errors
    /// [`ParameterError::File`] if a file has become unreadable since the choice was parsed.
    pub fn make(&self, seed: u64) -> Result<Box<dyn Policy>, ParameterError> {
        (self.maker)(seed)
    }
}

impl FromStr for PolicyChoice {
    type Err = ParameterError;

    fn from_str(text: &str) -> Result<Self, ParameterError> {
        let name = Parameters::split(text)?.policy().to_owned();
        let entry = CATALOGUE.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let known: Vec<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
            ParameterError::Unknown { name, known: known.join(", ") }
        })?;
        let (own, make) = (text.to_owned(), entry.make);
        let maker = move |seed| {
            let mut parameters = Parameters::split(&own)?.with_seed(seed);
            let policy = make(&mut parameters)?;
            parameters.finish().map(|()| policy)
        };
        // Invalid parameters fail now, not at the start of a run.
        maker(0)?;
        Ok(Self { text: text.to_owned(), maker: Arc::new(maker) })
    }
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyChoice({:?})", self.text)
    }
}

impl PartialEq for PolicyChoice {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl serde::Serialize for PolicyChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
