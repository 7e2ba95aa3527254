//! What the payload does, and how long: a line for each word.

use core::fmt;

use super::WordError;
use super::names::{Check, Job, Lock, Scene, Spread, Wait};
use super::values::{locks, long, named, nonzero, number, percent, switch};

/// Makes [`Workload`], its keys, its words, and how they are read.
macro_rules! workload {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr, $key:literal, $parse:path;)+) => {
        /// What the payload does, and how long.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Workload {
            $(#[doc = concat!("`", $key, "=`: ")] $(#[$doc])* pub $field: $type,)+
        }

        impl Workload {
            /// What the payload does when no word asks for anything else.
            pub const DEFAULT: Self = Self { $($field: $default,)+ };

            /// Takes the value of `key`; `None` if that is not one of the workload's.
            pub(super) fn set<'a>(&mut self, word: &'a str, key: &str, value: &str) -> Option<Result<(), WordError<'a>>> {
                match key {
                    $($key => Some(match $parse(word, value) {
                        Ok(value) => {
                            self.$field = value;
                            Ok(())
                        }
                        Err(error) => Err(error),
                    }),)+
                    _ => None,
                }
            }
        }

        /// Every key, for messages.
        pub(super) const KEYS: &str = concat!($($key, ", ",)+ "vcpus, tsc_khz, start");

        impl fmt::Display for Workload {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut is_first = true;
                $(
                    // What is asked for anyway need not be said, but for what everybody wants to know.
                    if self.$field != Self::DEFAULT.$field || ALWAYS_SAID.contains(&$key) {
                        if !is_first {
                            f.write_str(" ")?;
                        }
                        is_first = false;
                        write!(f, concat!($key, "={}"), Word(self.$field))?;
                    }
                )+
                let _ = is_first;
                Ok(())
            }
        }
    };
}

/// Keys that are said even where they say what holds anyway.
const ALWAYS_SAID: [&str; 10] = [
    "job",
    "lock",
    "wait",
    "section_ns",
    "think_ns",
    "threshold_ns",
    "warmup_ms",
    "duration_ms",
    "seed",
    "steal",
];

/// A value as it is written in a word.
struct Word<T>(T);

macro_rules! plain_words {
    ($($type:ty),+) => {
        $(impl fmt::Display for Word<$type> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        })+
    };
}
plain_words!(u32, u64, Job, Scene, Lock, Check, Wait, Spread);

impl fmt::Display for Word<bool> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "on" } else { "off" })
    }
}

/// The most locks that there are.
pub const MAX_LOCKS: u32 = 8;

workload! {
    /// What the vCPUs do.
    job: Job = Job::Contend, "job", named;
    /// The scene of [`Job::Conformance`].
    scene: Scene = Scene::Msr, "scene", named;
    /// How often [`Scene::Roam`] moves its record.
    moves: u32 = 500, "moves", number;
    /// The lock of [`Job::Contend`].
    lock: Lock = Lock::Tas, "lock", named;
    /// How many of that lock there are; each section is of one chosen at random.
    locks: u32 = 1, "locks", locks;
    /// The form of the check that waiters use.
    check: Check = Check::Save0, "check", named;
    /// The way to wait.
    wait: Wait = Wait::Byte, "wait", named;
    /// Turns of the waiting loop between two checks.
    check_every: u32 = 1, "check_every", nonzero;
    /// Mean CPU time inside the lock.
    section_ns: u32 = 1_000, "section_ns", number;
    /// How it varies.
    section_spread: Spread = Spread::Fixed, "section_spread", named;
    /// Mean CPU time between two acquisitions.
    think_ns: u32 = 2_000, "think_ns", number;
    /// How it varies.
    think_spread: Spread = Spread::Uniform, "think_spread", named;
    /// Sections in a hundred that only read.
    readers: u32 = 0, "readers", percent;
    /// CPU time that [`Wait::Threshold`] spins before it halts.
    threshold_ns: u32 = 50_000, "threshold_ns", number;
    /// CPU time that [`Wait::Byte`] and [`Wait::Twice`] spin at most, whatever the byte says; 0 for as long as it takes.
    backstop_ns: u32 = 50_000, "backstop_ns", number;
    /// Turns that [`Wait::Cap`] spins before it halts; as many as Linux' paravirtual locks.
    cap_turns: u32 = 32_768, "cap_turns", number;
    /// From the moment that all vCPUs are up to the begin of the measured window.
    warmup_ms: u32 = 100, "warmup_ms", number;
    /// The measured window.
    duration_ms: u32 = 1_000, "duration_ms", number;
    /// Of everything that is drawn at random.
    seed: u64 = 1, "seed", long;
    /// `on` or `off`: whether vCPUs say which of them hold a lock, want one, or have halted: [`crate::exchange::Told`].
    tell: bool = false, "tell", switch;
    /// `on` or `off`: whether they ring the doorbell for what cannot wait. It takes `tell=on`.
    ring: bool = false, "ring", switch;
    /// `on` or `off`: whether waits and sections that take long are noted: [`crate::exchange::Episode`].
    trace: bool = false, "trace", switch;
    /// With less than this left of its turn a vCPU does not begin to take a lock; 0 to ask nobody.
    slice_margin_ns: u32 = 0, "slice_margin_ns", number;
    /// `on` or `off`: whether vCPUs register their steal-time records.
    register: bool = true, "steal", switch;
}

impl Default for Workload {
    fn default() -> Self {
        Self::DEFAULT
    }
}
