//! What guest and host share, and nothing else.
//!
//! Two programs meet in guest memory: a monitor that owns the steal-time records, and a guest that reads them.
//! This crate is the whole of what they agree on:
//!
//! 1. [`steal_time`]: the record, its MSR and its CPUID bits. This part is KVM's ABI; any guest knows it.
//! 2. [`machine`]: the ports and addresses of the machine that the monitor shows.
//! 3. [`payload`]: how our own bare-metal payload says that it is ours, and how it is started.
//! 4. [`words`]: what the payload is asked to do, as words on the kernel command line.
//! 5. [`report`]: what the payload leaves behind for the monitor to read, with its [`histogram`].
//! 6. [`exchange`]: what the two tell each other beside the record, where a policy wants to know.
//! 7. [`conformance`]: what a guest may rely on, and what our guest found of it.
//!
//! Nothing here needs `std`, nothing here is `unsafe`, and no offset is written down twice: both ends say
//! `offset_of!`.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod conformance;
pub mod exchange;
pub mod histogram;
pub mod machine;
pub mod payload;
pub mod report;
pub mod steal_time;
mod vcpu_id;
pub mod words;

pub use vcpu_id::{MAX_VCPUS, VcpuId};
