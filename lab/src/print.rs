//! Printing of results on standard output.

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::Error;

/// Prints `result`. A reader that has closed the pipe is no error.
///
/// # Errors
/// [`Error::Print`].
pub fn print(result: &dyn Display) -> Result<(), Error> {
    match write!(io::stdout().lock(), "{result}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::Print),
    }
}
