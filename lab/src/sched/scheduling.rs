//! A running scheduler of guests.

use std::sync::Arc;

use super::choice;
use super::config::SchedConfig;
use super::dispatcher::{Dispatcher, GuestDispatcher};
use super::driver::Driver;
use super::hints::ScheduledGuest;
use super::mechanism::MechanismKind;
use super::outcome::SchedOutcome;
use super::recorder::Recorder;
use super::vcpu_threads::VcpuThreads;
use crate::guest::{GuestScheduler, RunError};
use crate::policy::{Needs, Ns};
use host::clock;
use host::cpus::Cpus;
use host::helper;
use host::thread::{Class, set_own_class};
use steal_time::publisher::PublisherKind;
use vmm::vcpu::control::VcpuHandle;

/// Class of the command's thread and of helpers while real-time vCPU threads run. Otherwise they
/// would not get a CPU to handle the end of a guest or of the process.
const MAIN: Class = Class::Fifo(30);

/// Raises the calling thread and the helpers ([`host::helper`]) above the vCPU threads, if the host
/// allows it, until this is dropped.
///
/// Threads that the calling thread starts meanwhile inherit the class.
#[derive(Debug)]
pub struct PriorityBoost(());

impl PriorityBoost {
    /// Raises the threads.
    pub fn acquire() -> Self {
        // Without the privilege the thread keeps its share as a thread of the fair class.
        let _ = set_own_class(MAIN);
        helper::raise(MAIN);
        Self(())
    }
}

impl Drop for PriorityBoost {
    fn drop(&mut self) {
        let _ = set_own_class(Class::Fair);
        helper::lower();
    }
}

/// A running scheduler of guests.
#[derive(Debug)]
pub struct Scheduling {
    dispatcher: Arc<Dispatcher>,
    driver: Driver,
    recorder: Recorder,
    handles: Vec<Arc<VcpuHandle>>,
    mechanism: MechanismKind,
    mechanism_why: String,
    policy: String,
    seed: u64,
    needs: Needs,
    cpus: Vec<usize>,
    vcpus: Vec<usize>,
    began_ns: Ns,
}

impl Scheduling {
    /// Starts to schedule `guests` on `cpus`. Their vCPU threads have attached.
    ///
    /// Calls `attach` with the index and the scheduler of each guest before the first decision.
    ///
    /// # Errors
    /// [`RunError`] if the policy is invalid, the host refuses the mechanism, or it cannot create a
    /// thread. Nothing is scheduled then.
    pub fn start(
        config: &SchedConfig,
        guests: Vec<ScheduledGuest>,
        publisher: PublisherKind,
        cpus: &Cpus,
        attach: impl Fn(usize, Arc<dyn GuestScheduler>),
    ) -> Result<Self, RunError> {
        let policy = config.policy.make(config.seed)?;
        let needs = policy.needs();
        let vcpus: Vec<usize> = guests.iter().map(|guest| guest.handles.len()).collect();
        let handles: Vec<_> = guests.iter().flat_map(|guest| guest.handles.iter().cloned()).collect();
        let vcpu_threads = VcpuThreads::new(handles.clone(), cpus.iter().collect());
        let chosen = choice::choose(config.mechanism, publisher, vcpu_threads)?;
        let kind = chosen.mechanism.kind();
        let recorder =
            Recorder::start(&handles, &guests, config.traces, kind).map_err(RunError::Scheduler)?;
        let doorbells = guests.iter().map(|guest| guest.doorbell.as_ref()?.try_clone().ok()).collect();
        let began_ns = clock::monotonic_ns();
        let dispatcher = Dispatcher::new(policy, chosen.mechanism, guests, cpus.count(), config.starvation)?;
        let dispatcher = Arc::new(dispatcher);
        let times_slices = kind == MechanismKind::Deschedule;
        for guest in 0..vcpus.len() {
            attach(
                guest,
                Arc::new(GuestDispatcher { dispatcher: Arc::clone(&dispatcher), guest, times_slices }),
            );
        }
        let driver = Driver::start(Arc::clone(&dispatcher), doorbells, kind).map_err(RunError::Scheduler)?;
        Ok(Self {
            dispatcher,
            driver,
            recorder,
            handles,
            mechanism: kind,
            mechanism_why: chosen.why,
            policy: config.policy.to_string(),
            seed: config.seed,
            needs,
            cpus: cpus.iter().collect(),
            vcpus,
            began_ns,
        })
    }

    /// Returns the mechanism.
    pub fn mechanism(&self) -> MechanismKind {
        self.mechanism
    }

    /// Stops scheduling, and gives all vCPU threads back to the host's scheduler. Keeps the
    /// records.
    pub fn release_all(&self) {
        self.dispatcher.finish(None);
    }

    /// Stops scheduling, and returns the records. The vCPU threads may have exited.
    pub fn finish(self) -> SchedOutcome {
        self.release_all();
        let driver = self.driver.finish();
        let decided = self.dispatcher.take();
        let recorded = self.recorder.finish();
        SchedOutcome {
            policy: self.policy,
            seed: self.seed,
            needs: self.needs,
            mechanism: self.mechanism,
            mechanism_why: self.mechanism_why,
            driver,
            began_ns: self.began_ns,
            ended_ns: decided.ended_ns,
            cpus: self.cpus,
            vcpus: self.vcpus,
            stop_reason: decided.stop_reason,
            log: decided.log,
            switches: recorded.switches,
            left: self.handles.iter().map(|handle| handle.left_ns()).collect(),
            lost_switches: recorded.lost_switches,
            episodes: recorded.episodes,
            lost_episodes: recorded.lost_episodes,
            samples: recorded.samples,
        }
    }
}
