//! Faults, as users write them: `drop=0.1,false_hz=20,delay_us=500,stick,lose_every=10,seed=7`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// What a faulty publisher does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Of the times that the byte should be set, the share in which it is not.
    pub drop: f64,
    /// Times in a second that it is set for no reason.
    pub false_hz: f64,
    /// How much later than it should it is set (us).
    pub delay_us: u32,
    /// Once set, it is never cleared.
    pub stick: bool,
    /// Of the switch-ins the BPF program overlooks each so many-th, as some hosts make it; 0: none.
    pub lose_every: u64,
    /// By which it is decided what goes wrong when.
    pub seed: u64,
}

/// What was written makes no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no fault (write drop=SHARE, false_hz=RATE, delay_us=TIME, stick, lose_every=N, seed=N, separated by commas)"
)]
pub struct FaultsError(String);

/// More than this often nothing can be told apart any more.
const MOST_HZ: f64 = 1_000.0;

/// A second.
const LONGEST_DELAY_US: u32 = 1_000_000;

impl FromStr for Faults {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<Self, FaultsError> {
        let mut faults = Self { seed: 1, ..Self::default() };
        for word in text.split(',') {
            let bad = || FaultsError(word.to_owned());
            let (key, value) = word.trim().split_once('=').unwrap_or((word.trim(), ""));
            let number = |most: f64| {
                let number: f64 = value.parse().map_err(|_| bad())?;
                if (0.0..=most).contains(&number) { Ok(number) } else { Err(bad()) }
            };
            match key {
                "drop" => faults.drop = number(1.0)?,
                "false_hz" => faults.false_hz = number(MOST_HZ)?,
                "delay_us" => {
                    let delay: u32 = value.parse().map_err(|_| bad())?;
                    faults.delay_us = if delay <= LONGEST_DELAY_US { delay } else { return Err(bad()) };
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
    /// Whether any of these is made between publisher and guest, by the copier.
    pub(super) fn takes_a_copier(&self) -> bool {
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
    fn faults_read_back_as_they_were_written() {
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
    fn what_is_no_fault_is_refused_by_its_name() {
        for text in
            ["", "drop", "drop=2", "drop=-0.1", "drop=NaN", "false_hz=inf", "stick=1", "delay_us=1e9", "lie"]
        {
            assert_eq!(text.parse::<Faults>(), Err(FaultsError(text.to_owned())), "{text}");
        }
    }
}
