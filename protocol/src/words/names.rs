//! What can be chosen by name.

use core::fmt;

/// What has a word for each of its values.
pub(super) trait Named: Sized {
    /// What to say where a word is none of them.
    const EXPECTED: &'static str;
    /// The one with this word.
    fn from_word(word: &str) -> Option<Self>;
}

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

        impl Named for $name {
            const EXPECTED: &'static str = Self::EXPECTED;
            fn from_word(word: &str) -> Option<Self> {
                Self::from_word(word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.word()) }
        }
    };
}

named! {
    /// What the vCPUs do.
    Job, "contend, checks, watch, witness, conformance, reset, idle, panic or fault" {
        /// Take and release one hot lock, for a measured window.
        Contend = "contend",
        /// Time each form of the check.
        Checks = "checks",
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
    Lock, "tas, virt, ticket, preemptable, pv-ticket, mcs, qspin, pvq, pvq-steal, pvq-hybrid, pvq-state, pvq-byte, mutex, \
           rwsem, owner-queue, malthusian or cull" {
        /// Test-and-set; the word takes the holder's vCPU id in the same compare-and-swap.
        Tas = "tas",
        /// Linux' fallback on a hypervisor: test-and-set that names nobody.
        Virt = "virt",
        /// First come, first served.
        Ticket = "ticket",
        /// Tickets whose holders press in when their turn does not come.
        Preemptable = "preemptable",
        /// Tickets whose holders halt, and are woken by name.
        PvTicket = "pv-ticket",
        /// A queue, each on a word of its own.
        Mcs = "mcs",
        /// Linux' queued spinlock on bare metal.
        Qspin = "qspin",
        /// Linux' paravirtual one, strictly in order.
        PvqPlain = "pvq",
        /// It, with one attempt on arrival.
        PvqSteal = "pvq-steal",
        /// It, open to all while the head does not spin.
        PvqHybrid = "pvq-hybrid",
        /// That, halting early behind who has halted: what Linux has.
        PvqState = "pvq-state",
        /// That, halting early behind who is preempted, too: what Linux reverted.
        PvqByte = "pvq-byte",
        /// Owner-spinning mutex with a queue of spinners, in Linux' shape.
        Mutex = "mutex",
        /// Reader-writer semaphore whose writers spin on writers, in Linux' shape.
        Rwsem = "rwsem",
        /// The owner in the word, a queue without windows behind it.
        OwnerQueue = "owner-queue",
        /// A queue that retires those it has too many of.
        Malthusian = "malthusian",
        /// As many awake as there are CPUs for, each for its turn.
        Cull = "cull",
    }
}

named! {
    /// The form of the check, [`Wait::Byte`] and its kin ask by.
    Check, "thunk, call, save2, save1, save0, inline or pointer" {
        /// Eight registers saved around a plain function.
        Thunk = "thunk",
        /// A plain function.
        Call = "call",
        /// Two registers saved, a sign extension.
        Save2 = "save2",
        /// One register saved, a sign extension.
        Save1 = "save1",
        /// Nothing saved: what landed in Linux.
        Save0 = "save0",
        /// No call.
        Inline = "inline",
        /// What landed, through a pointer.
        Pointer = "pointer",
    }
}

named! {
    /// What a waiter does about a vCPU that it waits for.
    Wait, "ignore, threshold, cap, byte, twice or yield" {
        /// Spin, whatever the byte says.
        Ignore = "ignore",
        /// Spin for a fixed CPU time, then halt, without asking the byte: the honest control.
        Threshold = "threshold",
        /// Spin for a fixed number of turns, then halt.
        Cap = "cap",
        /// Stop spinning when the byte says that the vCPU waited for is not running.
        Byte = "byte",
        /// Stop spinning when the byte has said so twice, a microsecond apart.
        Twice = "twice",
        /// Never stop, but ring the monitor's doorbell for the vCPU waited for while the byte says that it is not running.
        Yield = "yield",
    }
}

named! {
    /// How a time varies from one to the next.
    Spread, "fixed, uniform or exponential" {
        /// Not at all.
        Fixed = "fixed",
        /// Between half and one and a half of the mean.
        Uniform = "uniform",
        /// As between events that know nothing of each other.
        Exponential = "exponential",
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
