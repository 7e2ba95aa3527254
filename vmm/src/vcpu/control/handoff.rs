//! Places: where one vCPU runs at a time, and the next one when that has left.
//!
//! A thread that is held leaves its place when it is out of the guest and its byte says so; then, and by it, whoever comes next
//! is released. Were that one woken earlier, on the same CPU, it would preempt the thread that is about to leave: the byte would
//! come late, and whatever that thread holds would be held up. A lock-holder preemption of our own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::VcpuHandle;

/// See the module.
#[derive(Debug, Default)]
pub struct CpuHandoff(Mutex<Occupancy>);

#[derive(Debug, Default)]
struct Occupancy {
    here: Option<Arc<VcpuHandle>>,
    next: Option<Arc<VcpuHandle>>,
}

impl CpuHandoff {
    /// Releases `handle`'s thread, at once if nobody is here, or when whoever is here leaves: that one is held already. Whoever was
    /// to come next does not come.
    pub fn give(self: &Arc<Self>, handle: &Arc<VcpuHandle>) {
        let mut occupancy = self.lock();
        occupancy.next = None;
        match &occupancy.here {
            Some(here) if !Arc::ptr_eq(here, handle) => occupancy.next = Some(Arc::clone(handle)),
            _ => {
                self.sit(occupancy, handle);
            }
        }
    }

    /// `handle`'s thread, if it is here, is here no more.
    pub fn leave(self: &Arc<Self>, handle: &VcpuHandle) {
        let mut occupancy = self.lock();
        let is_here = |here: &Arc<VcpuHandle>| std::ptr::eq(Arc::as_ptr(here), handle);
        if occupancy.here.as_ref().is_some_and(is_here) {
            occupancy.here = None;
            if let Some(next) = occupancy.next.take() {
                self.sit(occupancy, &next);
            }
        }
    }

    /// Nobody comes when whoever is here leaves.
    pub fn close(&self) {
        self.lock().next = None;
    }

    fn sit(self: &Arc<Self>, mut occupancy: MutexGuard<'_, Occupancy>, handle: &Arc<VcpuHandle>) {
        occupancy.here = Some(Arc::clone(handle));
        *handle.place() = Some(Arc::clone(self));
        drop(occupancy);
        if handle.is_descheduled() {
            handle.schedule();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Occupancy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Arc<VcpuHandle> {
        let handle = Arc::new(VcpuHandle::of_this_thread());
        handle.deschedule();
        handle
    }

    #[test]
    fn next_one_is_released_when_the_first_has_left_and_not_before() {
        let (place, first, second) = (Arc::new(CpuHandoff::default()), handle(), handle());
        place.give(&first);
        assert!(!first.is_descheduled(), "nobody was there");
        first.deschedule();
        place.give(&second);
        assert!(second.is_descheduled());
        first.leave_cpu();
        assert!(!second.is_descheduled());
        second.leave_cpu();
        place.give(&first);
        assert!(!first.is_descheduled());
    }

    #[test]
    fn change_of_mind_leaves_nobody_waiting_for_a_place_that_is_not_left() {
        let (place, first, second, third) = (Arc::new(CpuHandoff::default()), handle(), handle(), handle());
        place.give(&first);
        first.deschedule();
        place.give(&second);
        place.give(&third);
        first.leave_cpu();
        assert!(second.is_descheduled() && !third.is_descheduled(), "the last word counts");
        third.deschedule();
        place.give(&second);
        place.give(&third);
        assert!(!third.is_descheduled(), "it has not left, and stays");
        third.leave_cpu();
        assert!(second.is_descheduled(), "nobody was to come");
        place.give(&second);
        place.close();
        second.deschedule();
        place.give(&first);
        place.close();
        second.leave_cpu();
        assert!(first.is_descheduled());
    }
}
