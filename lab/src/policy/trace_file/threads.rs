//! Threads of a trace: which of them are vCPUs, and the numbers of vCPUs and CPUs.

use std::collections::{BTreeMap, BTreeSet};

use regex_lite::Regex;

use crate::policy::{Cpu, Vcpu};

/// The names of vCPU threads in QEMU, Firecracker, crosvm, and in cloud-hypervisor or this monitor.
pub const VCPU_NAMES: &str = r"^(?:CPU |fc_vcpu |crosvm_vcpu|vcpu)(\d+)(?:/KVM)?$";

/// Maximum number of other threads whose names an error lists.
const MAX_LISTED: usize = 8;

/// Selects the threads of a trace that are vCPUs, by their names.
#[derive(Clone, Debug)]
pub struct ThreadPattern(Regex);

impl ThreadPattern {
    /// Threads whose names match the regular expression `text`. If it has a group, the first is the
    /// number of the vCPU.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn new(text: &str) -> Result<Self, String> {
        Regex::new(text).map(Self).map_err(|error| error.to_string())
    }
}

/// The vCPU threads and the CPUs of a trace, in the order of their first appearance.
#[derive(Debug)]
pub(super) struct Threads<'p> {
    pattern: &'p ThreadPattern,
    /// Thread IDs, with the order of their first appearance and the numbers in their names.
    vcpus: BTreeMap<u64, (usize, Option<Vcpu>)>,
    others: BTreeSet<String>,
    cpus: BTreeMap<u64, Cpu>,
}

impl<'p> Threads<'p> {
    pub(super) fn new(pattern: &'p ThreadPattern) -> Self {
        Self { pattern, vcpus: BTreeMap::new(), others: BTreeSet::new(), cpus: BTreeMap::new() }
    }

    /// Returns the index of CPU `number` of the traced host.
    pub(super) fn cpu(&mut self, number: u64) -> Cpu {
        let next = self.cpus.len();
        *self.cpus.entry(number).or_insert(next)
    }

    /// Returns the order in which the vCPU appeared that is thread `tid`; `None` for other threads.
    pub(super) fn vcpu(&mut self, name: &str, tid: u64) -> Option<usize> {
        let Some(captures) = self.pattern.0.captures(name) else {
            if self.others.len() < MAX_LISTED {
                self.others.insert(name.to_owned());
            }
            return None;
        };
        let number = captures.get(1).and_then(|number| number.as_str().parse().ok());
        let next = self.vcpus.len();
        Some(self.vcpus.entry(tid).or_insert((next, number)).0)
    }

    /// Returns the numbers of the vCPUs in the order of their appearance: those in their names, or,
    /// if one has none or two have the same, as in two guests, the order itself.
    pub(super) fn numbers(&self) -> Vec<Vcpu> {
        let mut by_order: Vec<_> = self.vcpus.values().copied().collect();
        by_order.sort_unstable();
        let named: BTreeSet<_> = by_order.iter().filter_map(|(_, number)| *number).collect();
        let are_distinct = named.len() == by_order.len();
        by_order.into_iter().map(|(order, number)| number.filter(|_| are_distinct).unwrap_or(order)).collect()
    }

    /// Returns the error for a trace without a vCPU.
    pub(super) fn none_is_a_vcpu(&self) -> String {
        let names: Vec<_> = self.others.iter().map(|name| format!("{name:?}")).collect();
        let found = if names.is_empty() { "no thread".to_owned() } else { names.join(", ") };
        format!(
            "no thread of it is a vCPU by threads={} (it has {found}; choose them by threads=REGEX)",
            self.pattern.0.as_str()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pattern: &str, names: &[&str]) -> Vec<Vcpu> {
        let pattern = ThreadPattern::new(pattern).unwrap();
        let mut threads = Threads::new(&pattern);
        for (tid, name) in (100..).zip(names) {
            threads.vcpu(name, tid);
        }
        threads.numbers()
    }

    #[test]
    fn vcpu_threads_of_known_monitors_have_the_numbers_in_their_names() {
        let names =
            ["CPU 3/KVM", "make", "fc_vcpu 1", "vcpu0", "crosvm_vcpu12", "vcpu", "CPU x/KVM", "xvcpu4"];
        assert_eq!(numbers(VCPU_NAMES, &names), [3, 1, 0, 12]);
    }

    #[test]
    fn vcpus_without_distinct_numbers_are_numbered_in_order_of_appearance() {
        assert_eq!(numbers(VCPU_NAMES, &["CPU 1/KVM", "CPU 0/KVM", "CPU 1/KVM"]), [0, 1, 2]);
        assert_eq!(numbers("^worker", &["worker-b", "worker-a", "make"]), [0, 1]);
        assert_eq!(numbers(r"^w(\d+|x)", &["w7", "wx"]), [0, 1]);
        assert_eq!(numbers(r"^w(\d+)", &["w99999999999999999999999", "w1"]), [0, 1]);
    }

    #[test]
    fn trace_without_a_vcpu_lists_the_names_that_it_has() {
        let pattern = ThreadPattern::new("^cpu").unwrap();
        let mut threads = Threads::new(&pattern);
        assert_eq!(threads.vcpu("make", 3), None);
        let error = threads.none_is_a_vcpu();
        assert!(error.contains("threads=^cpu (it has \"make\"; choose"), "{error}");
        assert!(ThreadPattern::new("(").is_err());
    }
}
