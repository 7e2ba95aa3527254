//! Scheduling: carrying out what a policy decides.
//!
//! The one place with threads and time between a pure [`crate::policy`] and the vCPU threads. A [`dispatcher::Dispatcher`] asks the policy
//! when something happens, has the [`crate::policy::schedule`] check what it says, and hands the state of things to a
//! [`mechanism`], which makes it so. Two mechanisms do:
//!
//! | mechanism | how | preemption | needs |
//! |---|---|---|---|
//! | `class` | pinned threads of the FIFO class; the chosen one is put before the others | by the kernel, at any instruction | `CAP_SYS_NICE` or `RLIMIT_RTPRIO` |
//! | `park` | a signal takes a thread out of the guest, and it waits until it is released | at the entry to the kernel | nothing |
//!
//! With `class` a driver thread times the turns; with `park` each vCPU thread times its own by a timer, and the
//! driver only sees to CPUs on which nobody runs. Neither nice, nor slices, nor weights sched: the fair class obeys at its next
//! tick, or not at all.
//!
//! What was planned and what happened are both kept: each decision with its moments ([`log`]), and perf's own record of who had
//! which CPU. What share of the time they agree, [`fidelity`] says.

pub mod choice;
mod class;
pub mod cpu_hog;
pub mod dispatcher;
mod driver;
pub mod fidelity;
mod guests;
pub mod log;
pub mod mechanism;
mod park;
mod recorder;
mod vcpu_threads;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::guest::{GuestScheduler, ReportView};
use crate::policy::catalogue::PolicyChoice;
use crate::policy::parameters::ParameterError;
use crate::policy::{Needs, Ns};
use dispatcher::{DeskOfGuest, Dispatcher, End};
use driver::Driver;
use fidelity::{OnCpu, on_cpu};
use host::clock;
use host::cpus::Cpus;
use host::perf::Switch;
use host::thread::{Class, set_own_class};
use log::Log;
use mechanism::{MechanismChoice, MechanismKind};
use recorder::Recorder;
pub use recorder::{LockEpisode, Sample};
use steal_time::publisher::PublisherKind;
use vcpu_threads::VcpuThreads;
use vmm::guest_clock::GuestClock;
use vmm::vcpu::EventSender;
use vmm::vcpu::control::VcpuHandle;

/// The main thread's class while it takes the vCPU threads over, and for as long as they are of a real-time class: or it would
/// not hear of a guest's end.
const MAIN: Class = Class::Fifo(30);

/// The calling thread comes before vCPU threads, where that is allowed, until this is dropped. Threads that it starts meanwhile
/// inherit that.
#[derive(Debug)]
pub struct Precedence(());

impl Precedence {
    /// Takes it.
    pub fn take() -> Self {
        // Where that is refused the fair class's own share of each second is what is left.
        let _ = set_own_class(MAIN);
        Self(())
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        let _ = set_own_class(Class::Fair);
    }
}

/// How guests are to be steered.
#[derive(Clone, Debug)]
pub struct SchedConfig {
    /// By which policy.
    pub policy: PolicyChoice,
    /// By which mechanism.
    pub mechanism: MechanismChoice,
    /// What the policy draws its randomness from.
    pub seed: u64,
    /// A vCPU that was not let run for so long ends the run.
    pub starvation: Duration,
    /// Whether what took long in the guest is collected.
    pub traces: bool,
}

impl SchedConfig {
    /// What the policy needs to be told.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn needs(&self) -> Result<Needs, ParameterError> {
        self.policy.make(self.seed).map(|policy| policy.needs())
    }
}

/// The words that have our payload tell what a policy wants to know.
pub fn words(needs: Needs, traces: bool) -> String {
    let asks = [
        (needs.guest_hints, "hints=on".to_owned()),
        (needs.doorbell, "doorbell=on".to_owned()),
        (traces, "trace=on".to_owned()),
        (needs.slice_left, format!("slice_margin_ns={MARGIN_NS}")),
    ];
    asks.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, word)| word).collect::<Vec<_>>().join(" ")
}

/// What must be left of a turn for a lock to be taken (ns), where a guest is told.
const MARGIN_NS: u32 = 100_000;

/// Scheduling cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SchedError {
    /// The policy.
    #[error("Cannot have the policy: {0}")]
    Policy(#[from] ParameterError),
    /// The mechanism that was asked for.
    #[error("Cannot steer by {kind}: {why} (try --mechanism {other})")]
    Mechanism {
        /// Which.
        kind: MechanismKind,
        /// Why not.
        why: String,
        /// What would do.
        other: MechanismKind,
    },
    /// No mechanism at all.
    #[error("Cannot take the vCPU threads over")]
    TakeOver(#[source] io::Error),
    /// No thread.
    #[error("Cannot start the driver thread")]
    Thread(#[source] io::Error),
}

/// A guest that is to be steered.
#[derive(Debug)]
pub struct ScheduledGuest {
    /// Where its vCPU threads sit, in order.
    pub handles: Vec<Arc<VcpuHandle>>,
    /// Our payload's report; `None` for a foreign one.
    pub report: Option<ReportView>,
    /// Its clock.
    pub clock: Option<GuestClock>,
    /// Its doorbell, where it has one.
    pub bell: Option<EventFd>,
    /// Who is told when steering ends by itself.
    pub event_sender: EventSender,
}

/// Guests under a policy.
#[derive(Debug)]
pub struct Scheduling {
    dispatcher: Arc<Dispatcher>,
    driver: Driver,
    recorder: Recorder,
    handles: Vec<Arc<VcpuHandle>>,
    kind: MechanismKind,
    why: String,
    policy: String,
    seed: u64,
    needs: Needs,
    cpus: Vec<usize>,
    vcpus: Vec<usize>,
    began_ns: Ns,
}

/// What is left of it: what was planned, and what happened.
#[derive(Debug)]
pub struct SchedOutcome {
    /// The policy, as it was asked for.
    pub policy: String,
    /// What it drew its randomness from.
    pub seed: u64,
    /// What it wanted to be told.
    pub needs: Needs,
    /// The mechanism.
    pub mechanism: MechanismKind,
    /// Why this one.
    pub why: String,
    /// How the driver thread was scheduled.
    pub driver: &'static str,
    /// When it began (ns of the monotonic clock).
    pub began_ns: Ns,
    /// When it was over.
    pub ended_ns: Ns,
    /// The host's numbers of the CPUs.
    pub cpus: Vec<usize>,
    /// The guests' vCPUs.
    pub vcpus: Vec<usize>,
    /// Why it ended by itself, if it did.
    pub end: Option<End>,
    /// What was decided.
    pub log: Log,
    /// What happened to each vCPU thread; `None` where the host does not tell.
    pub switches: Option<Vec<Vec<Switch>>>,
    /// When each vCPU thread ended; `None` of one that has not.
    pub left: Vec<Option<Ns>>,
    /// Switches that found no room.
    pub lost_switches: u64,
    /// What took long in the guests.
    pub episodes: Vec<LockEpisode>,
    /// Episodes that nobody read in time.
    pub lost_episodes: u64,
    /// How many locks each guest took, over time.
    pub samples: Vec<Sample>,
}

impl SchedOutcome {
    /// The times for which each vCPU's thread had a CPU; `None` where the host does not tell.
    pub fn on_cpu(&self) -> Option<Vec<Vec<OnCpu>>> {
        // A thread that ends is on record nowhere but here.
        let ends = self.left.iter().map(|left| left.unwrap_or(self.ended_ns).min(self.ended_ns));
        let switches = self.switches.as_ref()?;
        Some(switches.iter().zip(ends).map(|(switches, end)| on_cpu(switches, self.began_ns, end)).collect())
    }
}

impl Scheduling {
    /// Begins to schedule `guests` on `cpus`. Their vCPU threads have attached. Before the first decision `attach` is called for
    /// each guest with its scheduler.
    ///
    /// # Errors
    /// [`SchedError`]; nothing is steered then.
    pub fn start(
        config: &SchedConfig,
        guests: Vec<ScheduledGuest>,
        publisher: PublisherKind,
        cpus: &Cpus,
        attach: impl Fn(usize, Arc<dyn GuestScheduler>),
    ) -> Result<Self, SchedError> {
        let policy = config.policy.make(config.seed)?;
        let needs = policy.needs();
        let vcpus: Vec<usize> = guests.iter().map(|guest| guest.handles.len()).collect();
        let handles: Vec<_> = guests.iter().flat_map(|guest| guest.handles.iter().cloned()).collect();
        let vcpu_threads = VcpuThreads::new(handles.clone(), cpus.iter().collect());
        let chosen = choice::choose(config.mechanism, publisher, vcpu_threads)?;
        let (kind, why) = (chosen.mechanism.kind(), chosen.why);
        let recorder = Recorder::start(&handles, &guests, config.traces, kind).map_err(SchedError::Thread)?;
        let bells =
            guests.iter().map(|guest| guest.bell.as_ref().and_then(|bell| bell.try_clone().ok())).collect();
        let began_ns = clock::monotonic_ns();
        let dispatcher = Dispatcher::new(policy, chosen.mechanism, guests, cpus.count(), config.starvation);
        let dispatcher = Arc::new(dispatcher);
        let times_slices = kind == MechanismKind::Deschedule;
        for guest in 0..vcpus.len() {
            attach(guest, Arc::new(DeskOfGuest { dispatcher: Arc::clone(&dispatcher), guest, times_slices }));
        }
        let driver = Driver::start(Arc::clone(&dispatcher), bells, kind).map_err(SchedError::TakeOver)?;
        Ok(Self {
            dispatcher,
            driver,
            recorder,
            handles,
            kind,
            why,
            policy: config.policy.to_string(),
            seed: config.seed,
            needs,
            cpus: cpus.iter().collect(),
            vcpus,
            began_ns,
        })
    }

    /// The mechanism.
    pub fn mechanism(&self) -> MechanismKind {
        self.kind
    }

    /// Lets all go on as the host likes. What was recorded so far is kept.
    pub fn release_all(&self) {
        self.dispatcher.finish(None);
    }

    /// Ends it, and gives what is left. The vCPU threads may have gone home.
    pub fn finish(self) -> SchedOutcome {
        self.release_all();
        let driver = self.driver.finish();
        let (ended_ns, end, log) = self.dispatcher.take();
        let facts = self.recorder.finish();
        SchedOutcome {
            policy: self.policy,
            seed: self.seed,
            needs: self.needs,
            mechanism: self.kind,
            why: self.why,
            driver,
            began_ns: self.began_ns,
            ended_ns,
            cpus: self.cpus,
            vcpus: self.vcpus,
            end,
            log,
            switches: facts.switches,
            left: self.handles.iter().map(|handle| handle.left_ns()).collect(),
            lost_switches: facts.lost_switches,
            episodes: facts.episodes,
            lost_episodes: facts.lost_episodes,
            samples: facts.samples,
        }
    }
}
