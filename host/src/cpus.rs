//! Sets of host CPUs, written as `0,2-3`, and CPU affinity.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A CPU list is malformed or not allowed, or the host refuses an affinity.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpuError {
    /// The text is not a CPU list.
    #[error("{0:?} is not a list of CPUs (write numbers and ranges, as in 0,2-3)")]
    NotAList(String),
    /// The list contains a CPU that this process may not use.
    #[error("CPU {cpu} does not exist or is not allowed for this process (allowed: {allowed})")]
    NotAllowed {
        /// The first such CPU.
        cpu: usize,
        /// The CPUs that this process may use.
        allowed: Cpus,
    },
    /// `sched_getaffinity(2)` or `sched_setaffinity(2)` failed.
    #[error("Cannot {what} the CPU affinity of a thread: {}", errno.desc())]
    Affinity {
        /// `read` or `set`.
        what: &'static str,
        /// The error of the system call.
        errno: nix::Error,
    },
}

impl CpuError {
    /// Whether the caller's CPU list is at fault, and not the host.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotAList(_) | Self::NotAllowed { .. })
    }
}

/// A set of host CPUs, never empty.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Cpus(BTreeSet<usize>);

impl Cpus {
    /// Returns the CPUs that the calling thread may use.
    ///
    /// # Errors
    /// [`CpuError::Affinity`] if `sched_getaffinity(2)` fails.
    pub fn allowed() -> Result<Self, CpuError> {
        let set = sched_getaffinity(Pid::from_raw(0))
            .map_err(|errno| CpuError::Affinity { what: "read", errno })?;
        Ok(Self((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect()))
    }

    /// Returns `self` if it is a subset of `allowed`.
    ///
    /// # Errors
    /// [`CpuError::NotAllowed`] with the first CPU that is not in `allowed`.
    pub fn within(self, allowed: &Self) -> Result<Self, CpuError> {
        match self.0.difference(&allowed.0).next() {
            Some(cpu) => Err(CpuError::NotAllowed { cpu: *cpu, allowed: allowed.clone() }),
            None => Ok(self),
        }
    }

    /// Returns the set of one CPU.
    pub fn single(cpu: usize) -> Self {
        Self(BTreeSet::from([cpu]))
    }

    /// Returns the CPUs that are not in `others`, or `None` if there are none.
    pub fn without(&self, others: &Self) -> Option<Self> {
        let left: BTreeSet<_> = self.0.difference(&others.0).copied().collect();
        (!left.is_empty()).then_some(Self(left))
    }

    /// Returns the number of CPUs.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the first `count` CPUs, at least one.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        Self(self.0.iter().copied().take(count.max(1)).collect())
    }

    /// Iterates over the CPUs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// Iterates over the CPUs in ascending order, each as a set of its own.
    pub fn each(&self) -> impl Iterator<Item = Self> + '_ {
        self.iter().map(Self::single)
    }

    /// Pins the calling thread to these CPUs.
    ///
    /// # Errors
    /// [`CpuError::Affinity`] if `sched_setaffinity(2)` fails.
    pub fn pin_this_thread(&self) -> Result<(), CpuError> {
        self.pin_thread(0)
    }

    /// Pins thread `tid` of this process to these CPUs; 0 is the calling thread.
    ///
    /// # Errors
    /// [`CpuError::Affinity`] if `sched_setaffinity(2)` fails, for instance because the thread has
    /// ended.
    pub fn pin_thread(&self, tid: libc::pid_t) -> Result<(), CpuError> {
        let failed = |errno| CpuError::Affinity { what: "set", errno };
        let mut set = CpuSet::new();
        for cpu in self.iter() {
            set.set(cpu).map_err(failed)?;
        }
        sched_setaffinity(Pid::from_raw(tid), &set).map_err(failed)
    }
}

impl FromIterator<usize> for Cpus {
    fn from_iter<T: IntoIterator<Item = usize>>(cpus: T) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl FromStr for Cpus {
    type Err = CpuError;

    fn from_str(list: &str) -> Result<Self, CpuError> {
        let bad = || CpuError::NotAList(list.to_owned());
        let mut cpus = BTreeSet::new();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| bad())?;
            let last: usize = last.trim().parse().map_err(|_| bad())?;
            if first > last || last >= CpuSet::count() {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_reads_and_prints_with_ranges_joined() {
        assert_eq!("3,0,1,2,7".parse::<Cpus>().unwrap().to_string(), "0-3,7");
        assert_eq!(" 4 , 9-9".parse::<Cpus>().unwrap().to_string(), "4,9");
    }

    #[test]
    fn malformed_list_is_refused() {
        for list in ["", "a", "1-", "3-1", "-1", "0,,1", "0-99999999", "18446744073709551616"] {
            assert_eq!(list.parse::<Cpus>(), Err(CpuError::NotAList(list.to_owned())), "{list}");
        }
    }

    #[test]
    fn cpu_that_is_not_allowed_is_named() {
        let allowed: Cpus = "0-1".parse().unwrap();
        let asked: Cpus = "1-3".parse().unwrap();
        assert_eq!(asked.within(&allowed), Err(CpuError::NotAllowed { cpu: 2, allowed: allowed.clone() }));
        assert_eq!("1".parse::<Cpus>().unwrap().within(&allowed).unwrap().count(), 1);
    }
}
