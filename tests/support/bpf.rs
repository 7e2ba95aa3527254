//! What tests of the BPF publisher share.

use std::sync::OnceLock;

use steal_time::bpf::{BpfError, Program};

use super::{has_kvm, skip};

/// Whether the BPF publisher can be tested: KVM, and the rights to load a program.
pub(crate) fn has_bpf() -> bool {
    static ERROR: OnceLock<Option<String>> = OnceLock::new();
    can_load(&ERROR, Program::load)
}

/// Whether its classic program can: it takes tracefs, too.
pub(crate) fn has_classic_bpf() -> bool {
    static ERROR: OnceLock<Option<String>> = OnceLock::new();
    can_load(&ERROR, Program::load_classic)
}

fn can_load(
    error: &OnceLock<Option<String>>,
    load: impl FnOnce(usize, usize) -> Result<Program, BpfError>,
) -> bool {
    if !has_kvm() {
        return false;
    }
    match error.get_or_init(|| load(1, 1).err().map(|error| error.to_string())) {
        None => true,
        Some(error) => {
            skip(error);
            false
        }
    }
}
