//! The payload that this program carries.

/// Our payload, an ELF file; built from the `guest-payload` crate by this crate's build script.
pub const BYTES: &[u8] = include_bytes!(env!("PAYLOAD_ELF"));
