//! Steal time, saved and restored.
//!
//! The MSR's value is ours to save. Steal itself lies in guest memory, and travels with it; but guest memory may have
//! been taken earlier than the MSR, and steal must never go back: so it is saved, too, and raised where it is less.
//!
//! What does not travel is the run delay of the vCPU's thread. A vCPU that goes on, on another thread, has what that one
//! waits for from then on. Time for which the guest is paused is not steal: its threads sleep, and what they wait for a CPU
//! to run commands is forgotten.

use protocol::VcpuId;
use protocol::kvm::Registration;
use serde::{Deserialize, Serialize};

/// Version of the saved form.
pub const VERSION: u32 = 1;

/// The steal time of all vCPUs of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStealTime {
    /// [`VERSION`].
    pub version: u32,
    /// By vCPU, from the boot vCPU on.
    pub vcpus: Vec<SavedVcpu>,
    /// Guest pages (GPA) that were written without KVM's dirty log telling of it: whoever saves guest memory by that log
    /// must save these all the same.
    pub unlogged_pages: Vec<u64>,
}

/// The steal time of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// The MSR; 0 where it does not exist.
    pub msr: u64,
    /// Steal that the guest has been told (ns); 0 where it has no record.
    pub steal_ns: u64,
}

/// What was saved cannot be restored here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// Saved by another version of this program.
    #[error("Saved steal time has version {0}, and this monitor reads version {VERSION}")]
    Version(u32),
    /// Of another guest.
    #[error("Saved steal time is of {saved} vCPUs, and this guest has {here}")]
    Vcpus {
        /// In what was saved.
        saved: usize,
        /// In the guest.
        here: usize,
    },
    /// No guest could have written that.
    #[error("Saved steal time of vCPU {vcpu} has MSR value {msr:#x}, whose reserved bits are set")]
    Reserved {
        /// Whose.
        vcpu: VcpuId,
        /// The value.
        msr: u64,
    },
    /// It was published, and is not here.
    #[error(
        "Saved steal time of vCPU {vcpu} has MSR value {msr:#x}, and nobody publishes here (try --publisher auto)"
    )]
    NobodyPublishes {
        /// Whose.
        vcpu: VcpuId,
        /// The value.
        msr: u64,
    },
}

impl SavedStealTime {
    /// Whether it can be restored into a guest of `vcpus` vCPUs whose MSR exists, or does not.
    ///
    /// # Errors
    /// [`SavedError`].
    pub fn check(&self, vcpus: usize, exists: bool) -> Result<(), SavedError> {
        if self.version != VERSION {
            return Err(SavedError::Version(self.version));
        }
        if self.vcpus.len() != vcpus {
            return Err(SavedError::Vcpus { saved: self.vcpus.len(), here: vcpus });
        }
        for (vcpu, SavedVcpu { msr, .. }) in VcpuId::first(vcpus).zip(&self.vcpus) {
            match Registration::from_msr(*msr) {
                Err(_) => return Err(SavedError::Reserved { vcpu, msr: *msr }),
                Ok(Registration::At { .. }) if !exists => {
                    return Err(SavedError::NobodyPublishes { vcpu, msr: *msr });
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(msrs: &[u64]) -> SavedStealTime {
        let vcpus = msrs.iter().map(|msr| SavedVcpu { msr: *msr, steal_ns: 5 }).collect();
        SavedStealTime { version: VERSION, vcpus, unlogged_pages: vec![0x1000] }
    }

    #[test]
    fn what_was_saved_is_read_back_from_a_document() {
        let saved = saved(&[0x1041, 0]);
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<SavedStealTime>(&text).unwrap(), saved);
    }

    #[test]
    fn other_versions_guests_and_values_that_no_guest_wrote_are_refused() {
        assert_eq!(saved(&[0x1041, 0]).check(2, true), Ok(()));
        assert_eq!(saved(&[0x1040, 0]).check(2, false), Ok(()));
        assert_eq!(saved(&[0]).check(2, true), Err(SavedError::Vcpus { saved: 1, here: 2 }));
        let vcpu = VcpuId::new(1).unwrap();
        assert_eq!(saved(&[0, 0x1043]).check(2, true), Err(SavedError::Reserved { vcpu, msr: 0x1043 }));
        let nobody = SavedError::NobodyPublishes { vcpu, msr: 0x1041 };
        assert_eq!(saved(&[0, 0x1041]).check(2, false), Err(nobody));
        let other = SavedStealTime { version: 9, ..saved(&[0]) };
        assert_eq!(other.check(1, true), Err(SavedError::Version(9)));
    }
}
