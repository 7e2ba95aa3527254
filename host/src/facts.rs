//! What kind of host this is: every result names it.

use std::fs;
use std::path::Path;

use super::cpus::Cpus;

/// The host, as results name it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HostFacts {
    /// Kernel release.
    pub kernel: String,
    /// Processor, as it calls itself.
    pub processor: String,
    /// What KVM is built on here: `vmx`, `svm`, `pvm`, or `unknown`.
    pub kvm_backend: &'static str,
    /// CPUs that this process may use.
    pub cpus: Option<Cpus>,
}

impl HostFacts {
    /// Looks around. What cannot be found out is said to be unknown.
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

/// By the module that drives KVM, built in or loaded.
fn kvm_backend() -> &'static str {
    let backends = [("kvm_intel", "vmx"), ("kvm_amd", "svm"), ("kvm_pvm", "pvm")];
    let here = |module: &str| Path::new("/sys/module").join(module).exists();
    backends.into_iter().find(|(module, _)| here(module)).map_or("unknown", |(_, backend)| backend)
}
