//! Conformance: what a guest may rely on, as assertions that can be tried, and where our guest leaves what it found.
//!
//! There are 31 of them. Most can be judged from inside, by a guest that tries the thing; some only from outside, by a
//! monitor that sees the vCPUs' threads; a few need both. A judgement stands on evidence: how often the thing was seen.
//! Where it was never seen there is no judgement, which is not the same as one in favour.
//!
//! The payload judges in scenes, [`crate::words::Scene`], each a run of its own. Where several scenes judge the same
//! assertion, one that finds it broken outweighs all others.
//!
//! Source: the KVM ABI as in [`crate::steal_time`], and what KVM does (Linux `arch/x86/kvm/x86.c`). Where we mean
//! something else on purpose, the statement is ours.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Makes the enum of the assertions.
macro_rules! assertions {
    ($($number:literal $variant:ident = $name:literal: $statement:literal,)+) => {
        /// What a guest may rely on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Assertion {
            $(#[doc = $statement] $variant = $number,)+
        }

        impl Assertion {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its short name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it says.
            pub const fn statement(self) -> &'static str {
                match self { $(Self::$variant => $statement,)+ }
            }
        }
    };
}

assertions! {
    1 FeatureOffered = "feature-offered":
        "CPUID shows KVM's signature, and the steal-time bit exactly when the feature is on",
    2 AbsentFaults = "absent-faults":
        "With the feature off, reading and writing the MSR raise #GP",
    3 StartsAtZero = "starts-at-zero":
        "The MSR reads 0 before anything was written",
    4 ReadsBack = "reads-back":
        "A written value reads back to the letter",
    5 ReservedBitsFault = "reserved-bits-fault":
        "Each reserved bit, and all of them, with and without bit 0, raise #GP; value and publication stay",
    6 OutsideRamIsSilent = "outside-ram-is-silent":
        "An address outside RAM is taken and reads back; nothing is written, nothing faults",
    7 OffStops = "off-stops":
        "After a write with bit 0 clear no byte of the record changes again",
    8 MoveLeavesTheOld = "move-leaves-the-old":
        "After a move the new record is written, and the old one never again",
    9 Isolated = "isolated":
        "A vCPU's publication writes nothing outside its own 64 bytes",
    10 InitClears = "init-clears":
        "INIT clears the MSR and stops publication; so does a reset, after which a guest begins anew",
    11 OneWriter = "one-writer":
        "KVM's own copy of the MSR stays 0 while the monitor emulates it",
    12 OnlyTheWords = "only-the-words":
        "Only bytes 0 to 16 are ever written; flags stay 0, padding stays as the guest set it",
    13 VersionEven = "version-even":
        "A vCPU finds its own version even; another's turns even again within a reader's patience",
    14 VersionGrows = "version-grows":
        "The version moves on with each update, the first before the guest's next instruction, and wraps around",
    15 OddIsMended = "odd-is-mended":
        "A version that the guest left odd is even after the first update",
    16 NeverTorn = "never-torn":
        "A reader on another vCPU that keeps to the protocol never sees steal go down",
    17 ByteAlone = "byte-alone":
        "Setting the byte changes neither version nor steal",
    18 StealNeverBack = "steal-never-back":
        "Steal never goes back: not when publication stops and goes on, nor when the vCPU gets another thread",
    19 StealIsRunDelay = "steal-is-run-delay":
        "Steal is the run delay of the vCPU's thread, no less and no more",
    20 HaltIsNoSteal = "halt-is-no-steal":
        "Time halted adds nothing to steal",
    21 SharedCpuAddsUp = "shared-cpu-adds-up":
        "Of two vCPUs that spin on one CPU each gains what the other runs: steal and run time are wall time",
    22 MonitorAddsNothing = "monitor-adds-nothing":
        "Exits to the monitor and pauses of the machine add nothing to steal",
    23 OwnByteClear = "own-byte-clear":
        "A vCPU never finds its own byte set",
    24 PreemptedIsSeen = "preempted-is-seen":
        "While the host has a vCPU off its CPU others see its byte set, and not while it goes on",
    25 BlockedIsNotPreempted = "blocked-is-not-preempted":
        "The byte of a vCPU that halts, is in the monitor, or is paused stays 0 (1 if it is preempted there: that is true)",
    26 ByteIsOneOrZero = "byte-is-one-or-zero":
        "The host sets exactly 1 and clears to 0; a bit that the guest adds meanwhile is gone when the vCPU runs",
    27 WholeByteCounts = "whole-byte-counts":
        "The check takes any value but 0 for preempted",
    28 CheckKeepsRegisters = "check-keeps-registers":
        "For every vCPU and value the check agrees with the byte, and changes nothing but rax and flags",
    29 SurvivesRestore = "survives-restore":
        "Saved and restored, the MSR is as it was, steal goes on from no less, and the byte is 0 at first",
    30 PausedIsUntouched = "paused-is-untouched":
        "Nothing is written while the machine is paused; pages that KVM's dirty log misses are named",
    31 NothingAfterTheEnd = "nothing-after-the-end":
        "Once the machine has ended, nothing is written any more",
}

impl Assertion {
    /// Its number, from 1.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What came of an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It held, each of so many times that it was tried.
    Held(u64),
    /// It was broken: the line in the payload's source that found it so.
    Broken(u32),
}

/// What the payload found, by assertion. Any vCPU may write.
#[derive(Debug)]
#[repr(C)]
pub struct Findings([Cell; Assertion::ALL.len()]);

/// What was found of one assertion.
#[derive(Debug)]
#[repr(C)]
struct Cell {
    /// How often it was seen to hold.
    held: AtomicU64,
    /// The line that first found it broken; 0 if none did.
    broken_at: AtomicU32,
}

impl Findings {
    /// Nothing has been tried.
    pub const fn new() -> Self {
        Self([const { Cell { held: AtomicU64::new(0), broken_at: AtomicU32::new(0) } }; Assertion::ALL.len()])
    }

    /// Notes that `assertion` held `times` times.
    pub fn hold(&self, assertion: Assertion, times: u64) {
        if let Some(cell) = self.cell(assertion) {
            cell.held.fetch_add(times, Ordering::Relaxed);
        }
    }

    /// Notes that `assertion` was found broken at `line`; the first such line stays.
    pub fn refute(&self, assertion: Assertion, line: u32) {
        if let Some(cell) = self.cell(assertion) {
            let _ = cell.broken_at.compare_exchange(0, line.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What was found of `assertion`; `None` if it was never tried.
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
    fn finding_that_something_is_broken_outweighs_and_stays() {
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
