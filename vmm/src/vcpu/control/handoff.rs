//! Places: where one vCPU runs at a time, and the next one when that has left.
//!
//! A thread that is held leaves its place when it is out of the guest and its byte says so; then, and by it, whoever comes next
//! is released. Were that one woken earlier, on the same CPU, it would preempt the thread that is about to leave: the byte would
//! come late, and whatever that thread holds would be held up. A lock-holder preemption of our own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Seat;

/// See the module.
#[derive(Debug, Default)]
pub struct Place(Mutex<Occupancy>);

#[derive(Debug, Default)]
struct Occupancy {
    here: Option<Arc<Seat>>,
    next: Option<Arc<Seat>>,
}

impl Place {
    /// Releases `seat`'s thread, at once if nobody is here, or when whoever is here leaves: that one is held already. Whoever was
    /// to come next does not come.
    pub fn give(self: &Arc<Self>, seat: &Arc<Seat>) {
        let mut occupancy = self.lock();
        occupancy.next = None;
        match &occupancy.here {
            Some(here) if !Arc::ptr_eq(here, seat) => occupancy.next = Some(Arc::clone(seat)),
            _ => {
                self.sit(occupancy, seat);
            }
        }
    }

    /// `seat`'s thread, if it is here, is here no more.
    pub fn leave(self: &Arc<Self>, seat: &Seat) {
        let mut occupancy = self.lock();
        let is_here = |here: &Arc<Seat>| std::ptr::eq(Arc::as_ptr(here), seat);
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

    fn sit(self: &Arc<Self>, mut occupancy: MutexGuard<'_, Occupancy>, seat: &Arc<Seat>) {
        occupancy.here = Some(Arc::clone(seat));
        *seat.place() = Some(Arc::clone(self));
        drop(occupancy);
        if seat.is_held() {
            seat.release();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Occupancy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat() -> Arc<Seat> {
        let seat = Arc::new(Seat::of_this_thread());
        seat.hold();
        seat
    }

    #[test]
    fn next_one_is_released_when_the_first_has_left_and_not_before() {
        let (place, first, second) = (Arc::new(Place::default()), seat(), seat());
        place.give(&first);
        assert!(!first.is_held(), "nobody was there");
        first.hold();
        place.give(&second);
        assert!(second.is_held());
        first.leave_place();
        assert!(!second.is_held());
        second.leave_place();
        place.give(&first);
        assert!(!first.is_held());
    }

    #[test]
    fn change_of_mind_leaves_nobody_waiting_for_a_place_that_is_not_left() {
        let (place, first, second, third) = (Arc::new(Place::default()), seat(), seat(), seat());
        place.give(&first);
        first.hold();
        place.give(&second);
        place.give(&third);
        first.leave_place();
        assert!(second.is_held() && !third.is_held(), "the last word counts");
        third.hold();
        place.give(&second);
        place.give(&third);
        assert!(!third.is_held(), "it has not left, and stays");
        third.leave_place();
        assert!(second.is_held(), "nobody was to come");
        place.give(&second);
        place.close();
        second.hold();
        place.give(&first);
        place.close();
        second.leave_place();
        assert!(first.is_held());
    }
}
