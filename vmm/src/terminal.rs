//! The terminal: raw while a guest owns it, restored at the end.
//!
//! In raw mode each key reaches the guest at once, without echo. Output processing stays on, so the
//! monitor's own lines still start in the first column.
//!
//! The guard [`RawTerminal`] restores the terminal when it is dropped. A panic hook does so as
//! well, because a panic aborts this program. Signals end a run through the event loop.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, MutexGuard, Once};

use host::sync;
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// Guard that keeps the terminal at standard input raw until it is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal at standard input raw. Returns `None` without a terminal, and in a
    /// background process group, which must not change it.
    ///
    /// # Errors
    /// The host's error from `tcgetattr` or `tcsetattr`.
    pub fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !is_in_foreground() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= before.output_flags & OutputFlags::OPOST;
        *saved() = Some(before);
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

/// Returns the attributes of the terminal before it became raw, while it is raw.
fn saved() -> MutexGuard<'static, Option<Termios>> {
    static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
    sync::lock(&SAVED)
}

/// Returns whether standard input is a terminal with this process in its foreground group.
fn is_in_foreground() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal() && tcgetpgrp(stdin.as_fd()).is_ok_and(|foreground| foreground == getpgrp())
}

fn restore() {
    let before = saved().take();
    if let Some(before) = before {
        // The terminal may have been closed; there is then nothing to restore.
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
