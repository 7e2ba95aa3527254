//! Offers: a vCPU that waits for another lets it have its CPU for a moment.
//!
//! The kernel has a call for that, `yield_to`, but only for itself: KVM makes it when a vCPU spins too long. From outside there
//! is only the scheduler's class. So the one waited for is put before all of the fair class, the waiting thread sleeps, and
//! then takes the favour back. While it sleeps it is of a higher class still, or it would not get back to do so. The favour is
//! bounded by the sleep: `MOMENT`, some dozens of sections.
//!
//! Without the right to change classes, the waiting thread yields, and the scheduler does what it likes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libc::pid_t;
use protocol::VcpuId;

use host::thread::{Class, set_class, set_own_class};
use vmm::vcpu::control::VcpuControl;

/// How long the favour lasts.
const MOMENT: Duration = Duration::from_micros(50);

const FAVOURED: Class = Class::Fifo(1);
const FAVOURING: Class = Class::Fifo(2);

/// The offers of a guest's vCPUs: one at a time.
///
/// Two at once could take each other's favour back: the one that was favoured is then left before all others for good, while the
/// one that was to end that is no longer of the class that lets it.
#[derive(Debug, Default)]
pub struct DirectedYield {
    is_out: AtomicBool,
    /// Somebody else sees to who runs.
    is_over: AtomicBool,
}

impl DirectedYield {
    /// No offer is made any more: classes are somebody else's to give.
    pub fn disable(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Lets the thread of `vcpu` run in place of the calling vCPU thread for a moment. `false` where another offer is out, that
    /// takes rights that this process lacks, or there is no such vCPU: then the calling thread has only yielded.
    pub fn run(&self, vcpu: VcpuId, control: &VcpuControl) -> bool {
        if self.is_over.load(Ordering::Relaxed) {
            return false;
        }
        let is_free = !self.is_out.swap(true, Ordering::Acquire);
        let is_taken = is_free && control.tid(vcpu).is_some_and(favour);
        if is_free {
            self.is_out.store(false, Ordering::Release);
        }
        if !is_taken {
            thread::yield_now();
        }
        is_taken
    }
}

/// Favours thread `tid` for a moment, in which the calling one sleeps.
fn favour(tid: pid_t) -> bool {
    if set_own_class(FAVOURING).is_err() {
        return false;
    }
    let is_favoured = set_class(tid, FAVOURED).is_ok();
    if is_favoured {
        thread::sleep(MOMENT);
        // It may have ended meanwhile.
        let _ = set_class(tid, Class::Fair);
    }
    // A thread may always do without what it has.
    let _ = set_own_class(Class::Fair);
    is_favoured
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Two vCPUs that offer their CPUs to each other, or to a third, would end each other's favour.
    #[test]
    fn offer_is_refused_while_another_is_out_and_taken_again_afterwards() {
        let (control, offers) = (VcpuControl::new(), DirectedYield::default());
        let vcpu = VcpuId::BOOT;
        let (here, there) = mpsc::channel();
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let control = &control;
            scope.spawn(move || {
                control.enter(vcpu);
                here.send(()).unwrap();
                let _ = is_done.recv();
                control.leave(vcpu);
            });
            there.recv().unwrap();
            offers.is_out.store(true, Ordering::Relaxed);
            assert!(!offers.run(vcpu, control), "one is out");
            offers.is_out.store(false, Ordering::Relaxed);
            let may = set_own_class(FAVOURING).is_ok();
            set_own_class(Class::Fair).unwrap();
            assert_eq!(offers.run(vcpu, control), may, "none is out, and that one is there");
            assert!(!offers.is_out.load(Ordering::Relaxed));
            let nobody = VcpuId::new(1).unwrap();
            assert!(!offers.run(nobody, control));
            assert!(!offers.is_out.load(Ordering::Relaxed));
            drop(done);
        });
    }
}
