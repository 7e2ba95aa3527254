//! Identity of the host: kernel, processor and KVM backend. Each result records it.

use std::fs;
use std::path::Path;

use super::cpus::Cpus;

/// Kernel, processor and KVM backend of the host, as a result records them.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HostFacts {
    /// The kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// The processor's model name, from `/proc/cpuinfo`.
    pub processor: String,
    /// The virtualization that KVM uses: `vmx`, `svm`, `pvm` or `unknown`.
    pub kvm_backend: &'static str,
    /// The CPUs that this process may use; `None` if the host does not report them.
    pub cpus: Option<Cpus>,
}

impl HostFacts {
    /// Reads the facts of this host. A fact that cannot be read is `unknown`.
    pub fn probe() -> Self {
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        Self {
            kernel: kernel.unwrap_or_else(|_| "unknown".to_owned()),
            processor: processor(),
            kvm_backend: kvm_backend(),
            cpus: Cpus::allowed().ok(),
        }
    }
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|rest| rest.split_once(": ")).map(|(_, model)| model.trim().to_owned());
    model.unwrap_or_else(|| "unknown".to_owned())
}

/// Returns the backend by the KVM module that is built in or loaded.
fn kvm_backend() -> &'static str {
    let backends = [("kvm_intel", "vmx"), ("kvm_amd", "svm"), ("kvm_pvm", "pvm")];
    let here = |module: &str| Path::new("/sys/module").join(module).exists();
    backends.into_iter().find(|(module, _)| here(module)).map_or("unknown", |(_, backend)| backend)
}
