//! Supervision: waits until a guest ends.
//!
//! A guest ends by itself or by a crash, or the user, the timeout or a run hook ends it. In the
//! latter cases [`RunHooks::on_stop_request`] may grant it time to end by itself.

use std::fmt;

use protocol::VcpuId;

use crate::error::VmmError;
use crate::event_loop::{Event, EventLoop};
use crate::hooks::RunHooks;
use crate::vcpu::{Crash, Message, VcpuExit};

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest reset the machine.
    Reset,
    /// The guest wrote this status to the exit port.
    Exit(u8),
    /// A vCPU cannot go on.
    Crash {
        /// The vCPU.
        vcpu: VcpuId,
        /// The reason and the registers.
        crash: Box<Crash>,
    },
    /// The timeout expired.
    TimedOut,
    /// The user ended it.
    Interrupted,
    /// A run hook ended it.
    Stopped,
}

impl Outcome {
    /// Returns whether the guest ended by itself, without a crash.
    pub fn is_by_itself(&self) -> bool {
        matches!(self, Self::Reset | Self::Exit(_))
    }

    /// Returns the exit status of the monitor.
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

/// Waits until the guest ends. The caller joins the vCPU threads afterwards.
///
/// # Errors
/// [`VmmError`] if the event loop or a vCPU thread failed.
pub fn supervise(event_loop: &mut EventLoop, hooks: &dyn RunHooks) -> Result<Outcome, VmmError> {
    // The first reason to end the run. Later ones do not shorten the time that the guest has left.
    let mut stopping: Option<Outcome> = None;
    loop {
        let reason = match event_loop.next_event()? {
            Event::Vcpu(Message::Ended { vcpu, exit }) => match exit {
                VcpuExit::Reset => return Ok(stopping.unwrap_or(Outcome::Reset)),
                VcpuExit::Exit(status) => return Ok(Outcome::Exit(status)),
                VcpuExit::Crash(crash) => return Ok(Outcome::Crash { vcpu, crash }),
                VcpuExit::Stopped => continue,
            },
            Event::Vcpu(Message::Failed(error)) => return Err(error),
            Event::Interrupted | Event::DeadlinePassed | Event::Vcpu(Message::StopRequested)
                if stopping.is_some() =>
            {
                continue;
            }
            Event::Vcpu(Message::StopRequested) => Outcome::Stopped,
            Event::Interrupted => Outcome::Interrupted,
            Event::DeadlinePassed => Outcome::TimedOut,
            Event::TimedOut => match stopping {
                Some(reason) => return Ok(reason),
                None => Outcome::TimedOut,
            },
        };
        match hooks.on_stop_request() {
            Some(grace) => event_loop.set_timeout(grace)?,
            None => return Ok(reason),
        }
        stopping = Some(reason);
    }
}
