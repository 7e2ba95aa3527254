//! The console: forwards standard input to the guest's COM1.
//!
//! The receive FIFO of the UART is small. While it is full, the console does not read standard
//! input, so the writer blocks and no byte is lost. It resumes when the guest has emptied the FIFO.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use devices::SerialInput;
use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::escape::Escape;
use crate::terminal::RawTerminal;

/// Maximum length of one read (bytes).
const CHUNK: usize = 256;

/// Standard input, connected to a guest's serial line.
#[derive(Debug)]
pub struct Console {
    input: File,
    line: SerialInput,
    room: EventFd,
    /// Bytes that were read and do not fit into the FIFO yet.
    pending: Vec<u8>,
    watch: Watch,
    /// Present when standard input is a terminal.
    escape: Option<Escape>,
    _terminal: Option<RawTerminal>,
}

/// How the event loop watches standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Watched by epoll.
    On,
    /// Not watched while the FIFO is full.
    Off,
    /// A plain file, which is always readable and cannot be watched.
    Never,
    /// At its end, or closed.
    Ended,
}

impl Console {
    /// Connects standard input to `line`, which signals `room` when its FIFO is empty. Makes a
    /// terminal raw.
    ///
    /// # Errors
    /// The host's error: no free file descriptor, or a terminal that cannot be made raw.
    pub fn new(line: SerialInput, room: EventFd) -> io::Result<Self> {
        let terminal = RawTerminal::new()?;
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let escape = terminal.as_ref().map(|_| Escape::default());
        Ok(Self { input, line, room, pending: Vec::new(), watch: Watch::Off, escape, _terminal: terminal })
    }

    /// Returns whether standard input is a terminal that this console made raw.
    pub fn has_terminal(&self) -> bool {
        self.escape.is_some()
    }

    /// Registers the console with the event loop.
    ///
    /// # Errors
    /// The event loop's error.
    pub fn register(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::new_raw(self.room.as_raw_fd(), EventSet::IN))?;
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
        let may_read = fd == self.input.as_raw_fd() || self.watch == Watch::Never;
        if self.pending.is_empty() && may_read {
            self.read()?;
        }
        self.send();
        self.update_watch(ops);
        ControlFlow::Continue(())
    }

    fn read(&mut self) -> ControlFlow<()> {
        let mut chunk = [0; CHUNK];
        let typed = match self.input.read(&mut chunk) {
            Ok(count @ 1..) => chunk.get(..count).unwrap_or_default(),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return ControlFlow::Continue(());
            }
            // End of file, or a terminal that was closed.
            Ok(0) | Err(_) => {
                self.watch = Watch::Ended;
                return ControlFlow::Continue(());
            }
        };
        match &mut self.escape {
            None => self.pending.extend_from_slice(typed),
            Some(escape) => match escape.filter(typed) {
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
