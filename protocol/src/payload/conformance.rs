//! Conformance: what a guest may rely on, as 31 assertions, and the payload's verdicts on them.
//!
//! The payload judges most assertions from inside the guest. Some need a monitor that sees the vCPU
//! threads, and a few need both. A verdict comes with its evidence: how often the assertion was
//! observed to hold. An assertion that was never observed has no verdict, which is not a verdict in
//! its favour.
//!
//! The payload judges in scenes ([`super::params::Scene`]), each in a run of its own. If several
//! scenes judge one assertion, a single broken verdict outweighs all others.
//!
//! Source: the ABI in [`crate::kvm`] and the behaviour of KVM (Linux `arch/x86/kvm/x86.c`). A few
//! statements go beyond KVM on purpose.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Defines the enum of the assertions.
macro_rules! assertions {
    ($($number:literal $variant:ident = $name:literal: $statement:literal,)+) => {
        /// A property of steal time that a guest may rely on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Assertion {
            $(#[doc = $statement] $variant = $number,)+
        }

        impl Assertion {
            /// All assertions, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The short name, for tables and TAP.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The statement, as one sentence without a full stop.
            pub const fn statement(self) -> &'static str {
                match self { $(Self::$variant => $statement,)+ }
            }
        }
    };
}

assertions! {
    1 FeatureOffered = "feature-offered":
        "CPUID shows KVM's signature, and the steal-time bit if and only if the feature is on",
    2 AbsentFaults = "absent-faults":
        "With the feature off, reading and writing the MSR raise #GP",
    3 StartsAtZero = "starts-at-zero":
        "The MSR reads 0 before the first write",
    4 ReadsBack = "reads-back":
        "A written value reads back unchanged",
    5 ReservedBitsFault = "reserved-bits-fault":
        "Each reserved bit, and all together, with and without bit 0, raise #GP; value and publication stay",
    6 OutsideRamIsSilent = "outside-ram-is-silent":
        "An address outside RAM is accepted and reads back; nothing is written, nothing faults",
    7 OffStops = "off-stops":
        "After a write with bit 0 clear no byte of the record changes again",
    8 MoveLeavesTheOld = "move-leaves-the-old":
        "After a move the host writes the new record, and never the old one",
    9 Isolated = "isolated":
        "Publication for a vCPU writes nothing outside its 64 bytes",
    10 InitClears = "init-clears":
        "INIT and reset clear the MSR and stop publication",
    11 OneWriter = "one-writer":
        "KVM's own copy of the MSR stays disabled while the monitor emulates it",
    12 OnlyTheWords = "only-the-words":
        "The host writes only bytes 0 to 16; flags stay 0, padding stays as the guest set it",
    13 VersionEven = "version-even":
        "A vCPU finds its own version even; that of another turns even within a bounded number of reads",
    14 VersionGrows = "version-grows":
        "Each update moves the version on, the first before the guest's next instruction; it wraps around",
    15 OddIsMended = "odd-is-mended":
        "A version that the guest left odd is even after the first update",
    16 NeverTorn = "never-torn":
        "A reader on another vCPU that follows the version protocol never sees steal decrease",
    17 ByteAlone = "byte-alone":
        "Setting preempted changes neither version nor steal",
    18 StealNeverBack = "steal-never-back":
        "Steal never decreases, across a stop of publication and a change of the vCPU thread too",
    19 StealIsRunDelay = "steal-is-run-delay":
        "Steal equals the run delay of the vCPU thread",
    20 HaltIsNoSteal = "halt-is-no-steal":
        "Halted time adds nothing to steal",
    21 SharedCpuAddsUp = "shared-cpu-adds-up":
        "Of two vCPUs that spin on one CPU, each gains as steal what the other runs: both add up to wall time",
    22 MonitorAddsNothing = "monitor-adds-nothing":
        "Exits to the monitor and pauses of the machine add nothing to steal",
    23 OwnByteClear = "own-byte-clear":
        "A vCPU never finds its own preempted set",
    24 PreemptedIsSeen = "preempted-is-seen":
        "Others see preempted set while the host has a vCPU off its CPU, and clear while it runs",
    25 BlockedIsNotPreempted = "blocked-is-not-preempted":
        "preempted of a vCPU that halts, is in the monitor or is paused stays 0, unless it is preempted there",
    26 ByteIsOneOrZero = "byte-is-one-or-zero":
        "The host sets preempted to 1 and clears it to 0; a bit that the guest adds is gone when the vCPU runs",
    27 WholeByteCounts = "whole-byte-counts":
        "The check returns true for any value but 0",
    28 CheckKeepsRegisters = "check-keeps-registers":
        "For every vCPU and value the check agrees with preempted, and changes only rax and flags",
    29 SurvivesRestore = "survives-restore":
        "After save and restore the MSR is unchanged, steal has not decreased, and preempted is 0",
    30 PausedIsUntouched = "paused-is-untouched":
        "Nothing is written while the machine is paused; pages that KVM's dirty log misses are reported",
    31 NothingAfterTheEnd = "nothing-after-the-end":
        "Nothing is written after the machine has ended",
}

impl Assertion {
    /// The number of the assertion, from 1.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The payload's verdict on an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It held in every one of this many observations.
    Held(u64),
    /// It was broken. The number is the line of the payload's source that found it.
    Broken(u32),
}

/// The payload's findings, by assertion. Any vCPU may write them.
#[derive(Debug)]
#[repr(C)]
pub struct Findings([Cell; Assertion::ALL.len()]);

/// Findings on one assertion.
#[derive(Debug)]
#[repr(C)]
struct Cell {
    /// Number of observations in which it held.
    held: AtomicU64,
    /// The source line that first found it broken; 0 if none did.
    broken_at: AtomicU32,
}

impl Findings {
    /// Returns empty findings.
    pub const fn new() -> Self {
        Self([const { Cell { held: AtomicU64::new(0), broken_at: AtomicU32::new(0) } }; Assertion::ALL.len()])
    }

    /// Records that `assertion` held in `times` observations.
    pub fn hold(&self, assertion: Assertion, times: u64) {
        if let Some(cell) = self.cell(assertion) {
            cell.held.fetch_add(times, Ordering::Relaxed);
        }
    }

    /// Records that `assertion` was found broken at source line `line`. The first such line is
    /// kept.
    pub fn refute(&self, assertion: Assertion, line: u32) {
        if let Some(cell) = self.cell(assertion) {
            let _ = cell.broken_at.compare_exchange(0, line.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Returns the verdict on `assertion`, or `None` if it was never observed.
    pub fn of(&self, assertion: Assertion) -> Option<Finding> {
        let cell = self.cell(assertion)?;
        match (cell.broken_at.load(Ordering::Relaxed), cell.held.load(Ordering::Relaxed)) {
            (0, 0) => None,
            (0, times) => Some(Finding::Held(times)),
            (line, _) => Some(Finding::Broken(line)),
        }
    }

    fn cell(&self, assertion: Assertion) -> Option<&Cell> {
        self.0.get(usize::from(assertion.number()) - 1)
    }
}

impl Default for Findings {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn assertions_are_numbered_from_1_and_named_once() {
        for (place, assertion) in Assertion::ALL.iter().enumerate() {
            assert_eq!(usize::from(assertion.number()), place + 1);
        }
        let names: BTreeSet<_> = Assertion::ALL.iter().map(|assertion| assertion.name()).collect();
        assert_eq!(names.len(), 31);
    }

    #[test]
    fn broken_finding_outweighs_held_ones_and_keeps_its_first_line() {
        let findings = Findings::new();
        assert_eq!(findings.of(Assertion::ReadsBack), None);
        findings.hold(Assertion::ReadsBack, 3);
        findings.hold(Assertion::ReadsBack, 4);
        assert_eq!(findings.of(Assertion::ReadsBack), Some(Finding::Held(7)));
        findings.refute(Assertion::ReadsBack, 12);
        findings.refute(Assertion::ReadsBack, 99);
        findings.hold(Assertion::ReadsBack, 1);
        assert_eq!(findings.of(Assertion::ReadsBack), Some(Finding::Broken(12)));
        assert_eq!(findings.of(Assertion::NothingAfterTheEnd), None);
    }
}
