//! Printing of results on standard output.

use std::fmt::Display;
use std::io::ErrorKind;

use crate::error::Error;
use host::stdio;

/// Prints `result`. A reader that has closed the pipe is no error, nor is one that does not read
/// while the process is ending.
///
/// # Errors
/// [`Error::Print`].
pub fn print(result: &dyn Display) -> Result<(), Error> {
    match stdio::print(result) {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::WouldBlock) => Ok(()),
        printed => printed.map_err(Error::Print),
    }
}
