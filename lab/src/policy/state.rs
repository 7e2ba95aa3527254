//! The state that a policy decides on: assignments of CPUs, and what the host knows about vCPUs.

use super::{Cpu, Ns, Vcpu};

/// Snapshot of all CPUs and vCPUs, as far as the host knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedState {
    /// Time of the decision (ns).
    pub now: Ns,
    /// All CPUs, by [`Cpu`].
    pub cpus: Vec<CpuView>,
    /// All vCPUs, by [`Vcpu`].
    pub vcpus: Vec<VcpuView>,
}

/// State of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuView {
    /// The current assignment.
    pub assignment: Assignment,
    /// End of its slice (ns). Meaningless for [`Assignment::Host`].
    pub until: Ns,
}

/// What a policy assigned to a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assignment {
    /// No decision: the host's scheduler chooses among the vCPUs.
    #[default]
    Host,
    /// No vCPU runs.
    Idle,
    /// This vCPU runs.
    Vcpu(Vcpu),
}

impl Assignment {
    /// The assigned vCPU, if any.
    pub fn vcpu(self) -> Option<Vcpu> {
        match self {
            Self::Vcpu(vcpu) => Some(vcpu),
            Self::Host | Self::Idle => None,
        }
    }
}

/// State of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuView {
    /// Index of its guest.
    pub guest: usize,
    /// Its home CPU.
    pub home: Cpu,
    /// [`Decision::Throttle`](super::Decision::Throttle) is in effect.
    pub is_throttled: bool,
    /// Its thread has exited.
    pub is_gone: bool,
    /// Hints from the guest; default unless [`Needs::guest_hints`](super::Needs::guest_hints).
    pub hints: GuestHints,
    /// CPU time so far (ns); 0 unless [`Needs::cpu_time`](super::Needs::cpu_time).
    pub ran: Ns,
    /// Time so far that it was runnable but not running (ns), with the wait that lasts; 0 unless
    /// [`Needs::cpu_time`](super::Needs::cpu_time).
    ///
    /// It was descheduled or throttled, or waited in the run queue of its CPU. The wait of a vCPU
    /// that was halted at the last reading counts from the next reading on, and as a whole when it
    /// has ended.
    pub waited: Ns,
    /// Its thread is blocked in the guest: the vCPU is halted. False while it is descheduled or
    /// throttled, and unless [`Needs::cpu_time`](super::Needs::cpu_time).
    pub is_asleep: bool,
}

/// Snapshot of what the guest publishes about a vCPU. It may be wrong, and it may change at any
/// time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestHints {
    /// Urgency hint; 0 for none.
    pub hint: u8,
    /// Number of locks that it holds.
    pub locks_held: u32,
    /// Guest TSC at the start of its current wait for a lock.
    pub waiting_since_tsc: Option<u64>,
    /// It is halted, and no sibling has woken it.
    pub is_halted: bool,
}

impl SchedState {
    /// The vCPU assigned to `cpu`.
    pub fn on(&self, cpu: Cpu) -> Option<Vcpu> {
        self.cpus.get(cpu)?.assignment.vcpu()
    }

    /// The CPU to which `vcpu` is assigned.
    pub fn cpu_of(&self, vcpu: Vcpu) -> Option<Cpu> {
        (0..self.cpus.len()).find(|cpu| self.on(*cpu) == Some(vcpu))
    }

    /// Whether `vcpu` exists and is assigned to no CPU.
    pub fn is_unassigned(&self, vcpu: Vcpu) -> bool {
        self.vcpus.get(vcpu).is_some_and(|vcpu| !vcpu.is_gone) && self.cpu_of(vcpu).is_none()
    }

    /// Whether the host's scheduler chooses on `cpu`.
    pub fn is_host_scheduled(&self, cpu: Cpu) -> bool {
        self.cpus.get(cpu).is_none_or(|cpu| cpu.assignment == Assignment::Host)
    }

    /// Whether `vcpu` is eligible to run: it exists and is not throttled.
    pub fn may_run(&self, vcpu: Vcpu) -> bool {
        self.vcpus.get(vcpu).is_some_and(|vcpu| !vcpu.is_throttled && !vcpu.is_gone)
    }

    /// Whether `vcpu` is eligible to run on `cpu`: it is not assigned to another CPU.
    pub fn may_run_on(&self, cpu: Cpu, vcpu: Vcpu) -> bool {
        self.may_run(vcpu) && self.cpu_of(vcpu).is_none_or(|at| at == cpu)
    }

    /// Hints from the guest about `vcpu`.
    pub fn hints(&self, vcpu: Vcpu) -> GuestHints {
        self.vcpus.get(vcpu).map(|vcpu| vcpu.hints).unwrap_or_default()
    }

    /// The home CPU of `vcpu`.
    pub fn home_of(&self, vcpu: Vcpu) -> Cpu {
        self.vcpus.get(vcpu).map_or(0, |vcpu| vcpu.home)
    }

    /// End of the current slice on `cpu` (ns).
    pub fn slice_end(&self, cpu: Cpu) -> Ns {
        self.cpus.get(cpu).map_or(0, |cpu| cpu.until)
    }

    /// The vCPUs of `guest`, in order.
    pub fn of_guest(&self, guest: usize) -> impl Iterator<Item = Vcpu> + '_ {
        self.vcpus.iter().enumerate().filter(move |(_, vcpu)| vcpu.guest == guest).map(|(vcpu, _)| vcpu)
    }

    /// Number of guests.
    pub fn guests(&self) -> usize {
        self.vcpus.iter().map(|vcpu| vcpu.guest + 1).max().unwrap_or(0)
    }

    /// A vCPU of `guest` that holds a lock.
    pub fn holder(&self, guest: usize) -> Option<Vcpu> {
        self.of_guest(guest).find(|vcpu| self.hints(*vcpu).locks_held > 0)
    }

    /// The vCPU of `guest` that has waited longest for a lock: the next owner of a FIFO lock.
    pub fn longest_waiter(&self, guest: usize) -> Option<Vcpu> {
        let since = |vcpu: &Vcpu| self.hints(*vcpu).waiting_since_tsc;
        self.of_guest(guest).filter(|vcpu| since(vcpu).is_some()).min_by_key(|vcpu| since(vcpu))
    }

    /// Number of vCPUs of `guest` that wait for a lock.
    pub fn waiters(&self, guest: usize) -> usize {
        self.of_guest(guest).filter(|vcpu| self.hints(*vcpu).waiting_since_tsc.is_some()).count()
    }

    /// Forwards `due` by whole multiples of `interval` (at least one) to the first time after now,
    /// as `hrtimer_forward` does. Counting from `due` instead of from now keeps a fixed grid when
    /// events are late.
    pub fn forward(&self, due: Ns, interval: Ns) -> Ns {
        let interval = interval.max(1);
        let overruns = self.now.saturating_sub(due) / interval;
        due.saturating_add(interval.saturating_mul(overruns + 1))
    }
}
