//! Saved steal time: what a snapshot must hold beside guest memory.
//!
//! The MSR's value is the library's to save. Steal lies in guest memory and is saved with it. But
//! guest memory may be older than the MSR (live migration), and steal must never decrease. So steal
//! is saved too, and restoring raises a record that has less.
//!
//! The run delay of a vCPU thread is not saved. A restored vCPU continues with the run delay of its
//! new thread. Time in which the guest is paused is not steal.

use protocol::VcpuId;
use protocol::kvm::Registration;
use serde::{Deserialize, Serialize};

use crate::error::StealTimeError;

/// Version of the saved form. Version 1 listed the unlogged pages always.
pub const VERSION: u32 = 2;

/// The steal time of all vCPUs of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStealTime {
    /// The version of this form: [`VERSION`].
    pub version: u32,
    /// Each vCPU, from the boot vCPU on.
    pub vcpus: Vec<SavedVcpu>,
    /// Guest pages (GPA) whose writes KVM's dirty log misses. A snapshot that follows the log must
    /// treat them as dirty. `None`, in JSON `null`: all pages of RAM.
    pub unlogged_pages: Option<Vec<u64>>,
}

/// The steal time of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// The value of the MSR; 0 if the MSR does not exist.
    pub msr: u64,
    /// Steal in the record (ns); 0 without a record.
    pub steal_ns: u64,
}

impl SavedStealTime {
    /// Checks that this can be restored into a guest with `vcpus` vCPUs. `exists` is whether that
    /// guest has the MSR.
    ///
    /// # Errors
    /// [`StealTimeError::SavedVersion`], [`SavedVcpus`](StealTimeError::SavedVcpus),
    /// [`SavedReserved`](StealTimeError::SavedReserved) or
    /// [`SavedUnpublished`](StealTimeError::SavedUnpublished).
    pub fn check(&self, vcpus: usize, exists: bool) -> Result<(), StealTimeError> {
        if self.version != VERSION {
            return Err(StealTimeError::SavedVersion { saved: self.version, supported: VERSION });
        }
        if self.vcpus.len() != vcpus {
            return Err(StealTimeError::SavedVcpus { saved: self.vcpus.len(), here: vcpus });
        }
        for (vcpu, SavedVcpu { msr, .. }) in VcpuId::first(vcpus).zip(&self.vcpus) {
            match Registration::from_msr(*msr) {
                Err(_) => return Err(StealTimeError::SavedReserved { vcpu, msr: *msr }),
                Ok(Registration::At { .. }) if !exists => {
                    return Err(StealTimeError::SavedUnpublished { vcpu, msr: *msr });
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
        SavedStealTime { version: VERSION, vcpus, unlogged_pages: Some(vec![0x1000]) }
    }

    #[test]
    fn saved_form_survives_serialization() {
        let saved = saved(&[0x1041, 0]);
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<SavedStealTime>(&text).unwrap(), saved);
    }

    #[test]
    fn other_versions_other_guests_and_impossible_values_are_refused() {
        use StealTimeError::{SavedReserved, SavedUnpublished, SavedVcpus, SavedVersion};

        let one = VcpuId::new(1).unwrap();
        assert!(saved(&[0x1041, 0]).check(2, true).is_ok());
        assert!(saved(&[0x1040, 0]).check(2, false).is_ok());
        let refused = saved(&[0]).check(2, true);
        assert!(matches!(refused, Err(SavedVcpus { saved: 1, here: 2 })), "{refused:?}");
        let refused = saved(&[0, 0x1043]).check(2, true);
        assert!(matches!(refused, Err(SavedReserved { vcpu, msr: 0x1043 }) if vcpu == one), "{refused:?}");
        let refused = saved(&[0, 0x1041]).check(2, false);
        assert!(matches!(refused, Err(SavedUnpublished { vcpu, msr: 0x1041 }) if vcpu == one), "{refused:?}");
        let refused = SavedStealTime { version: 9, ..saved(&[0]) }.check(1, true);
        assert!(matches!(refused, Err(SavedVersion { saved: 9, supported: VERSION })), "{refused:?}");
    }
}
