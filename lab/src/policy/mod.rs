//! Policies: who is to run, on which CPU, until when.
//!
//! A [`Policy`] is a pure function with a memory: what happened goes in ([`Event`]), with the state of things as far as the host
//! knows them ([`Scene`]); what is to be done comes out ([`Decision`]). It has no clock, no thread and no file, and its randomness
//! is seeded; the same events in the same scenes give the same decisions, live or simulated. Who carries decisions out is
//! [`crate::steer`], with threads and time; what was decided, and whether it makes sense, is kept on the [`board`].
//!
//! To read one, begin with [`round_robin`]. Those that differ from it in one point hold one inside.
//!
//! | policy | who runs | source |
//! |---|---|---|
//! | `host` | whom the host's scheduler likes | Linux `kernel/sched/fair.c` |
//! | `rr` | the next on each CPU, after a quantum | the textbook |
//! | `random` | the same, after a random time | ours |
//! | `gang` | all vCPUs of a guest, or none | Ousterhout 1982; Sukwong and Kim, `EuroSys` 2011 |
//! | `relaxed` | as the host likes, but no vCPU may lead its siblings by much | VMware's relaxed co-scheduling |
//! | `balance` | as the host likes, siblings on distinct CPUs | Sukwong and Kim, `EuroSys` 2011 |
//! | `deferral` | round robin, but who holds a lock is let finish | Uhlig et al., VM 2004; Kashyap et al., ATC 2018 |
//! | `slice-left` | round robin; the guest is told how long it has | Teabe et al., `EuroSys` 2017 |
//! | `yield` | round robin, and for a moment whom a waiter names | KVM's directed yield; the vCPU debooster, lkml 2025 |
//! | `boost` | round robin, but whoever hints goes on or comes first | Pillai, lkml 2023 |
//! | `micro` | round robin, on some CPUs in very short turns | Ahn et al., MICRO 2014, `EuroSys` 2018 |
//! | `throttle` | as the host likes, until the quota of a period is used | Linux `Documentation/scheduler/sched-bwc.rst` |
//! | `credit` | who has credit left | Xen's credit scheduler |
//! | `rtds` | whose deadline is first and who has budget left | Xen's RTDS |
//! | `adversary` | round robin, but the worst moment is looked for | ours |
//! | `replay` | who ran in a trace | ours |
//! | `folding` | as the host likes, on fewer vCPUs while steal is high | the steal governor, lkml 2026 |

pub mod adversary;
pub mod board;
pub mod boost;
pub mod catalogue;
pub mod credit;
pub mod deferral;
pub mod directed;
pub mod folding;
pub mod gang;
pub mod host;
mod lines;
pub mod micro;
pub mod parameters;
pub mod random;
pub mod rehearsal;
pub mod relaxed;
pub mod replay;
pub mod round_robin;
pub mod rtds;
pub mod slice_left;
#[cfg(test)]
mod tests;
pub mod throttle;

use std::fmt;

pub use lines::Lines;

/// A vCPU, as policies number them: those of all guests, one guest after the other.
pub type Vcpu = usize;

/// A host CPU, as policies number them: from 0, whichever the host's numbers are.
pub type Cpu = usize;

/// Nanoseconds, of the host's monotonic clock where they are a moment.
pub type Ns = u64;

/// A way to choose who runs. See the module.
pub trait Policy: fmt::Debug + Send {
    /// What it needs to be told. Asked once.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// Something happened; what is to be done is pushed to `out`. All of it is done at once, or, where it makes no sense, none.
    fn decide(&mut self, event: Event, scene: &Scene, out: &mut Vec<Decision>);
}

/// What a policy needs to be told, by the guest or of the host. What nobody asks for is not paid for.
#[expect(clippy::struct_excessive_bools, reason = "five independent wishes")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Wants {
    /// Which vCPUs hold or want a lock, and what they hint: [`Told`].
    pub told: bool,
    /// [`Event::Halted`], [`Event::Woke`] and [`Event::YieldTo`], when they happen.
    pub rings: bool,
    /// Waiters are to name whom they wait for, for [`Event::YieldTo`].
    pub yields: bool,
    /// The guest is told when each vCPU's turn ends.
    pub slice_left: bool,
    /// [`VcpuView::ran`], [`VcpuView::waited`] and [`VcpuView::is_asleep`], at each [`Event::Alarm`].
    pub accounts: bool,
}

impl Wants {
    /// What either needs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            told: self.told || other.told,
            rings: self.rings || other.rings,
            yields: self.yields || other.yields,
            slice_left: self.slice_left || other.slice_left,
            accounts: self.accounts || other.accounts,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A vCPU is there. One for each, in order, before [`Event::Begin`].
    Ready {
        /// Which.
        vcpu: Vcpu,
    },
    /// All are there; each CPU is the host's to give until a decision is made for it.
    Begin,
    /// The time of what was decided for a CPU is over.
    Tick {
        /// Which CPU.
        cpu: Cpu,
        /// When it was to be over: [`Scene::now`] is a little later.
        due: Ns,
    },
    /// A moment that the policy asked for.
    Alarm {
        /// Which moment.
        due: Ns,
    },
    /// A vCPU has nothing to do.
    Halted {
        /// Which.
        vcpu: Vcpu,
    },
    /// One that had halted was woken by another.
    Woke {
        /// Which.
        vcpu: Vcpu,
    },
    /// A vCPU hints at something, or does no more: [`Told::hint`].
    Hint {
        /// Which.
        vcpu: Vcpu,
    },
    /// A waiter wants another vCPU to run, in its place if need be.
    YieldTo {
        /// The waiter.
        from: Vcpu,
        /// The other one.
        to: Vcpu,
    },
    /// A vCPU lost its CPU by decision, and says that it holds a lock: between the look and the act it took one.
    Caught {
        /// Which.
        vcpu: Vcpu,
    },
    /// A vCPU is gone for good.
    Exit {
        /// Which.
        vcpu: Vcpu,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// This vCPU and no other runs on this CPU, until then; then there is a tick.
    Run {
        /// Where.
        cpu: Cpu,
        /// Who.
        vcpu: Vcpu,
        /// Until when.
        until: Ns,
    },
    /// No vCPU runs on this CPU, until then; then there is a tick.
    Idle {
        /// Where.
        cpu: Cpu,
        /// Until when.
        until: Ns,
    },
    /// This vCPU runs on this CPU until then, before whoever was to; that one then has what is left of its time. One that is
    /// boosted where it runs goes on until then at least.
    Boost {
        /// Where.
        cpu: Cpu,
        /// Who.
        vcpu: Vcpu,
        /// Until when.
        until: Ns,
    },
    /// This vCPU does not run until it is resumed, whatever the host would do.
    Park {
        /// Who.
        vcpu: Vcpu,
    },
    /// This vCPU may run again.
    Resume {
        /// Who.
        vcpu: Vcpu,
    },
    /// This vCPU lives on this CPU from now on.
    Place {
        /// Who.
        vcpu: Vcpu,
        /// Where.
        cpu: Cpu,
    },
    /// How the host's scheduler is to treat this vCPU, where that one chooses.
    Tune {
        /// Who.
        vcpu: Vcpu,
        /// As nice(2).
        nice: i8,
        /// The slice asked for; 0 for the host's own.
        slice: Ns,
    },
    /// There is to be an alarm then.
    Alarm {
        /// When.
        at: Ns,
    },
}

/// The state of things, as far as the host knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// The moment at which the policy is asked.
    pub now: Ns,
    /// The CPUs.
    pub cpus: Vec<CpuView>,
    /// The vCPUs.
    pub vcpus: Vec<VcpuView>,
}

/// A CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuView {
    /// What was decided for it.
    pub plan: Plan,
    /// Until when.
    pub until: Ns,
}

/// What was decided for a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: the host chooses.
    #[default]
    Host,
    /// That no vCPU runs.
    Idle,
    /// That this one does.
    Runs(Vcpu),
}

/// A vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuView {
    /// Which guest's it is.
    pub guest: usize,
    /// Where it lives.
    pub home: Cpu,
    /// It must not run: [`Decision::Park`].
    pub is_parked: bool,
    /// It is gone for good.
    pub is_gone: bool,
    /// What the guest says of it; nothing, where nobody wants to know.
    pub told: Told,
    /// CPU time it had, where that is wanted.
    pub ran: Ns,
    /// Time that it wanted to run and could not, where that is wanted.
    pub waited: Ns,
    /// Its thread sleeps, where that is wanted: it has nothing to do, or must not.
    pub is_asleep: bool,
}

/// What the guest says of a vCPU. It may lie, and it may change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What it hints; 0 for nothing.
    pub hint: u8,
    /// How many locks it holds.
    pub holds: u32,
    /// Since when it has been waiting for one (cycles of the guest's clock).
    pub waits_since: Option<u64>,
    /// It has nothing to do, and nobody has woken it.
    pub is_halted: bool,
}

impl Scene {
    /// Who was decided to run on `cpu`.
    pub fn on(&self, cpu: Cpu) -> Option<Vcpu> {
        match self.cpus.get(cpu)?.plan {
            Plan::Runs(vcpu) => Some(vcpu),
            Plan::Host | Plan::Idle => None,
        }
    }

    /// The CPU on which `vcpu` was decided to run.
    pub fn cpu_of(&self, vcpu: Vcpu) -> Option<Cpu> {
        (0..self.cpus.len()).find(|cpu| self.on(*cpu) == Some(vcpu))
    }

    /// Whether `vcpu` may be run at all.
    pub fn may_run(&self, vcpu: Vcpu) -> bool {
        self.vcpus.get(vcpu).is_some_and(|vcpu| !vcpu.is_parked && !vcpu.is_gone)
    }

    /// Whether `vcpu` may be run on `cpu`: it does not run elsewhere.
    pub fn may_run_on(&self, cpu: Cpu, vcpu: Vcpu) -> bool {
        self.may_run(vcpu) && self.cpu_of(vcpu).is_none_or(|at| at == cpu)
    }

    /// What the guest says of `vcpu`.
    pub fn told(&self, vcpu: Vcpu) -> Told {
        self.vcpus.get(vcpu).map(|vcpu| vcpu.told).unwrap_or_default()
    }

    /// The vCPUs of `guest`.
    pub fn of_guest(&self, guest: usize) -> impl Iterator<Item = Vcpu> + '_ {
        self.vcpus.iter().enumerate().filter(move |(_, vcpu)| vcpu.guest == guest).map(|(vcpu, _)| vcpu)
    }

    /// How many guests there are.
    pub fn guests(&self) -> usize {
        self.vcpus.iter().map(|vcpu| vcpu.guest + 1).max().unwrap_or(0)
    }

    /// Who of `guest` holds a lock.
    pub fn holder(&self, guest: usize) -> Option<Vcpu> {
        self.of_guest(guest).find(|vcpu| self.told(*vcpu).holds > 0)
    }

    /// Who of `guest` has been waiting for a lock for longest: the next in line, where there is a line.
    pub fn next_in_line(&self, guest: usize) -> Option<Vcpu> {
        let since = |vcpu: &Vcpu| self.told(*vcpu).waits_since;
        self.of_guest(guest).filter(|vcpu| since(vcpu).is_some()).min_by_key(|vcpu| since(vcpu))
    }

    /// How many of `guest` wait for a lock.
    pub fn waiters(&self, guest: usize) -> usize {
        self.of_guest(guest).filter(|vcpu| self.told(*vcpu).waits_since.is_some()).count()
    }

    /// The first moment after now that lies a whole number of steps, one at least, after `due`. Whoever counts from what was
    /// due, not from now, keeps to a grid however late he is told.
    pub fn after(&self, due: Ns, step: Ns) -> Ns {
        let step = step.max(1);
        let behind = self.now.saturating_sub(due) / step;
        due.saturating_add(step.saturating_mul(behind + 1))
    }
}
