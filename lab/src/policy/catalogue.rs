//! The catalogue: policies by name, as users ask for them: `rr`, `rr:quantum=1ms`, `yield:target=next,grant=100us`.

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
use super::random::Random;
use super::relaxed::Relaxed;
use super::replay::Replay;
use super::round_robin::RoundRobin;
use super::rtds::Rtds;
use super::slice_left::SliceLeft;
use super::throttle::Throttle;

/// Makes a policy: of its parameters and a seed.
type Make = fn(&mut Parameters<'_>, u64) -> Result<Box<dyn Policy>, ParameterError>;

/// A policy of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a few words.
    pub what: &'static str,
    make: Make,
}

fn boxed<P: Policy + 'static>(policy: P) -> Box<dyn Policy> {
    Box::new(policy)
}

/// All policies.
pub const CATALOGUE: [Entry; 17] = [
    Entry { name: "host", what: "whom the host likes", make: |p, _| Host::from_parameters(p).map(boxed) },
    Entry {
        name: "rr",
        what: "round robin",
        make: |p, seed| RoundRobin::from_parameters(p, seed).map(boxed),
    },
    Entry {
        name: "random",
        what: "turns of random length",
        make: |p, seed| Random::from_parameters(p, seed).map(boxed),
    },
    Entry { name: "gang", what: "all of a guest, or none", make: |p, _| Gang::from_parameters(p).map(boxed) },
    Entry {
        name: "relaxed",
        what: "no vCPU may lead by much",
        make: |p, _| Relaxed::from_parameters(p).map(boxed),
    },
    Entry { name: "balance", what: "siblings on distinct CPUs", make: |_, _| Ok(boxed(Host::balance())) },
    Entry {
        name: "deferral",
        what: "holders are let finish",
        make: |p, seed| Deferral::from_parameters(p, seed).map(boxed),
    },
    Entry {
        name: "slice-left",
        what: "the guest knows its time",
        make: |p, seed| SliceLeft::from_parameters(p, seed).map(boxed),
    },
    Entry {
        name: "yield",
        what: "waiters name who is to run",
        make: |p, seed| Directed::from_parameters(p, seed).map(boxed),
    },
    Entry {
        name: "boost",
        what: "who hints comes first",
        make: |p, seed| BoostOnHint::from_parameters(p, seed).map(boxed),
    },
    Entry {
        name: "micro",
        what: "very short turns on some CPUs",
        make: |p, _| Micro::from_parameters(p).map(boxed),
    },
    Entry {
        name: "throttle",
        what: "a quota in each period",
        make: |p, _| Throttle::from_parameters(p).map(boxed),
    },
    Entry { name: "credit", what: "who has credit left", make: |p, _| Credit::from_parameters(p).map(boxed) },
    Entry { name: "rtds", what: "a budget in each period", make: |p, _| Rtds::from_parameters(p).map(boxed) },
    Entry {
        name: "adversary",
        what: "the worst moment",
        make: |p, seed| Adversary::from_parameters(p, seed).map(boxed),
    },
    Entry {
        name: "replay",
        what: "who ran in a trace",
        make: |p, _| Replay::from_parameters(p, &|path| std::fs::read_to_string(path)).map(boxed),
    },
    Entry {
        name: "folding",
        what: "fewer vCPUs while steal is high",
        make: |p, _| Folding::from_parameters(p).map(boxed),
    },
];

/// The catalogue, as `vmm policies` prints it.
#[derive(Clone, Copy, Debug)]
pub struct Catalogue;

impl fmt::Display for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in CATALOGUE {
            let mut parameters = Parameters::split(entry.name).unwrap_or_default();
            // One that needs a parameter says so; the others are made, and thrown away.
            let _ = (entry.make)(&mut parameters, 0);
            let known = parameters.known().join(", ");
            writeln!(f, "{:<11} {:<32} {known}", entry.name, entry.what)?;
        }
        Ok(())
    }
}

/// How a policy is had: [`PolicyChoice`]'s other half, for policies that are not in the catalogue.
type Maker = dyn Fn(u64) -> Result<Box<dyn Policy>, ParameterError> + Send + Sync;

/// A policy that was asked for, to be made as often as it is run.
#[derive(Clone)]
pub struct PolicyChoice {
    text: String,
    maker: Arc<Maker>,
}

impl PolicyChoice {
    /// One of your own: how it is called in results, and how it is made, of a seed.
    pub fn own<P: Policy + 'static>(name: &str, make: impl Fn(u64) -> P + Send + Sync + 'static) -> Self {
        Self { text: name.to_owned(), maker: Arc::new(move |seed| Ok(boxed(make(seed)))) }
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`ParameterError`]: a file that could be read when it was asked for may be gone.
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
            let mut parameters = Parameters::split(&own)?;
            let policy = make(&mut parameters, seed)?;
            parameters.finish().map(|()| policy)
        };
        // What makes no sense is to be known now.
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
