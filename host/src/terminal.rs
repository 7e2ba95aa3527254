//! The terminal: raw while a guest owns it, restored when the process stops or ends.
//!
//! In raw mode each key reaches the guest at once, without echo. Output processing stays on, so the
//! monitor's own lines still start in the first column.
//!
//! Only the foreground process group may read or change its controlling terminal (job control, see
//! termios(3)). In the background the terminal belongs to the shell. So this module changes it only
//! in the foreground, and a caller reads it only after [`RawTerminal::may_read`].
//!
//! The guard [`RawTerminal`] restores the terminal when it is dropped. A panic hook does so as
//! well. [`crate::termination`] restores it before the process stops or ends, and makes it raw when
//! the process continues.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, MutexGuard, Once};

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::sync;

/// Guard that keeps the controlling terminal at standard input raw, while this process is in the
/// foreground, until it is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

/// The terminal of this process.
struct Terminal {
    /// Whether a [`RawTerminal`] exists.
    is_wanted: bool,
    /// Whether the process is about to stop.
    is_stopping: bool,
    /// The attributes before the terminal became raw; `None` while it is not raw.
    before: Option<Termios>,
}

impl RawTerminal {
    /// Makes the terminal at standard input raw, now or when this process comes to the foreground.
    /// Returns `None` unless standard input is the controlling terminal.
    ///
    /// # Errors
    /// The host's error from `tcgetattr` or `tcsetattr`.
    pub fn new() -> io::Result<Option<Self>> {
        let Some(is_foreground) = is_in_foreground() else { return Ok(None) };
        let mut terminal = terminal();
        terminal.is_wanted = true;
        let guard = Self(());
        restore_on_panic();
        if is_foreground {
            terminal.make_raw()?;
        }
        Ok(Some(guard))
    }

    /// Returns whether this process is in the foreground and about to stay there. The terminal is
    /// raw then.
    pub fn may_read(&self) -> bool {
        if is_in_foreground() != Some(true) {
            return false;
        }
        let mut terminal = terminal();
        !terminal.is_stopping && (terminal.before.is_some() || terminal.make_raw().is_ok())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        terminal().is_wanted = false;
        restore();
    }
}

impl Terminal {
    fn make_raw(&mut self) -> io::Result<()> {
        let stdin = io::stdin();
        let now = tcgetattr(&stdin)?;
        let mut raw = now.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= now.output_flags & OutputFlags::OPOST;
        self.before.get_or_insert(now);
        Ok(tcsetattr(&stdin, SetArg::TCSANOW, &raw)?)
    }
}

/// Restores the terminal if this process is in the foreground. In the background it is the shell's.
pub(crate) fn restore() {
    let before = terminal().before.take();
    if let Some(before) = before
        && is_in_foreground() == Some(true)
    {
        // The terminal may have been closed; there is then nothing to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// Restores the terminal before the process stops. It stays so until [`resume`].
pub(crate) fn suspend() {
    terminal().is_stopping = true;
    restore();
}

/// Makes the terminal raw again after the process was stopped, if a guest owns it and this process
/// is in the foreground. The shell has changed it meanwhile.
pub(crate) fn resume() {
    let mut terminal = terminal();
    terminal.is_stopping = false;
    if !terminal.is_wanted {
        return;
    }
    if is_in_foreground() == Some(true) {
        // A terminal that cannot be made raw is read as it is.
        let _ = terminal.make_raw();
    } else {
        terminal.before = None;
    }
}

/// Returns whether this process is in the foreground of its controlling terminal; `None` if that is
/// not standard input.
fn is_in_foreground() -> Option<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    tcgetpgrp(stdin.as_fd()).ok().map(|foreground| foreground == getpgrp())
}

fn terminal() -> MutexGuard<'static, Terminal> {
    static TERMINAL: Mutex<Terminal> =
        Mutex::new(Terminal { is_wanted: false, is_stopping: false, before: None });
    sync::lock(&TERMINAL)
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
