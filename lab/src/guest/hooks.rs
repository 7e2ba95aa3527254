//! The lab's run hooks: milestones, descheduled intervals, fault injection, scheduling.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use protocol::payload::machine::{DOORBELL_PORT, MILESTONE_PORT};
use protocol::payload::report::Milestone;
use protocol::{MAX_VCPUS, VcpuId};

use super::intervals::Intervals;
use super::report_view::ReportView;
use crate::directed_yield::DirectedYield;
use crate::fault_injection::{self, FaultCounts, FaultInjector, Faults};
use crate::publisher;
use crate::window::{Ends, OwnEnds, OwnWindow, Snapshot, Window};
use host::cpus::Cpus;
use host::thread_times::ThreadTimes;
use host::{stdio, sync};
use steal_time::StealTimeError;
use steal_time::host_vm::HostVm;
use steal_time::publisher::{Publisher, Selection};
use vmm::hooks::{Descheduled, LoadedGuest, RunHooks, VcpuEvent};
use vmm::vcpu::control::{VcpuControl, VcpuHandle};

/// Time for the payload to close its window and to end on request. Its results are then written
/// within the time that the process has left ([`host::termination::GRACE`]).
const GRACE: Duration = Duration::from_millis(500);

/// Maximum number of milestones that are read from a guest, which may write the port without end.
const MAX_MILESTONES: u32 = 1 << 14;

/// A scheduler that decides which vCPUs of a guest run.
pub trait GuestScheduler: fmt::Debug + Send + Sync {
    /// The calling vCPU thread was kicked and is outside the guest. If its slice is over, this
    /// deschedules it.
    fn on_kick(&self, handle: &VcpuHandle);

    /// The guest is asked to end: all its vCPUs may run.
    fn release_all(&self);

    /// The guest ended; its vCPU threads are about to be joined.
    fn on_guest_end(&self);
}

/// The lab's hooks of one guest.
#[derive(Debug)]
pub(super) struct LabHooks {
    cpus: Cpus,
    faults: Option<Faults>,
    announces: bool,
    control: OnceLock<Arc<VcpuControl>>,
    report: OnceLock<ReportView>,
    injector: OnceLock<Arc<FaultInjector>>,
    scheduler: OnceLock<Arc<dyn GuestScheduler>>,
    directed_yield: DirectedYield,
    milestones: Mutex<Milestones>,
    vcpus: Vec<VcpuRecord>,
}

#[derive(Debug, Default)]
struct Milestones {
    count: u32,
    all_up: Option<Instant>,
    ends: Ends,
}

/// The records of one vCPU.
#[derive(Debug, Default)]
struct VcpuRecord {
    directed_yields: AtomicU64,
    descheduled: Mutex<Intervals>,
    window: Mutex<OwnEnds>,
}

impl LabHooks {
    pub(super) fn new(cpus: Cpus, faults: Option<Faults>, announces: bool, has_doorbell: bool) -> Self {
        Self {
            cpus,
            faults,
            announces,
            control: OnceLock::new(),
            report: OnceLock::new(),
            injector: OnceLock::new(),
            scheduler: OnceLock::new(),
            directed_yield: DirectedYield::new(has_doorbell),
            milestones: Mutex::default(),
            vcpus: (0..MAX_VCPUS).map(|_| VcpuRecord::default()).collect(),
        }
    }

    /// The payload's report; `None` for a payload of another project.
    pub(super) fn report(&self) -> Option<&ReportView> {
        self.report.get()
    }

    /// Attaches `scheduler`, which decides which vCPUs run. Disables directed yield.
    pub(super) fn attach_scheduler(&self, scheduler: Arc<dyn GuestScheduler>) {
        self.directed_yield.disable();
        for (vcpu, _) in self.control.get().map(|control| control.handles()).unwrap_or_default() {
            if let Some(record) = self.vcpus.get(vcpu.index()) {
                record.lock().allocate();
            }
        }
        // A guest has one scheduler for its whole life.
        let _ = self.scheduler.set(scheduler);
    }

    /// The intervals in which `vcpu` was descheduled, in order.
    pub(super) fn descheduled(&self, vcpu: VcpuId) -> Vec<Descheduled> {
        self.vcpus.get(vcpu.index()).map_or_else(Vec::new, |record| record.lock().all())
    }

    /// Number of doorbell writes of `vcpu` after which another vCPU ran in its place.
    pub(super) fn directed_yields(&self, vcpu: VcpuId) -> u64 {
        self.vcpus.get(vcpu.index()).map_or(0, |record| record.directed_yields.load(Ordering::Relaxed))
    }

    /// The faults injected for `vcpu`; `None` without fault injection.
    pub(super) fn fault_counts(&self, vcpu: VcpuId) -> Option<FaultCounts> {
        self.injector.get()?.counts(vcpu)
    }

    /// When all vCPUs were up.
    pub(super) fn all_up(&self) -> Option<Instant> {
        self.lock_milestones().all_up
    }

    /// What the host counted while the guest's window was open.
    pub(super) fn window(&self) -> Option<Window> {
        self.lock_milestones().ends.window()
    }

    /// The own window of `vcpu`; `None` if it did not find the window open, and then closed.
    pub(super) fn own_window(&self, vcpu: VcpuId) -> Option<OwnWindow> {
        sync::lock(&self.vcpus.get(vcpu.index())?.window).window()
    }

    /// Handles a milestone of `vcpu`, whose thread calls it. Takes the snapshot at once: the guest
    /// may end right after it.
    fn on_milestone(&self, vcpu: VcpuId, code: u8) {
        let at = Instant::now();
        let Some(milestone) = Milestone::from_code(code) else { return };
        let (Some(control), mut milestones) = (self.control.get(), self.lock_milestones()) else { return };
        if milestones.count == MAX_MILESTONES {
            return;
        }
        milestones.count += 1;
        match milestone {
            Milestone::AllUp => milestones.all_up = Some(at),
            Milestone::WindowOpens => {
                milestones.ends.opened.get_or_insert_with(|| Snapshot::take(control, &self.cpus));
            }
            Milestone::WindowCloses => {
                milestones.ends.closed.get_or_insert_with(|| Snapshot::take(control, &self.cpus));
            }
        }
        drop(milestones);
        if let Some(record) = self.vcpus.get(vcpu.index()) {
            // Last: the guest reads its steal when this exit is handled.
            let (mut ends, now) = (sync::lock(&record.window), ThreadTimes::of_this_thread().ok());
            match milestone {
                Milestone::AllUp => {}
                Milestone::WindowOpens => ends.opened = now,
                Milestone::WindowCloses => ends.closed = now,
            }
        }
    }

    fn yield_to(&self, vcpu: VcpuId, target: u8) {
        let Some(control) = self.control.get() else { return };
        let has_run = VcpuId::new(target.into()).is_some_and(|to| self.directed_yield.run(to, control));
        if has_run && let Some(record) = self.vcpus.get(vcpu.index()) {
            record.directed_yields.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock_milestones(&self) -> MutexGuard<'_, Milestones> {
        sync::lock(&self.milestones)
    }
}

impl VcpuRecord {
    fn lock(&self) -> MutexGuard<'_, Intervals> {
        sync::lock(&self.descheduled)
    }
}

impl RunHooks for LabHooks {
    fn publisher(
        &self,
        selection: &Selection,
        vm: Arc<dyn HostVm>,
        cpus: &Cpus,
    ) -> Result<Arc<dyn Publisher>, StealTimeError> {
        if let Some(notice) = publisher::notice(selection).filter(|_| self.announces) {
            stdio::eprintln(notice);
        }
        let Some(faults) = self.faults else { return selection.publisher(vm, cpus) };
        let injected = fault_injection::inject(selection, vm, cpus, faults)?;
        if let Some(injector) = injected.injector {
            let _ = self.injector.set(injector);
        }
        Ok(injected.publisher)
    }

    fn on_loaded(&self, guest: &LoadedGuest<'_>) {
        let _ = self.control.set(Arc::clone(guest.control));
        if let Some(report) = guest.note.and_then(|note| ReportView::at(guest.ram, note.report)) {
            report.header.has_reader.store(1, Ordering::Relaxed);
            let _ = self.report.set(report);
        }
    }

    fn on_exit(&self, vcpu: VcpuId, port: u16, data: &[u8]) -> bool {
        match (port, data) {
            (MILESTONE_PORT, [code, ..]) => self.on_milestone(vcpu, *code),
            (DOORBELL_PORT, [target, ..]) if self.directed_yield.is_enabled() => {
                self.yield_to(vcpu, *target);
            }
            _ => return false,
        }
        true
    }

    fn on_vcpu_event(&self, vcpu: VcpuId, handle: &VcpuHandle, event: VcpuEvent) {
        match event {
            VcpuEvent::Kicked => {
                if let Some(scheduler) = self.scheduler.get() {
                    scheduler.on_kick(handle);
                }
            }
            VcpuEvent::Descheduled(interval) => {
                let Some(record) = self.vcpus.get(vcpu.index()) else { return };
                record.lock().add(interval);
            }
        }
    }

    fn on_stop_request(&self) -> Option<Duration> {
        if let Some(scheduler) = self.scheduler.get() {
            scheduler.release_all();
        }
        self.report.get()?.header.close_now.store(1, Ordering::Relaxed);
        Some(GRACE)
    }

    fn on_guest_end(&self) {
        if let Some(scheduler) = self.scheduler.get() {
            scheduler.on_guest_end();
        }
    }
}
