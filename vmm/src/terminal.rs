//! The terminal: raw while a guest has it, and as it was when the guest is gone.
//!
//! Raw means that every key goes to the guest at once, unechoed. Output is left as it is, so that lines of ours still
//! begin at the left. However the monitor ends, the terminal is put back: by the guard that made it raw, and by a panic
//! hook, since a panic ends this program where it stands. Signals end a run by the event loop, as anything else does.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// How the terminal was before it was made raw, while it is.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal at standard input raw, until it is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal at standard input raw. `None` where there is none, or where it is not ours: who is in the
    /// background must leave it alone.
    ///
    /// # Errors
    /// The host's reason.
    pub fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !is_ours() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= before.output_flags & OutputFlags::OPOST;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        restore_on_panic();
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether standard input is a terminal, and we are in its foreground.
pub fn is_ours() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal() && tcgetpgrp(stdin.as_fd()).is_ok_and(|foreground| foreground == getpgrp())
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that has gone away needs no care any more.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &before);
    }
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
    });
}
