//! Parameters whose values have names.

use core::fmt;

use super::value::Value;

/// Defines an enum whose variants have a name each.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident {
        $(#[$first_doc:meta])* $first:ident = $first_text:literal,
        $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(#[$first_doc])* $first, $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All values, in the order of their definition.
            pub const ALL: &'static [Self] = &[Self::$first, $(Self::$variant,)*];
            /// The names of all values, in the same order.
            pub const NAMES: &'static [&'static str] = &[$first_text, $($text,)*];
            /// What a name must be, to complete "the value must be".
            pub const EXPECTED: &'static str = concat!("one of ", $first_text, $(", ", $text),*);

            /// The name of this value on the command line.
            pub const fn name(self) -> &'static str {
                match self { Self::$first => $first_text, $(Self::$variant => $text,)* }
            }

            /// Returns the value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $first_text => Some(Self::$first), $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl Value for $name {
            const EXPECTED: &'static str = Self::EXPECTED;
            const CHOICES: &'static [&'static str] = Self::NAMES;

            fn parse(text: &str) -> Option<Self> {
                Self::from_name(text)
            }

            fn write(self, out: &mut dyn fmt::Write) -> fmt::Result {
                out.write_str(self.name())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.name()) }
        }
    };
}

named! {
    /// What the vCPUs do.
    Job {
        /// Take and release contended locks, for a measured window.
        Contend = "contend",
        /// Time each form of the check.
        Checks = "checks",
        /// Spin, and sample `preempted` of the own record and of all others.
        Watch = "watch",
        /// Spin, exit to the monitor and halt in turn, on the boot vCPU; the last vCPU spins, the
        /// others halt.
        Mixed = "mixed",
        /// Judge assertions of [`crate::payload::conformance`] from inside, in one scene.
        Conformance = "conformance",
        /// Reset at once, so that the run is start-up and nothing else.
        Reset = "reset",
        /// Halt until the window closes.
        Idle = "idle",
        /// Panic, to test how a panic is reported.
        Panic = "panic",
        /// Execute an undefined instruction, to test how an exception is reported.
        Fault = "fault",
    }
}

named! {
    /// A scene of [`Job::Conformance`]: what the vCPUs do to judge some of the assertions.
    Scene {
        /// One vCPU tries the MSR and records of its own.
        Msr = "msr",
        /// One vCPU checks that the feature, which must be off, is absent.
        Absent = "absent",
        /// One vCPU tries each form of the check.
        Check = "check",
        /// One vCPU resets another that has a record, and starts it again.
        Init = "init",
        /// The same, by an INIT from the I/O APIC's pin of the PIT.
        InitByPit = "init-by-pit",
        /// The same, by an INIT from the I/O APIC's pin of COM1.
        InitByCom1 = "init-by-com1",
        /// One vCPU moves its record between pages that all others write to.
        Roam = "roam",
        /// All vCPUs spin, and watch each other.
        Spin = "spin",
        /// One vCPU watches a second that halts, and a third that exits to the monitor most of the
        /// time.
        Block = "block",
    }
}

impl Scene {
    /// Returns how the vCPUs start in this scene. Started directly, the payload gets a machine
    /// without an I/O APIC.
    pub const fn start(self) -> Start {
        match self {
            Self::InitByPit | Self::InitByCom1 => Start::Sipi,
            _ => Start::Direct,
        }
    }
}

named! {
    /// The lock that the vCPUs contend for.
    Lock {
        /// Test-and-set. The same compare-and-swap stores the vCPU id of the holder.
        Tas = "tas",
        /// Test-and-set without an owner: Linux' `virt_spin_lock`, its fallback under a hypervisor.
        Virt = "virt",
        /// A ticket lock: first come, first served.
        Ticket = "ticket",
        /// A ticket lock whose waiters barge in when their turn does not come (preemptable ticket
        /// lock).
        Preemptable = "preemptable",
        /// A ticket lock whose waiters halt, and are kicked when their turn comes.
        PvTicket = "pv-ticket",
        /// An MCS queue: each waiter spins on a word of its own.
        Mcs = "mcs",
        /// Linux' queued spinlock on bare metal.
        Qspin = "qspin",
        /// Linux' paravirtual queued spinlock, strictly in order.
        PvqPlain = "pvq",
        /// `pvq` with one attempt to steal on arrival.
        PvqSteal = "pvq-steal",
        /// `pvq` that may be stolen while the head of the queue does not spin.
        PvqHybrid = "pvq-hybrid",
        /// `pvq-hybrid` that halts early behind a halted predecessor: Linux today.
        PvqState = "pvq-state",
        /// `pvq-state` that also halts early behind a preempted predecessor: what Linux reverted.
        PvqPreempted = "pvq-preempted",
        /// A mutex with optimistic spinning on its owner, as in Linux.
        Mutex = "mutex",
        /// A reader-writer semaphore whose writers spin on the owner, as in Linux.
        Rwsem = "rwsem",
        /// The owner in the lock word, with a queue that always names the vCPU to wait for.
        OwnerQueue = "owner-queue",
        /// An MCS queue that culls surplus waiters (Malthusian lock).
        Malthusian = "malthusian",
        /// At most as many awake contenders as there are CPUs; the others are parked for their
        /// turn.
        Cull = "cull",
    }
}

named! {
    /// The form of the check that waiters call.
    Check {
        /// A wrapper that saves eight registers around a plain function.
        Thunk = "thunk",
        /// A plain function.
        Call = "call",
        /// Two registers saved, and a sign extension.
        Save2 = "save2",
        /// One register saved, and a sign extension.
        Save1 = "save1",
        /// No register saved: the form that Linux merged.
        Save0 = "save0",
        /// Inline code without a call.
        Inline = "inline",
        /// `save0`, called through a pointer.
        Pointer = "pointer",
    }
}

named! {
    /// What a waiter does while it waits for another vCPU.
    Wait {
        /// Spin, and ignore `preempted`.
        Spin = "spin",
        /// Spin for a fixed CPU time, then halt, without reading `preempted`: the honest control.
        Threshold = "threshold",
        /// Spin for a fixed number of iterations, then halt.
        Cap = "cap",
        /// Stop spinning when `preempted` of the vCPU waited for is set.
        Preempted = "preempted",
        /// Stop spinning when `preempted` was set in two reads, a microsecond apart.
        Twice = "twice",
        /// Never stop spinning, but ask the host to run the vCPU waited for while `preempted` is
        /// set.
        Yield = "yield",
    }
}

named! {
    /// How a duration varies around its mean.
    Spread {
        /// The same duration each time.
        Fixed = "fixed",
        /// Uniform between 0.5 and 1.5 times the mean.
        Uniform = "uniform",
        /// Exponential, as between independent events.
        Exponential = "exponential",
    }
}

named! {
    /// How the vCPUs other than the boot vCPU start.
    Start {
        /// The monitor starts all of them.
        Direct = "direct",
        /// The boot vCPU sends INIT and SIPI.
        Sipi = "sipi",
    }
}
