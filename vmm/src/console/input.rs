//! Input of a guest's console: forwards standard input to COM1.
//!
//! The receive FIFO of the UART is small. While it is full, the console does not read standard
//! input, so the writer blocks and no byte is lost. It resumes when the guest has emptied the FIFO.
//!
//! In the background of its terminal the monitor does not read it: the keys are the shell's.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use devices::SerialInput;
use event_manager::{EventOps, Events};
use host::terminal::RawTerminal;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::escape::Escape;

/// Maximum length of one read (bytes).
const CHUNK: usize = 256;

/// Standard input, connected to a guest's serial line.
#[derive(Debug)]
pub struct ConsoleInput {
    input: File,
    line: SerialInput,
    room: EventFd,
    /// Bytes that were read and do not fit into the FIFO yet.
    pending: Vec<u8>,
    watch: Watch,
    /// Present when standard input is the controlling terminal.
    terminal: Option<Terminal>,
}

/// The controlling terminal, and what its user typed.
#[derive(Debug)]
struct Terminal {
    raw: RawTerminal,
    escape: Escape,
}

/// How the event loop watches standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Watched by epoll.
    On,
    /// Not watched while the FIFO is full.
    Off,
    /// A terminal that is not read, because this process is in its background.
    Background,
    /// A plain file, which is always readable and cannot be watched.
    Never,
    /// At its end, or closed.
    Ended,
}

impl ConsoleInput {
    /// Connects standard input to `line`, which signals `room` when its FIFO is empty. Makes a
    /// terminal raw.
    ///
    /// # Errors
    /// The host's error: no free file descriptor, or a terminal that cannot be made raw.
    pub fn new(line: SerialInput, room: EventFd) -> io::Result<Self> {
        let terminal = RawTerminal::new()?.map(|raw| Terminal { raw, escape: Escape::default() });
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self { input, line, room, pending: Vec::new(), watch: Watch::Off, terminal })
    }

    /// Returns whether standard input is a terminal that the guest owns: it is raw.
    pub fn has_terminal(&self) -> bool {
        self.may_read() && self.terminal.is_some()
    }

    /// Returns whether standard input is a terminal in whose background this process is. Signals an
    /// event if the process has come to the foreground.
    ///
    /// A shell reports that to a stopped process only, so a caller in the background polls.
    pub fn poll_background(&self) -> bool {
        let may_read = self.may_read();
        if may_read && self.watch == Watch::Background {
            // The write fails only if an event is pending already.
            let _ = self.room.write(1);
        }
        !may_read
    }

    /// Returns whether standard input may be read. A terminal is raw then.
    fn may_read(&self) -> bool {
        self.terminal.as_ref().is_none_or(|terminal| terminal.raw.may_read())
    }

    /// Registers the console with the event loop.
    ///
    /// # Errors
    /// The event loop's error.
    pub fn register(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::new_raw(self.room.as_raw_fd(), EventSet::IN))?;
        if !self.may_read() {
            self.watch = Watch::Background;
            return Ok(());
        }
        self.watch = match ops.add(self.interest()) {
            Ok(()) => Watch::On,
            // epoll rejects plain files and /dev/null, which are always readable.
            Err(_) => Watch::Never,
        };
        if self.watch == Watch::Never {
            // The FIFO is empty: this starts the first read.
            let _ = self.room.write(1);
        }
        Ok(())
    }

    /// Returns whether events of `fd` belong to this console.
    pub fn owns(&self, fd: RawFd) -> bool {
        fd == self.room.as_raw_fd() || fd == self.input.as_raw_fd()
    }

    /// Handles an event of `fd`. Breaks when the user ends the run.
    pub fn process(&mut self, fd: RawFd, ops: &mut EventOps<'_>) -> ControlFlow<()> {
        if fd == self.room.as_raw_fd() {
            let _: io::Result<u64> = self.room.read();
        }
        self.send();
        if self.terminal.is_some() && matches!(self.watch, Watch::On | Watch::Background) {
            self.follow_job_control(ops);
        }
        let is_ready = fd == self.input.as_raw_fd() && self.watch == Watch::On;
        if self.pending.is_empty() && (is_ready || self.watch == Watch::Never) {
            self.read()?;
        }
        self.send();
        self.update_watch(ops);
        ControlFlow::Continue(())
    }

    /// Watches the terminal in the foreground, and only there.
    fn follow_job_control(&mut self, ops: &mut EventOps<'_>) {
        let changed = match (self.watch, self.may_read()) {
            (Watch::On, false) => ops.remove(self.interest()).map(|()| Watch::Background),
            (Watch::Background, true) => ops.add(self.interest()).map(|()| Watch::On),
            (watch, _) => Ok(watch),
        };
        self.watch = changed.unwrap_or(Watch::Ended);
    }

    fn read(&mut self) -> ControlFlow<()> {
        let mut chunk = [0; CHUNK];
        let typed = match self.input.read(&mut chunk) {
            Ok(count @ 1..) => chunk.get(..count).unwrap_or_default(),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return ControlFlow::Continue(());
            }
            // SIGTTIN is blocked: this process has just come into the background (termios(3)).
            Err(_) if !self.may_read() => return ControlFlow::Continue(()),
            // End of file, or a terminal that was closed.
            Ok(0) | Err(_) => {
                self.watch = Watch::Ended;
                return ControlFlow::Continue(());
            }
        };
        match &mut self.terminal {
            None => self.pending.extend_from_slice(typed),
            Some(terminal) => match terminal.escape.filter(typed) {
                Some(for_guest) => self.pending = for_guest,
                None => return ControlFlow::Break(()),
            },
        }
        ControlFlow::Continue(())
    }

    fn send(&mut self) {
        let sent = self.line.send(&self.pending);
        self.pending.drain(..sent);
    }

    fn update_watch(&mut self, ops: &mut EventOps<'_>) {
        let changed = match (self.watch, self.pending.is_empty()) {
            (Watch::On, false) => ops.remove(self.interest()).map(|()| Watch::Off),
            (Watch::Off, true) => ops.add(self.interest()).map(|()| Watch::On),
            (Watch::Ended, _) => {
                // Removing fails for a plain file, which was not watched.
                let _ = ops.remove(self.interest());
                Ok(Watch::Ended)
            }
            (watch, _) => Ok(watch),
        };
        // Input that cannot be watched any more counts as ended.
        self.watch = changed.unwrap_or(Watch::Ended);
    }

    fn interest(&self) -> Events {
        Events::new_raw(self.input.as_raw_fd(), EventSet::IN)
    }
}
