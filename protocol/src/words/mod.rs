//! What the payload is asked to do, as words on the kernel command line.
//!
//! `lock=mutex wait=byte section_ns=1000`: words of the form `key=value`, in any order, the last one of a key
//! counts. The same words work under QEMU's `-append`, and the monitor's typed options (`--lock mutex`) are only a
//! checked way to write them. A key or value that nobody knows is an error at both ends.
//!
//! [`Workload`] is what to do. [`Boot`] is what the payload cannot find out by itself; our monitor adds those words.

mod names;
mod values;
mod workload;

use core::fmt;

pub use names::{Check, Job, Lock, Scene, Spread, Start, Wait};
use values::{named, nonzero};
use workload::KEYS;
pub use workload::{MAX_LOCKS, Workload};

/// A word that cannot be understood. Holds the word as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordError<'a> {
    /// No such key.
    Unknown(&'a str),
    /// The key is known, the value is not.
    BadValue {
        /// The whole word.
        word: &'a str,
        /// What would have been right.
        expected: &'static str,
    },
}

impl fmt::Display for WordError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "Word {word:?} is not one this payload knows (known: {KEYS})"),
            Self::BadValue { word, expected } => write!(f, "Word {word:?}: the value must be {expected}"),
        }
    }
}

impl core::error::Error for WordError<'_> {}

/// What the payload cannot find out by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// `vcpus=`: how many vCPUs there are. Without it the payload counts those that answer its SIPI.
    pub vcpus: Option<u16>,
    /// `tsc_khz=`: the guest's TSC rate. Without it the payload measures it against the PIT.
    pub tsc_khz: Option<u32>,
    /// `start=`: how the other vCPUs start.
    pub start: Start,
}

impl Boot {
    /// What holds when no word says anything else.
    pub const DEFAULT: Self = Self { vcpus: None, tsc_khz: None, start: Start::Sipi };
}

impl Default for Boot {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start={}", self.start)?;
        if let Some(vcpus) = self.vcpus {
            write!(f, " vcpus={vcpus}")?;
        }
        if let Some(tsc_khz) = self.tsc_khz {
            write!(f, " tsc_khz={tsc_khz}")?;
        }
        Ok(())
    }
}

/// Reads a command line.
///
/// # Errors
/// The first word that cannot be understood.
pub fn parse(line: &str) -> Result<(Workload, Boot), WordError<'_>> {
    let (mut workload, mut boot) = (Workload::DEFAULT, Boot::DEFAULT);
    for word in line.split_ascii_whitespace() {
        let (key, value) = word.split_once('=').ok_or(WordError::Unknown(word))?;
        if let Some(set) = workload.set(word, key, value) {
            set?;
            continue;
        }
        match key {
            "vcpus" => boot.vcpus = Some(vcpus(word, value)?),
            "tsc_khz" => boot.tsc_khz = Some(nonzero(word, value)?),
            "start" => boot.start = named(word, value)?,
            _ => return Err(WordError::Unknown(word)),
        }
    }
    Ok((workload, boot))
}

fn vcpus<'a>(word: &'a str, value: &str) -> Result<u16, WordError<'a>> {
    match value.parse() {
        Ok(count) if count > 0 && usize::from(count) <= crate::MAX_VCPUS => Ok(count),
        _ => Err(WordError::BadValue { word, expected: "a number from 1 to 255" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn words_written_by_one_end_are_read_by_the_other() {
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
            tell: true,
            ring: true,
            trace: true,
            slice_margin_ns: 12,
            register: false,
        };
        let boot = Boot { vcpus: Some(255), tsc_khz: Some(2_596_100), start: Start::Direct };
        let line = std::format!("{workload} {boot}");
        assert_eq!(parse(&line), Ok((workload, boot)));
        assert_eq!(parse(&Workload::DEFAULT.to_string()), Ok((Workload::DEFAULT, Boot::DEFAULT)));
    }

    #[test]
    fn every_name_reads_back_as_itself() {
        for job in Job::ALL {
            assert_eq!(Job::from_word(job.word()), Some(*job));
            assert!(Job::EXPECTED.contains(job.word()));
        }
        for scene in Scene::ALL {
            assert_eq!(Scene::from_word(scene.word()), Some(*scene));
            assert!(Scene::EXPECTED.contains(scene.word()));
        }
        for lock in Lock::ALL {
            assert_eq!(Lock::from_word(lock.word()), Some(*lock));
        }
        for wait in Wait::ALL {
            assert_eq!(Wait::from_word(wait.word()), Some(*wait));
        }
        for check in Check::ALL {
            assert_eq!(Check::from_word(check.word()), Some(*check));
        }
        for spread in Spread::ALL {
            assert_eq!(Spread::from_word(spread.word()), Some(*spread));
        }
    }

    #[test]
    fn every_key_of_a_full_line_is_listed_for_messages() {
        let boot = Boot { vcpus: Some(1), tsc_khz: Some(1), start: Start::Sipi };
        for word in std::format!("{} {boot}", Workload::DEFAULT).split(' ') {
            let key = word.split('=').next().unwrap();
            assert!(KEYS.split(", ").any(|known| known == key), "{key}");
        }
    }

    #[test]
    fn last_word_of_a_key_counts() {
        assert_eq!(parse("lock=ticket  lock=mutex\n").unwrap().0.lock, Lock::Mutex);
    }

    #[test]
    fn unknown_words_and_values_are_errors_that_name_the_word() {
        assert_eq!(parse("quiet"), Err(WordError::Unknown("quiet")));
        assert_eq!(parse("console=ttyS0"), Err(WordError::Unknown("console=ttyS0")));
        for word in [
            "lock=clh",
            "section_ns=-1",
            "section_ns=4294967296",
            "vcpus=0",
            "vcpus=256",
            "steal=",
            "tsc_khz=0",
        ] {
            assert!(matches!(parse(word), Err(WordError::BadValue { word: w, .. }) if w == word), "{word}");
        }
    }
}
