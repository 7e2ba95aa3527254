//! Printing of results on standard output.

use std::fmt::Display;
use std::io;

use crate::error::Error;
use host::stdio;

/// Prints `result`. A reader that has closed the pipe is no error.
///
/// # Errors
/// [`Error::Print`].
pub fn print(result: &dyn Display) -> Result<(), Error> {
    match stdio::print(result) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(Error::Print),
    }
}
