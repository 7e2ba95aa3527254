//! The embedded payload, and `vmm-lab write-payload`.

use std::path::PathBuf;

use clap::Args;

use crate::error::Error;
use crate::output::OutputFile;

/// The payload, an ELF file. This crate's build script builds it from the `guest-payload` crate.
pub const BYTES: &[u8] = include_bytes!(env!("PAYLOAD_ELF"));

/// Options of `vmm-lab write-payload`.
#[derive(Debug, Args)]
pub struct WritePayloadArgs {
    /// The file
    pub file: PathBuf,
}

/// Writes the payload to a file, for another monitor.
///
/// # Errors
/// [`Error::Output`].
pub fn command(args: &WritePayloadArgs) -> Result<u8, Error> {
    OutputFile::open(&args.file)?.write_bytes(BYTES)?;
    Ok(0)
}
