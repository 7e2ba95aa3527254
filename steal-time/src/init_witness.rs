//! KVM's own copy of the steal-time MSR, as a witness of INIT.
//!
//! While the library emulates the MSR, KVM does not use its own copy. The library stores a value
//! there that registers no record, and no guest can read or write it: the MSR filter denies it
//! (`filter.rs`). `kvm_vcpu_reset()` clears it. So a copy of 0 shows that this vCPU was reset, and
//! not a vCPU of another VM with the same APIC ID.
//!
//! The witness is read while the monitor handles an exit, whose data borrows the monitor's
//! `VcpuFd`. So it has a descriptor of its own, and calls KVM by it.

#![expect(unsafe_code, reason = "ioctls on a copy of the vCPU's descriptor")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{kvm_mp_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use libc::c_ulong;
use protocol::kvm::MSR_STEAL_TIME;

/// An address without the enable bit: KVM stores it (`kvm_set_msr_common`) and writes no record.
const PLANTED: u64 = 0x40;

/// `KVM_GET_MSRS`: `_IOWR(0xae, 0x88, struct kvm_msrs)`, and the other two by the same scheme.
const GET_MSRS: c_ulong = 0xc008_ae88;
const SET_MSRS: c_ulong = 0x4008_ae89;
const GET_MP_STATE: c_ulong = 0x8004_ae98;

/// `struct kvm_msrs` with one entry.
#[repr(C)]
struct OneMsr {
    count: u32,
    padding: u32,
    entry: kvm_msr_entry,
}

impl OneMsr {
    fn new(data: u64) -> Self {
        let entry = kvm_msr_entry { index: MSR_STEAL_TIME, data, ..kvm_msr_entry::default() };
        Self { count: 1, padding: 0, entry }
    }
}

/// The witness of one vCPU.
#[derive(Debug)]
pub(crate) struct InitWitness(OwnedFd);

impl InitWitness {
    /// Plants the witness in vCPU `fd`; `None` if KVM has no such MSR.
    pub(crate) fn plant(fd: &VcpuFd) -> io::Result<Option<Self>> {
        // SAFETY: `fd` is open, and outlives the borrow, which ends with this statement.
        let witness = Self(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()?);
        Ok(witness.write(PLANTED).then_some(witness))
    }

    /// Returns whether the vCPU was reset since the witness was planted, and plants it again.
    pub(crate) fn take_reset(&self) -> bool {
        let is_reset = self.read() == Some(0);
        if is_reset {
            self.write(PLANTED);
        }
        is_reset
    }

    /// Makes KVM process an INIT that the vCPU has accepted and not yet taken. No exit may wait for
    /// its completion: KVM would complete it on the registers after the reset.
    pub(crate) fn process_init(&self) {
        let mut state = kvm_mp_state::default();
        // It calls kvm_apic_accept_events() first (kvm_arch_vcpu_ioctl_get_mpstate). The state
        // itself is of no interest.
        // SAFETY: KVM writes a `kvm_mp_state` at this address.
        unsafe { libc::ioctl(self.0.as_raw_fd(), GET_MP_STATE, &raw mut state) };
    }

    fn read(&self) -> Option<u64> {
        let mut msr = OneMsr::new(0);
        // SAFETY: KVM reads and writes `count` entries, one, behind the header.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), GET_MSRS, &raw mut msr) };
        (done == 1).then_some(msr.entry.data)
    }

    fn write(&self, data: u64) -> bool {
        let msr = OneMsr::new(data);
        // SAFETY: KVM reads `count` entries, one, behind the header.
        unsafe { libc::ioctl(self.0.as_raw_fd(), SET_MSRS, &raw const msr) == 1 }
    }
}
