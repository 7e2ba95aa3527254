//! Supervision: waits for the end of a guest under way.
//!
//! A guest ends by its own act, by a crash, or because the user, the time-out or a run hook wants it. In the latter cases the run
//! hooks may grant it time to end by itself.

use std::fmt;

use protocol::VcpuId;

use crate::event_loop::{Event, EventLoop, EventLoopError};
use crate::hooks::RunHooks;
use crate::vcpu::error::VcpuError;
use crate::vcpu::{Crash, Message, VcpuExit};

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
    /// A run hook ended it.
    Stopped,
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
            Self::Stopped => 5,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::Exit(status) => write!(f, "the guest wrote {status} to the exit port"),
            Self::Crash { vcpu, crash } => write!(f, "vCPU {vcpu} crashed: {}", crash.reason),
            Self::TimedOut => f.write_str("timed out"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Stopped => f.write_str("stopped by a run hook"),
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

/// Waits for the end of a guest. Its vCPU threads are still to be joined afterwards.
///
/// # Errors
/// [`ProgressError`] if the event loop or a vCPU fails.
pub fn supervise(event_loop: &mut EventLoop, hooks: &dyn RunHooks) -> Result<Outcome, ProgressError> {
    // Why the guest was asked to end. A second request of the user's or a hook's does not shorten its time.
    let mut asked: Option<Outcome> = None;
    loop {
        let why = match event_loop.next_event()? {
            Event::Vcpu(Message::Ended { vcpu, ending }) => match ending {
                VcpuExit::Reset => return Ok(asked.unwrap_or(Outcome::Reset)),
                VcpuExit::Exit(status) => return Ok(Outcome::Exit(status)),
                VcpuExit::Crash(crash) => return Ok(Outcome::Crash { vcpu, crash }),
                VcpuExit::Stopped => continue,
            },
            Event::Vcpu(Message::Failed { error, .. }) => return Err(error.into()),
            Event::Interrupted | Event::Vcpu(Message::StopRequested) if asked.is_some() => continue,
            Event::Vcpu(Message::StopRequested) => Outcome::Stopped,
            Event::Interrupted => Outcome::Interrupted,
            Event::TimedOut => match asked {
                Some(why) => return Ok(why),
                None => Outcome::TimedOut,
            },
        };
        match hooks.on_stop_request() {
            Some(grace) => event_loop.time_out(grace)?,
            None => return Ok(why),
        }
        asked = Some(why);
    }
}
