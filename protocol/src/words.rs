//! What the payload is asked to do, as words on the kernel command line.
//!
//! `lock=mutex wait=byte section_ns=1000`: words of the form `key=value`, in any order, the last one of a key
//! counts. The same words work under QEMU's `-append`, and the monitor's typed options (`--lock mutex`) are only a
//! checked way to write them. A key or value that nobody knows is an error at both ends.
//!
//! [`Workload`] is what to do. [`Boot`] is what the payload cannot find out by itself; our monitor adds those words.

use core::fmt;

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

/// Makes an enum whose variants have a word each.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $expected:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All of them, in the order of their definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// What to say where a word is none of them.
            pub const EXPECTED: &'static str = $expected;

            /// The word for this one.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The one with this word.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.word()) }
        }
    };
}

named! {
    /// What the vCPUs do.
    Job, "contend, watch, witness, conformance, reset, idle, panic or fault" {
        /// Take and release one hot lock, for a measured window.
        Contend = "contend",
        /// Spin, and sample the own byte and everybody else's.
        Watch = "watch",
        /// The boot vCPU runs, leaves, halts and comes back; the last one judges its byte by that.
        Witness = "witness",
        /// Judge assertions of [`crate::conformance`] from inside, in one scene.
        Conformance = "conformance",
        /// Reset at once: what start-up costs.
        Reset = "reset",
        /// Halt until the window ends.
        Idle = "idle",
        /// Panic, to show how that ends.
        Panic = "panic",
        /// Execute an undefined instruction, to show how that ends.
        Fault = "fault",
    }
}

named! {
    /// What the vCPUs play to judge assertions of [`crate::conformance`].
    Scene, "msr, absent, check, init, roam, spin or block" {
        /// One vCPU tries the MSR and records of its own.
        Msr = "msr",
        /// One vCPU looks for a feature that is to be off.
        Absent = "absent",
        /// One vCPU tries each form of the check.
        Check = "check",
        /// One vCPU resets another that has a record, and starts it again.
        Init = "init",
        /// One vCPU moves its record about, over pages that all others are writing.
        Roam = "roam",
        /// All vCPUs spin, and watch each other.
        Spin = "spin",
        /// One vCPU watches another that halts, and a third that is in the monitor most of the time.
        Block = "block",
    }
}

named! {
    /// The lock that everybody wants.
    Lock, "tas, ticket or mutex" {
        /// Test-and-set; the word takes the holder's vCPU id in the same compare-and-swap.
        Tas = "tas",
        /// First come, first served.
        Ticket = "ticket",
        /// Owner-spinning mutex with a queue of spinners, in Linux' shape.
        Mutex = "mutex",
    }
}

named! {
    /// What a waiter does about a vCPU that it waits for.
    Wait, "ignore, threshold or byte" {
        /// Spin, whatever the byte says.
        Ignore = "ignore",
        /// Spin for a fixed CPU time, then halt, without asking the byte: the honest control.
        Threshold = "threshold",
        /// Stop spinning when the byte says that the vCPU waited for is not running.
        Byte = "byte",
    }
}

named! {
    /// How vCPUs other than the boot vCPU start.
    Start, "direct or sipi" {
        /// The monitor starts all of them.
        Direct = "direct",
        /// The boot vCPU sends INIT and SIPI.
        Sipi = "sipi",
    }
}

/// Every key, for messages.
const KEYS: &str = "job, scene, moves, lock, wait, section_ns, think_ns, threshold_ns, warmup_ms, duration_ms, seed, steal, \
                    vcpus, tsc_khz, start";

/// What the payload does, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `job=`: what the vCPUs do.
    pub job: Job,
    /// `scene=`: the scene of [`Job::Conformance`].
    pub scene: Scene,
    /// `moves=`: how often [`Scene::Roam`] moves its record.
    pub moves: u32,
    /// `lock=`: the lock of [`Job::Contend`].
    pub lock: Lock,
    /// `wait=`: its way to wait.
    pub wait: Wait,
    /// `section_ns=`: CPU time inside the lock.
    pub section_ns: u32,
    /// `think_ns=`: mean CPU time between two acquisitions; uniform between half and one and a half of it.
    pub think_ns: u32,
    /// `threshold_ns=`: CPU time that [`Wait::Threshold`] spins before it halts.
    pub threshold_ns: u32,
    /// `warmup_ms=`: from the moment that all vCPUs are up to the begin of the measured window.
    pub warmup_ms: u32,
    /// `duration_ms=`: the measured window.
    pub duration_ms: u32,
    /// `seed=`: of the think times.
    pub seed: u64,
    /// `steal=on|off`: whether vCPUs register their steal-time records.
    pub register: bool,
}

impl Workload {
    /// What the payload does when no word asks for anything else.
    pub const DEFAULT: Self = Self {
        job: Job::Contend,
        scene: Scene::Msr,
        moves: 500,
        lock: Lock::Tas,
        wait: Wait::Byte,
        section_ns: 1_000,
        think_ns: 2_000,
        threshold_ns: 50_000,
        warmup_ms: 100,
        duration_ms: 1_000,
        seed: 1,
        register: true,
    };
}

impl Default for Workload {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            job,
            scene,
            moves,
            lock,
            wait,
            section_ns,
            think_ns,
            threshold_ns,
            warmup_ms,
            duration_ms,
            seed,
            register,
        } = self;
        write!(f, "job={job} ")?;
        if *job == Job::Conformance {
            write!(f, "scene={scene} moves={moves} ")?;
        }
        write!(f, "lock={lock} wait={wait} section_ns={section_ns} think_ns={think_ns} ")?;
        write!(
            f,
            "threshold_ns={threshold_ns} warmup_ms={warmup_ms} duration_ms={duration_ms} seed={seed} "
        )?;
        write!(f, "steal={}", if *register { "on" } else { "off" })
    }
}

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
        let bad = |expected| WordError::BadValue { word, expected };
        match key {
            "job" => workload.job = Job::from_word(value).ok_or(bad(Job::EXPECTED))?,
            "scene" => workload.scene = Scene::from_word(value).ok_or(bad(Scene::EXPECTED))?,
            "moves" => workload.moves = number(word, value)?,
            "lock" => workload.lock = Lock::from_word(value).ok_or(bad(Lock::EXPECTED))?,
            "wait" => workload.wait = Wait::from_word(value).ok_or(bad(Wait::EXPECTED))?,
            "section_ns" => workload.section_ns = number(word, value)?,
            "think_ns" => workload.think_ns = number(word, value)?,
            "threshold_ns" => workload.threshold_ns = number(word, value)?,
            "warmup_ms" => workload.warmup_ms = number(word, value)?,
            "duration_ms" => workload.duration_ms = number(word, value)?,
            "seed" => workload.seed = value.parse().map_err(|_| bad("a 64-bit number"))?,
            "steal" => {
                workload.register = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad("on or off")),
                }
            }
            "vcpus" => boot.vcpus = Some(vcpus(word, value)?),
            "tsc_khz" => boot.tsc_khz = Some(nonzero(word, value)?),
            "start" => boot.start = Start::from_word(value).ok_or(bad(Start::EXPECTED))?,
            _ => return Err(WordError::Unknown(word)),
        }
    }
    Ok((workload, boot))
}

fn number<'a>(word: &'a str, value: &str) -> Result<u32, WordError<'a>> {
    value.parse().map_err(|_| WordError::BadValue { word, expected: "a number of at most 4294967295" })
}

fn nonzero<'a>(word: &'a str, value: &str) -> Result<u32, WordError<'a>> {
    match number(word, value)? {
        0 => Err(WordError::BadValue { word, expected: "more than 0" }),
        number => Ok(number),
    }
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
            wait: Wait::Threshold,
            section_ns: 7,
            think_ns: 0,
            threshold_ns: 9,
            warmup_ms: 10,
            duration_ms: 11,
            seed: u64::MAX,
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
            "lock=mcs",
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
