//! The console: from standard input to the guest's COM1.
//!
//! The receiver of a UART has room for some bytes only. While it is full, standard input is not read: whoever writes to it
//! waits, and nothing is lost. When the guest has emptied the receiver, it goes on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use devices::SerialInput;
use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::escape::Escape;
use crate::terminal::RawTerminal;

/// So much is read at once.
const CHUNK: usize = 256;

/// What becomes of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It goes on.
    GoOn,
    /// The user wants it to end.
    End,
}

/// Standard input, on its way to a guest.
#[derive(Debug)]
pub struct Console {
    input: File,
    line: SerialInput,
    room: EventFd,
    /// What was read and not sent yet.
    pending: Vec<u8>,
    /// How standard input is waited for.
    watch: Watch,
    /// Only where a user is typing.
    escape: Option<Escape>,
    _terminal: Option<RawTerminal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// By the event loop, which tells when there is something.
    On,
    /// Not until there is room.
    Off,
    /// It is a file, where there is always something.
    Never,
    /// There is no more.
    Ended,
}

impl Console {
    /// Sends what arrives at standard input to `line`; `room` is raised when there is room again. A terminal is made raw.
    ///
    /// # Errors
    /// The host's reason: out of file descriptors, or a terminal that refuses.
    pub fn new(line: SerialInput, room: EventFd) -> io::Result<Self> {
        let terminal = RawTerminal::new()?;
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let escape = terminal.as_ref().map(|_| Escape::default());
        Ok(Self { input, line, room, pending: Vec::new(), watch: Watch::Off, escape, _terminal: terminal })
    }

    /// Whether a user is typing, and has the keys to it.
    pub fn has_terminal(&self) -> bool {
        self.escape.is_some()
    }

    /// Begins to watch.
    ///
    /// # Errors
    /// The event loop's reason.
    pub fn begin(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::new_raw(self.room.as_raw_fd(), EventSet::IN))?;
        self.watch = match ops.add(self.interest()) {
            Ok(()) => Watch::On,
            // epoll does not take plain files, nor /dev/null: they never have to be waited for.
            Err(_) => Watch::Never,
        };
        if self.watch == Watch::Never {
            // As if there were room: there is.
            let _ = self.room.write(1);
        }
        Ok(())
    }

    /// Whether `fd` is one that this watches.
    pub fn watches(&self, fd: RawFd) -> bool {
        fd == self.room.as_raw_fd() || fd == self.input.as_raw_fd()
    }

    /// Something has happened at `fd`.
    pub fn process(&mut self, fd: RawFd, ops: &mut EventOps<'_>) -> Wish {
        if fd == self.room.as_raw_fd() {
            let _: io::Result<u64> = self.room.read();
        }
        self.send();
        let may_read = fd == self.input.as_raw_fd() || self.watch == Watch::Never;
        if self.pending.is_empty() && may_read && self.read() == Wish::End {
            return Wish::End;
        }
        self.send();
        self.watch_if_there_is_room(ops);
        Wish::GoOn
    }

    fn read(&mut self) -> Wish {
        let mut chunk = [0; CHUNK];
        let typed = match self.input.read(&mut chunk) {
            Ok(0) => {
                self.watch = Watch::Ended;
                return Wish::GoOn;
            }
            Ok(count) => chunk.get(..count).unwrap_or_default(),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return Wish::GoOn;
            }
            // A terminal that has gone away.
            Err(_) => {
                self.watch = Watch::Ended;
                return Wish::GoOn;
            }
        };
        match &mut self.escape {
            None => self.pending.extend_from_slice(typed),
            Some(escape) => match escape.take(typed) {
                Some(for_guest) => self.pending = for_guest,
                None => return Wish::End,
            },
        }
        Wish::GoOn
    }

    fn send(&mut self) {
        let sent = self.line.send(&self.pending);
        self.pending.drain(..sent);
    }

    fn watch_if_there_is_room(&mut self, ops: &mut EventOps<'_>) {
        let changed = match (self.watch, self.pending.is_empty()) {
            (Watch::On, false) => ops.remove(self.interest()).map(|()| Watch::Off),
            (Watch::Off, true) => ops.add(self.interest()).map(|()| Watch::On),
            (Watch::Ended, _) => {
                // It was watched, or it was a file: either way it is not any more.
                let _ = ops.remove(self.interest());
                Ok(Watch::Ended)
            }
            (watch, _) => Ok(watch),
        };
        // What cannot be watched any more has ended for us.
        self.watch = changed.unwrap_or(Watch::Ended);
    }

    fn interest(&self) -> Events {
        Events::new_raw(self.input.as_raw_fd(), EventSet::IN)
    }
}
