//! The ABI of this repository's test guest, the bare-metal payload.
//!
//! The payload is a guest whose work is known to the nanosecond: it takes locks, waits, and counts.
//! KVM defines none of this. A monitor that boots only Linux needs [`crate::kvm`] alone.
//!
//! 1. [`machine`]: ports and addresses of the machine that the payload runs on.
//! 2. [`note`]: the ELF note by which a monitor recognises the payload, and how a vCPU of it
//!    starts.
//! 3. [`params`]: what the payload is to do, as `key=value` words on the kernel command line.
//! 4. [`hints`]: what a vCPU and the host's scheduler tell each other while the guest runs.
//! 5. [`report`]: the figures that the payload leaves in its memory, with their [`histogram`]
//!    buckets.
//! 6. [`conformance`]: what a guest may rely on, as assertions with a verdict each.
//!
//! All of it has one version, [`note::ABI_VERSION`].

pub mod conformance;
pub mod hints;
pub mod histogram;
pub mod machine;
pub mod note;
pub mod params;
pub mod report;
