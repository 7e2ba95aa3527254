//! Results files: opened before a measurement, written after it, and replaced as a whole.
//!
//! A path is opened once, before the first guest starts, and what was opened is what is written.
//! Two kinds of files are written in two ways:
//!
//! - A regular file, or one that does not exist yet, is written beside its place, synced, and
//!   renamed over it (`replacement.rs`). A full disk or a kill leaves the old content.
//! - A FIFO, a character device or a descriptor of this process (`/dev/stdout`, `/dev/fd/63`) is
//!   written directly. So a shell's process substitution works.
//!
//! A symbolic link is refused: a rename would replace the link, and a write would change a file
//! that was not named. `/dev/stdout`, `/dev/fd/N` and `/proc/self/fd/N` are links as well, but name
//! what the caller has opened.

mod replacement;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde::Serialize;

use host::{input, stdio, termination};
use replacement::Replacement;

/// Time between two attempts to open a FIFO that has no reader.
const RETRY: Duration = Duration::from_millis(10);

/// A results file cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write {}", path.display())]
pub struct OutputError {
    path: PathBuf,
    source: io::Error,
}

/// A results file that is open for writing. Dropping it unwritten changes nothing.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// A regular file, or a new one.
    Replacement(Replacement),
    /// A FIFO, a character device, or a descriptor of this process.
    Stream(File),
}

impl OutputFile {
    /// Opens `path` for writing. Changes nothing until the results are written.
    ///
    /// A FIFO without a reader is waited for, until termination is requested.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written, is a symbolic link, or cannot be replaced.
    pub fn open(path: &Path) -> Result<Self, OutputError> {
        let target = open(path).map_err(|source| OutputError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), target })
    }

    /// Opens several files, of which each may be absent.
    ///
    /// # Errors
    /// [`OutputError`] like [`open`](Self::open), and if two are the same file: the second would
    /// replace the results of the first.
    pub fn open_all<const N: usize>(paths: [Option<&Path>; N]) -> Result<[Option<Self>; N], OutputError> {
        let mut files = [const { None }; N];
        for (index, path) in paths.into_iter().enumerate() {
            let Some(file) = path.map(Self::open).transpose()? else { continue };
            if files.iter().flatten().any(|other: &Self| file.target.is_same_as(&other.target)) {
                let source = io::Error::other("two kinds of results go to this file (name another one)");
                return Err(OutputError { path: file.path, source });
            }
            if let Some(place) = files.get_mut(index) {
                *place = Some(file);
            }
        }
        Ok(files)
    }

    /// Writes `document` as JSON.
    ///
    /// # Errors
    /// [`OutputError`] if the document or the file cannot be written.
    pub fn write(self, document: &impl Serialize) -> Result<(), OutputError> {
        match serde_json::to_vec_pretty(document) {
            Ok(mut text) => {
                text.push(b'\n');
                self.write_bytes(&text)
            }
            Err(error) => Err(OutputError { path: self.path, source: error.into() }),
        }
    }

    /// Writes `bytes`. A reader that has closed the pipe is no error.
    ///
    /// # Errors
    /// [`OutputError`] if the file cannot be written. A regular file has its old content then.
    pub fn write_bytes(self, bytes: &[u8]) -> Result<(), OutputError> {
        let written = match self.target {
            Target::Replacement(replacement) => replacement.write(bytes),
            Target::Stream(stream) => match stdio::write_all(stream.as_fd(), bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written,
            },
        };
        written.map_err(|source| OutputError { path: self.path, source })
    }
}

impl Target {
    fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Replacement(a), Self::Replacement(b)) => a.is_same_as(b),
            (Self::Stream(a), Self::Stream(b)) => match (a.metadata(), b.metadata()) {
                // A device takes whatever comes.
                (Ok(a), Ok(_)) if a.file_type().is_char_device() => false,
                (Ok(a), Ok(b)) => is_same_file(&a, &b),
                _ => false,
            },
            _ => false,
        }
    }
}

fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn open(path: &Path) -> io::Result<Target> {
    if let Some(stream) = own_descriptor(path) {
        return stream.map(Target::Stream);
    }
    // Nonblocking: a FIFO without a reader fails with ENXIO. A terminal must not become the
    // controlling one.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = loop {
        let refused = match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(file) => break file,
            Err(refused) => refused,
        };
        match Errno::from_raw(refused.raw_os_error().unwrap_or(0)) {
            Errno::ENOENT => return Replacement::of(path, None).map(Target::Replacement),
            Errno::ELOOP => {
                let target = fs::read_link(path).map_err(|_| refused)?;
                let why = format!("it is a symbolic link to {} (name the file itself)", target.display());
                return Err(io::Error::other(why));
            }
            Errno::ENXIO if fs::symlink_metadata(path)?.file_type().is_fifo() => {
                if termination::wait(RETRY).is_some() {
                    return Err(io::Error::other("no process has opened this FIFO for reading"));
                }
            }
            _ => return Err(refused),
        }
    };
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() {
        refuse_own_stdout(&metadata)?;
        Replacement::of(path, Some(&file)).map(Target::Replacement)
    } else if kind.is_fifo() || kind.is_char_device() {
        Ok(Target::Stream(file))
    } else {
        Err(io::Error::other(format!("it is a {} (name a file)", input::name_of(kind))))
    }
}

/// Opens `path` if it names a descriptor of this process; `None` for any other path.
fn own_descriptor(path: &Path) -> Option<io::Result<File>> {
    let path = path.to_str()?;
    let number = ["/dev/fd/", "/proc/self/fd/"].iter().find_map(|folder| path.strip_prefix(folder));
    let number: u32 = match path {
        "/dev/stdout" => 1,
        "/dev/stderr" => 2,
        _ => number?.parse().ok()?,
    };
    Some(match number {
        // What is printed afterwards goes behind the results: a copy shares the file's position.
        1 => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        2 => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        number => {
            let mut options = OpenOptions::new();
            options.append(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            options.open(format!("/proc/self/fd/{number}"))
        }
    })
}

/// Refuses a file to which this process also prints: the renamed results would replace it, and what
/// is printed would be lost.
fn refuse_own_stdout(file: &Metadata) -> io::Result<()> {
    let own = [io::stdout().as_fd().try_clone_to_owned(), io::stderr().as_fd().try_clone_to_owned()];
    let is_printed_to = |own: File| own.metadata().is_ok_and(|own| is_same_file(&own, file));
    if own.into_iter().flatten().any(|own| is_printed_to(own.into())) {
        return Err(io::Error::other("this program prints to it as well (try /dev/stdout)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
