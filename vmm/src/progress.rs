//! Progress: a guest under way, and how it ends.
//!
//! A guest ends by its own act, by a crash, or because the user or the clock wants it. Our payload can then be asked: it
//! closes its window at once, ends as it would have ended later, and its figures are those of the time until then.

use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::VcpuId;
use protocol::report::Milestone;

use crate::event_loop::{Event, EventLoop, EventLoopError};
use crate::measure::{Ends, Window};
use crate::memory::ReportView;
use crate::timings::Timings;
use crate::vcpu::error::VcpuError;
use crate::vcpu::{Crash, Ending, Mark, Message};

/// What our payload may take to close its window and to end, once it is asked to.
const GRACE: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest ended well.
    Reset,
    /// The guest wrote this to the exit port.
    Exit(u8),
    /// A vCPU cannot go on.
    Crash {
        /// Which.
        vcpu: VcpuId,
        /// What KVM left.
        crash: Box<Crash>,
    },
    /// The time was over.
    TimedOut,
    /// The user ended it.
    Interrupted,
    /// Whoever chose which vCPUs run could not go on.
    SteeringEnded,
}

impl Outcome {
    /// Whether the guest ended by its own act.
    pub fn is_by_itself(&self) -> bool {
        matches!(self, Self::Reset | Self::Exit(_))
    }

    /// The exit status that tells of it.
    pub fn status(&self) -> u8 {
        match self {
            Self::Reset => 0,
            Self::Exit(status) => *status,
            Self::Crash { .. } => 3,
            Self::TimedOut => 4,
            Self::SteeringEnded => 5,
            Self::Interrupted => 130,
        }
    }
}

/// A guest cannot go on, by no fault of its own.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// The event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// A guest under way: what it has told so far.
#[derive(Debug)]
pub struct Progress {
    /// Where the time went.
    pub timings: Timings,
    window: Ends,
    /// Why it was asked to end before its time.
    asked_to_end: Option<Outcome>,
}

impl Progress {
    /// It has told nothing yet.
    pub fn new(timings: Timings) -> Self {
        Self { timings, window: Ends::default(), asked_to_end: None }
    }

    /// Waits for the end of a guest, which may have a report of ours. Whoever keeps vCPUs from running is to `let_go` when
    /// the guest is to end before its time.
    ///
    /// # Errors
    /// [`ProgressError`]. Either way, vCPU threads are still to be sent home.
    pub fn watch(
        &mut self,
        event_loop: &mut EventLoop,
        report: Option<&ReportView>,
        let_go: &dyn Fn(),
    ) -> Result<Outcome, ProgressError> {
        loop {
            match event_loop.next_event()? {
                Event::Vcpu(Message::Milestone(mark)) => self.note(mark),
                Event::Vcpu(Message::Ended { vcpu, ending }) => match ending {
                    Ending::Reset => return Ok(self.asked_to_end.take().unwrap_or(Outcome::Reset)),
                    Ending::Exit(status) => return Ok(Outcome::Exit(status)),
                    Ending::Crash(crash) => return Ok(Outcome::Crash { vcpu, crash }),
                    Ending::SentHome => {}
                },
                Event::Vcpu(Message::Failed { error, .. }) => return Err(error.into()),
                // Asked already: it has its grace, and no less.
                Event::Interrupted | Event::Vcpu(Message::SteeringEnded) if self.asked_to_end.is_some() => {}
                Event::Vcpu(Message::SteeringEnded) => match report {
                    Some(report) => self.ask_to_end(Outcome::SteeringEnded, report, event_loop)?,
                    None => return Ok(Outcome::SteeringEnded),
                },
                Event::Interrupted => {
                    let_go();
                    match report {
                        Some(report) => self.ask_to_end(Outcome::Interrupted, report, event_loop)?,
                        None => return Ok(Outcome::Interrupted),
                    }
                }
                Event::TimedOut => {
                    let_go();
                    match (report, self.asked_to_end.take()) {
                        (Some(report), None) => self.ask_to_end(Outcome::TimedOut, report, event_loop)?,
                        (_, why) => return Ok(why.unwrap_or(Outcome::TimedOut)),
                    }
                }
            }
        }
    }

    /// Notes a mark. They come in any order.
    fn note(&mut self, mark: Mark) {
        match Milestone::from_code(mark.code) {
            Some(Milestone::AllUp) => self.timings.mark_at("all vCPUs up", mark.at),
            Some(Milestone::WindowOpens) => self.window.opened = mark.accounts,
            Some(Milestone::WindowCloses) => self.window.closed = mark.accounts,
            // A foreign guest's mark: it means something to that guest only.
            None => {}
        }
    }

    /// Asks our payload to close its window and to end, for which it has [`GRACE`].
    fn ask_to_end(
        &mut self,
        why: Outcome,
        report: &ReportView,
        event_loop: &mut EventLoop,
    ) -> Result<(), EventLoopError> {
        report.header.close_now.store(1, Ordering::Relaxed);
        self.asked_to_end = Some(why);
        event_loop.time_out(GRACE)
    }

    /// What was told, once all vCPU threads are home: whoever set a mark may have been slower to tell than another was to
    /// end the run.
    pub fn finish(mut self, event_loop: EventLoop) -> (Option<Window>, Timings) {
        for message in event_loop.rest() {
            if let Message::Milestone(mark) = message {
                self.note(mark);
            }
        }
        (self.window.window(), self.timings)
    }
}
