//! Standard output and standard error, written without a buffer and without a panic.
//!
//! `println!` and `eprintln!` panic when their stream cannot be written: a full disk, a closed
//! pipe, a terminal that hung up. A panic would replace the exit status of the command. So
//! [`eprintln()`] ignores such errors, and [`print()`] returns them.
//!
//! Another process may have made the stream nonblocking: the open file description is shared.
//! `EAGAIN` therefore waits, and no byte is lost while the reader reads.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;
use rustix::io::ioctl_fionread;

use crate::termination;

/// Maximum length of one write (bytes). A pipe that polls writable takes it without blocking
/// (`PIPE_BUF`, see pipe(7)), and a slow terminal takes it in less than [`PATIENCE`].
const CHUNK: usize = 512;

/// How long a stream may take no byte until [`Stdout::write`] returns (ms).
const PATIENCE: u16 = 250;

/// Standard output, without a buffer.
///
/// `write` returns within a quarter of a second, unless the stream blocks although it polls
/// writable. It fails with [`ErrorKind::Interrupted`] if there was no room, but the reader took
/// bytes, and with [`ErrorKind::WouldBlock`] if the reader took none.
#[derive(Debug, Default)]
pub struct Stdout {
    /// Bytes in the pipe that the reader has not read, when the last write failed.
    unread: Option<u64>,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_some(io::stdout().as_fd(), bytes, &mut self.unread)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the first bytes to `fd`, like [`Stdout`].
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8], unread_before: &mut Option<u64>) -> io::Result<usize> {
    if is_writable(fd, PATIENCE)? {
        let chunk = bytes.get(..CHUNK).unwrap_or(bytes);
        return unistd::write(fd, chunk).map_err(io::Error::from);
    }
    let unread = ioctl_fionread(fd).ok();
    let was_read = unread != *unread_before;
    *unread_before = unread;
    Err(if was_read { ErrorKind::Interrupted } else { ErrorKind::WouldBlock }.into())
}

/// Writes `bytes` to the stream `fd`, and waits until all of them are written.
///
/// # Errors
/// The stream's error, such as [`ErrorKind::BrokenPipe`] for a reader that has closed the pipe.
/// [`ErrorKind::WouldBlock`] if termination of the process is requested and the reader does not
/// read.
pub fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let (mut rest, mut unread) = (bytes, None);
    while !rest.is_empty() {
        match write_some(fd, rest, &mut unread) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && !termination::cuts_short() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Prints `text` to standard output, and waits until all of it is written.
///
/// # Errors
/// Like [`write_all`].
pub fn print(text: impl Display) -> io::Result<()> {
    write_all(io::stdout().as_fd(), text.to_string().as_bytes())
}

/// Prints a line to standard error. A stream that cannot be written loses it.
pub fn eprintln(line: impl Display) {
    eprint(format_args!("{line}\n"));
}

/// Prints `text` to standard error. A stream that cannot be written loses it.
pub fn eprint(text: impl Display) {
    let text = text.to_string();
    let (stderr, mut rest) = (io::stderr(), text.as_bytes());
    while !rest.is_empty() {
        match unistd::write(&stderr, rest).map_err(io::Error::from) {
            Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !is_writable(stderr.as_fd(), PATIENCE).unwrap_or(false) {
                    return;
                }
            }
            Ok(0) | Err(_) => return,
        }
    }
}

/// Waits up to `limit_ms` until `fd` can be written. An error of the stream counts as writable:
/// the write returns it.
fn is_writable(fd: BorrowedFd<'_>, limit_ms: u16) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::from(limit_ms)) {
        Err(nix::errno::Errno::EINTR) => Ok(false),
        ready => Ok(ready? > 0),
    }
}
