//! The table of parameters: one entry for each, with name, type, default, range and help.

use core::fmt;

use super::names::{Check, Job, Lock, Scene, Spread, Start, Wait};
use super::value::Value;
use super::{Param, ParamError};

/// The largest number of locks of [`Job::Contend`].
pub const MAX_LOCKS: u32 = 8;

/// Defines a struct of parameters. The name of a field is the key; its doc comment is the help
/// text.
///
/// `[always]` has `Display` write the parameter even where it has its default value.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident {
        $(
            $(#[doc = $help:literal])+
            $key:ident $([$always:ident])?: $type:ty = $default:expr $(, in $range:expr, $expected:literal)?;
        )+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $help])+ pub $key: $type,)+
        }

        impl $name {
            /// The values of a command line without any parameter.
            pub const DEFAULT: Self = Self { $($key: $default,)+ };

            /// The keys of all parameters, in the order in which they are written.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($key),)+];

            /// All parameters, with help, in the same order.
            pub const PARAMS: &'static [Param] = &[$(Param {
                key: stringify!($key),
                help: concat!($($help,)+).trim_ascii(),
                expected: [$($expected,)? <$type as Value>::EXPECTED][0],
                choices: <$type as Value>::CHOICES,
            },)+];

            /// Sets the parameter `key` from its text.
            ///
            /// # Errors
            /// [`ParamError`] if there is no such key, or the value is not one that it takes.
            pub fn set<'a>(&mut self, key: &'a str, value: &'a str) -> Result<(), ParamError<'a>> {
                match key {
                    $(stringify!($key) => {
                        let parsed = <$type as Value>::parse(value)$(.filter(|value| ($range).contains(value)))?;
                        let expected = [$($expected,)? <$type as Value>::EXPECTED][0];
                        self.$key = parsed.ok_or(ParamError::BadValue { key, value, expected })?;
                        Ok(())
                    })+
                    _ => Err(ParamError::UnknownKey(key)),
                }
            }

            /// Writes the value of the parameter `key` as [`Self::set`] reads it; nothing if there
            /// is no such key.
            ///
            /// # Errors
            /// Those of `out`.
            pub fn write_value(&self, key: &str, out: &mut dyn fmt::Write) -> fmt::Result {
                match key {
                    $(stringify!($key) => self.$key.write(out),)+
                    _ => Ok(()),
                }
            }

            fn is_written(&self, key: &str) -> bool {
                match key {
                    $(stringify!($key) => {
                        !<[&str]>::is_empty(&[$(stringify!($always))?]) || self.$key != Self::DEFAULT.$key
                    })+
                    _ => false,
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::DEFAULT
            }
        }

        /// Writes `key=value` words that parse back to the same parameters. Most defaults are left
        /// out.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut separator = "";
                for key in Self::KEYS.iter().filter(|key| self.is_written(key)) {
                    write!(f, "{separator}{key}=")?;
                    self.write_value(key, f)?;
                    separator = " ";
                }
                Ok(())
            }
        }
    };
}

params! {
    /// What the payload does, and for how long.
    Workload {
        /// What the vCPUs do
        job [always]: Job = Job::Contend;
        /// The scene that job=conformance plays
        scene: Scene = Scene::Msr;
        /// How often scene=roam moves its record
        moves: u32 = 500;
        /// The lock of job=contend
        lock [always]: Lock = Lock::Tas;
        /// Number of locks; each section takes one of them at random
        locks: u32 = 1, in 1..=MAX_LOCKS, "a number from 1 to 8";
        /// The form of the check that waiters call
        check: Check = Check::Save0;
        /// What a waiter does while it waits for another vCPU
        wait [always]: Wait = Wait::Preempted;
        /// Iterations of the waiting loop between two checks
        check_every: u32 = 1, in 1..=u32::MAX, "more than 0";
        /// Mean CPU time of a section under the lock (ns)
        section_ns [always]: u32 = 1_000;
        /// How the length of a section varies
        section_spread: Spread = Spread::Fixed;
        /// Mean CPU time between two acquisitions (ns)
        think_ns [always]: u32 = 2_000;
        /// How the time between two acquisitions varies
        think_spread: Spread = Spread::Uniform;
        /// Percentage of sections that only read (lock=rwsem admits readers together)
        readers: u32 = 0, in 0..=100, "a number from 0 to 100";
        /// CPU time that wait=threshold spins before it halts (ns)
        threshold_ns [always]: u32 = 50_000;
        /// Longest CPU time that wait=preempted and wait=twice spin (ns); 0 for no limit
        backstop_ns: u32 = 50_000;
        /// Iterations that wait=cap spins before it halts (default: as in Linux' paravirtual locks)
        cap_turns: u32 = 32_768;
        /// From the moment that all vCPUs are up to the measured window (ms)
        warmup_ms [always]: u32 = 100;
        /// Length of the measured window (ms)
        duration_ms [always]: u32 = 1_000;
        /// Seed of all random numbers
        seed [always]: u64 = 1;
        /// Whether vCPUs publish hints to the host: locks held, lock awaited, halted
        hints: bool = false;
        /// Whether vCPUs ring the doorbell for urgent hints (takes hints=on)
        doorbell: bool = false;
        /// Whether vCPUs log long waits and long sections
        trace: bool = false;
        /// With less than this left of its slice, a vCPU does not start to acquire a lock (ns); 0
        /// for no margin
        slice_margin_ns: u32 = 0;
        /// Whether vCPUs register their steal-time records
        steal [always]: bool = true;
    }
}

params! {
    /// What the payload cannot find out by itself. A monitor adds these parameters.
    Boot {
        /// How the other vCPUs start
        start [always]: Start = Start::Sipi;
        /// Number of vCPUs; without it the payload counts those that answer its SIPI
        vcpus: Option<u16> = None, in Some(1)..=Some(255), "a number from 1 to 255";
        /// Rate of the guest's TSC (kHz); without it the payload measures the rate against the PIT
        tsc_khz: Option<u32> = None, in Some(1)..=Some(u32::MAX), "more than 0";
    }
}
