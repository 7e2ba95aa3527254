//! Scheduling policies: which vCPU runs on which CPU, and until when.
//!
//! A [`Policy`] is a state machine. It receives an [`Event`] and the [`SchedState`], and returns
//! [`Decision`]s. It has no clock, thread or file, and its randomness is seeded, so equal events in
//! equal states yield equal decisions. Live runs and dry runs ([`dry_run`]) use the same code.
//!
//! [`Schedule`](schedule::Schedule) validates decisions and keeps the accepted ones.
//! [`crate::sched`] applies them to vCPU threads.
//!
//! Start with [`round_robin`]. Policies that differ from it in one point wrap it. `README.md` in
//! this folder is a tutorial for a policy of your own.
//!
//! | policy | rule | source |
//! |---|---|---|
//! | `host` | the host's scheduler decides | Linux `kernel/sched/fair.c` |
//! | `rr` | round robin on each CPU | textbook |
//! | `gang` | all vCPUs of a guest run together, or none | Ousterhout, ICDCS 1982 |
//! | `relaxed` | host, with a bound on the skew between siblings | `VMware` ESX, 2008 |
//! | `balance` | as `host`, with siblings on distinct CPUs | Sukwong and Kim, `EuroSys` 2011 |
//! | `deferral` | round robin; a lock holder is preempted later | Uhlig, VM 2004; Kashyap, ATC 2018 |
//! | `slice-left` | round robin; the guest knows when its slice ends | Teabe, `EuroSys` 2017 |
//! | `yield` | round robin with directed yield | KVM `kvm_vcpu_on_spin`; lkml 2025 |
//! | `boost` | round robin; a vCPU that hints is boosted | Pillai, lkml 2023 |
//! | `micro` | round robin, with micro-slices on some CPUs | Ahn, MICRO 2014, `EuroSys` 2018 |
//! | `throttle` | host, with a CPU quota in each period | Linux `sched-bwc.rst` |
//! | `credit` | vCPUs with credit left go first | Xen credit scheduler |
//! | `rtds` | earliest deadline first, with a budget in each period | Xen RTDS |
//! | `adversary` | round robin that preempts at the worst moment | this repository |
//! | `replay` | the schedule of a recorded trace | this repository |
//! | `folding` | host, on fewer vCPUs while steal is high | steal governor, lkml 2026 |

pub mod adversary;
pub mod boost;
pub mod catalogue;
pub mod credit;
pub mod deferral;
pub mod directed;
pub mod dry_run;
pub mod folding;
pub mod gang;
pub mod host;
pub mod micro;
pub mod parameters;
pub mod relaxed;
pub mod replay;
pub mod round_robin;
pub mod rtds;
mod run_queues;
pub mod schedule;
pub mod slice_left;
mod state;
#[cfg(test)]
mod tests;
pub mod throttle;
pub mod trace_file;

use std::fmt;

pub use run_queues::RunQueues;
pub use state::{Assignment, CpuView, GuestHints, SchedState, VcpuView};

/// Index of a vCPU among the vCPUs of all guests: those of guest 0 first, then those of guest 1,
/// and so on.
pub type Vcpu = usize;

/// Index of a CPU among the CPUs that a policy schedules. It is not the host's CPU number.
pub type Cpu = usize;

/// Nanoseconds: a duration, or a timestamp of the host's `CLOCK_MONOTONIC`.
pub type Ns = u64;

/// A scheduling policy: a state machine from events to decisions.
pub trait Policy: fmt::Debug + Send {
    /// The inputs that this policy needs. Called once, before the first event.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Handles `event`, and pushes decisions to `out`. They apply together; an invalid decision
    /// refuses all of them.
    fn decide(&mut self, event: Event, state: &SchedState, out: &mut Vec<Decision>);
}

/// Inputs that a policy needs from the guest or the host. Unrequested inputs cost nothing.
#[expect(clippy::struct_excessive_bools, reason = "five independent inputs")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Needs {
    /// The lock state and hint of each vCPU, in [`GuestHints`].
    pub guest_hints: bool,
    /// [`Event::Halted`], [`Event::Woke`] and [`Event::YieldTo`] as they happen: the guest rings a
    /// doorbell.
    pub doorbell: bool,
    /// The vCPU that each waiter waits for, in [`Event::YieldTo`].
    pub yield_targets: bool,
    /// The guest reads when the slice of each of its vCPUs ends.
    pub slice_left: bool,
    /// [`VcpuView::ran`], [`VcpuView::waited`] and [`VcpuView::is_asleep`], updated before each
    /// [`Event::Tick`] and [`Event::Alarm`].
    pub cpu_time: bool,
}

impl Needs {
    /// The inputs that `self` or `other` needs.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            guest_hints: self.guest_hints || other.guest_hints,
            doorbell: self.doorbell || other.doorbell,
            yield_targets: self.yield_targets || other.yield_targets,
            slice_left: self.slice_left || other.slice_left,
            cpu_time: self.cpu_time || other.cpu_time,
        }
    }
}

/// An event that a policy handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A vCPU thread exists. One event for each vCPU, in order, before [`Event::Begin`].
    Ready {
        /// The vCPU.
        vcpu: Vcpu,
    },
    /// Scheduling begins. The host schedules each CPU until the first decision for it.
    Begin,
    /// The slice on a CPU has ended, busy or idle.
    Tick {
        /// The CPU.
        cpu: Cpu,
        /// The planned end of the slice (ns). [`SchedState::now`] is slightly later.
        due: Ns,
    },
    /// A timer that [`Decision::Alarm`] set has expired.
    Alarm {
        /// The requested expiry (ns).
        due: Ns,
    },
    /// A vCPU is idle: it executed `HLT`.
    Halted {
        /// The vCPU.
        vcpu: Vcpu,
    },
    /// A sibling woke a halted vCPU.
    Woke {
        /// The woken vCPU.
        vcpu: Vcpu,
    },
    /// [`GuestHints::hint`] of a vCPU changed.
    Hint {
        /// The vCPU.
        vcpu: Vcpu,
    },
    /// A waiter asks for another vCPU to run, in its place if need be.
    YieldTo {
        /// The waiter.
        from: Vcpu,
        /// The vCPU that it waits for.
        to: Vcpu,
    },
    /// A preempted vCPU holds a lock that it acquired between the decision and the preemption.
    HolderPreempted {
        /// The lock holder.
        vcpu: Vcpu,
    },
    /// A vCPU thread has exited.
    Exit {
        /// The vCPU.
        vcpu: Vcpu,
    },
}

/// A decision of a policy. All times are timestamps (ns).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Runs only `vcpu` on `cpu` until `until`, when [`Event::Tick`] follows.
    Run {
        /// The CPU.
        cpu: Cpu,
        /// The vCPU.
        vcpu: Vcpu,
        /// End of the slice.
        until: Ns,
    },
    /// Runs no vCPU on `cpu` until `until`, when [`Event::Tick`] follows.
    Idle {
        /// The CPU.
        cpu: Cpu,
        /// End of the idle slice.
        until: Ns,
    },
    /// Runs `vcpu` on `cpu` until `until`, ahead of the current assignment, which then gets the
    /// rest of its slice. A boost of the vCPU that already runs there extends its slice if it ends
    /// earlier.
    Boost {
        /// The CPU.
        cpu: Cpu,
        /// The boosted vCPU.
        vcpu: Vcpu,
        /// End of the boost.
        until: Ns,
    },
    /// Keeps `vcpu` off every CPU until [`Decision::Unthrottle`], also where the host schedules.
    Throttle {
        /// The vCPU.
        vcpu: Vcpu,
    },
    /// Makes a throttled vCPU eligible to run again.
    Unthrottle {
        /// The vCPU.
        vcpu: Vcpu,
    },
    /// Makes `cpu` the home of `vcpu`.
    Migrate {
        /// The vCPU.
        vcpu: Vcpu,
        /// Its new home.
        cpu: Cpu,
    },
    /// Sets attributes that the host's fair scheduler applies to `vcpu` on CPUs that it schedules.
    Tune {
        /// The vCPU.
        vcpu: Vcpu,
        /// Nice value, as in nice(2).
        nice: i8,
        /// Requested slice (ns); 0 selects the host's default.
        slice: Ns,
    },
    /// Sets a one-shot timer, which delivers [`Event::Alarm`].
    Alarm {
        /// The moment of expiry (ns).
        at: Ns,
    },
}
