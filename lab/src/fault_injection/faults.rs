//! Faults in the user's notation: `drop=0.1,false_hz=20,delay_us=500,stick,lose_every=10,seed=7`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::FaultInjectionError;

/// The faults of a publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Share of the sets of `preempted` that are dropped (0 to 1).
    pub drop: f64,
    /// Rate at which `preempted` is set without a preemption (Hz).
    pub false_hz: f64,
    /// Delay of each set of `preempted` (us).
    pub delay_us: u32,
    /// Whether `preempted` is never cleared.
    pub stick: bool,
    /// The BPF program ignores every `lose_every`th switch-in, as some hosts lose them; 0 for none.
    pub lose_every: u64,
    /// Seed of the random faults.
    pub seed: u64,
}

/// Highest rate of false sets (Hz). At higher rates they would overlap.
const MAX_FALSE_HZ: f64 = 1_000.0;

/// Longest delay (us).
const MAX_DELAY_US: u32 = 1_000_000;

impl FromStr for Faults {
    type Err = FaultInjectionError;

    fn from_str(text: &str) -> Result<Self, FaultInjectionError> {
        let mut faults = Self { seed: 1, ..Self::default() };
        for word in text.split(',') {
            let bad = || FaultInjectionError::Syntax(word.to_owned());
            let (key, value) = word.trim().split_once('=').unwrap_or((word.trim(), ""));
            let number = |max: f64| {
                let number: f64 = value.parse().map_err(|_| bad())?;
                if (0.0..=max).contains(&number) { Ok(number) } else { Err(bad()) }
            };
            match key {
                "drop" => faults.drop = number(1.0)?,
                "false_hz" => faults.false_hz = number(MAX_FALSE_HZ)?,
                "delay_us" => {
                    let delay: u32 = value.parse().map_err(|_| bad())?;
                    faults.delay_us = if delay <= MAX_DELAY_US { delay } else { return Err(bad()) };
                }
                "stick" if value.is_empty() => faults.stick = true,
                "lose_every" => faults.lose_every = value.parse().map_err(|_| bad())?,
                "seed" => faults.seed = value.parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            }
        }
        Ok(faults)
    }
}

impl Faults {
    /// Whether the copier must make any of these faults.
    pub(super) fn needs_copier(&self) -> bool {
        self.drop > 0.0 || self.false_hz > 0.0 || self.delay_us > 0 || self.stick
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { drop, false_hz, delay_us, stick, lose_every, seed } = self;
        if *drop > 0.0 {
            write!(f, "drop={drop},")?;
        }
        if *false_hz > 0.0 {
            write!(f, "false_hz={false_hz},")?;
        }
        if *delay_us > 0 {
            write!(f, "delay_us={delay_us},")?;
        }
        if *stick {
            write!(f, "stick,")?;
        }
        if *lose_every > 0 {
            write!(f, "lose_every={lose_every},")?;
        }
        write!(f, "seed={seed}")
    }
}

impl Serialize for Faults {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_parse_what_they_print() {
        for text in [
            "drop=0.1,seed=1",
            "false_hz=20,delay_us=500,seed=7",
            "drop=1,stick,lose_every=10,seed=18446744073709551615",
        ] {
            assert_eq!(text.parse::<Faults>().unwrap().to_string(), text);
        }
        assert_eq!("stick".parse::<Faults>().unwrap().to_string(), "stick,seed=1");
    }

    #[test]
    fn text_that_is_not_a_fault_is_refused_by_name() {
        for text in
            ["", "drop", "drop=2", "drop=-0.1", "drop=NaN", "false_hz=inf", "stick=1", "delay_us=1e9", "lie"]
        {
            let refused = text.parse::<Faults>();
            assert!(matches!(refused, Err(FaultInjectionError::Syntax(word)) if word == text), "{text}");
        }
    }
}
