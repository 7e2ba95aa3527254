//! The monotonic clock of this process, by which all timestamps are compared.
//!
//! In a time namespace `CLOCK_MONOTONIC` is shifted. The system calls of the process apply the
//! shift: `clock_gettime(2)` and absolute times of timers, timerfd and futex. The kernel's own
//! records do not: timestamps of perf, and of BPF. [`KernelClock`] converts these.
//!
//! Source: `time_namespaces(7)`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time of `CLOCK_MONOTONIC` in the time namespace of this process. It needs no system
/// call (vDSO).
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Returns the time of `CLOCK_MONOTONIC` in the time namespace of this process, in ns.
pub fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}

/// The link in `/proc/self/ns` of the initial time namespace (Linux `PROC_TIME_INIT_INO`), which
/// has no offset.
const INITIAL_NAMESPACE: &str = "time:[4026531834]";

/// The kernel's monotonic clock: that of the initial time namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelClock {
    /// What this process's clock is ahead (ns).
    offset_ns: i64,
}

impl KernelClock {
    /// Reads the offset of this process's time namespace.
    ///
    /// # Errors
    /// `/proc` cannot be read. [`io::ErrorKind::Unsupported`]: the offset is unknown, because the
    /// kernel reports that of the namespace for children, and this process is in another one.
    pub fn of_this_process() -> io::Result<Self> {
        let folder = Path::new("/proc/self/ns");
        let link = |name: &str| -> io::Result<String> {
            Ok(fs::read_link(folder.join(name))?.to_string_lossy().into_owned())
        };
        match link("time") {
            Ok(own) if own == INITIAL_NAMESPACE => Ok(Self::default()),
            Ok(own) if own == link("time_for_children")? => {
                Self::from_offsets(&fs::read_to_string("/proc/self/timens_offsets")?)
            }
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this process and its children are in different time namespaces",
            )),
            // A kernel without time namespaces
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder.exists() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Parses `/proc/self/timens_offsets`: the name of a clock, seconds, nanoseconds.
    fn from_offsets(text: &str) -> io::Result<Self> {
        let offset = text.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next().filter(|clock| *clock == "monotonic")?;
            let (seconds, ns) = (words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
            seconds.checked_mul(1_000_000_000)?.checked_add(ns)
        });
        let offset_ns = offset.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "unexpected content of /proc/self/timens_offsets")
        })?;
        Ok(Self { offset_ns })
    }

    /// Converts a timestamp of the kernel to one of [`monotonic_ns`].
    pub fn to_monotonic_ns(self, kernel_ns: u64) -> u64 {
        kernel_ns.saturating_add_signed(self.offset_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset_ns(text: &str) -> Option<i64> {
        KernelClock::from_offsets(text).ok().map(|clock| clock.offset_ns)
    }

    #[test]
    fn offset_is_that_of_the_monotonic_clock_in_both_directions() {
        let offsets = "monotonic     1000000         5\nboottime            7         0\n";
        assert_eq!(offset_ns(offsets), Some(1_000_000_000_000_005));
        assert_eq!(offset_ns("boottime 7 0\nmonotonic -2 999999999\n"), Some(-1_000_000_001));
        let ahead = KernelClock { offset_ns: 3 };
        let behind = KernelClock { offset_ns: -3 };
        assert_eq!((ahead.to_monotonic_ns(10), behind.to_monotonic_ns(10)), (13, 7));
        assert_eq!((ahead.to_monotonic_ns(u64::MAX), behind.to_monotonic_ns(0)), (u64::MAX, 0));
    }

    #[test]
    fn malformed_offsets_are_an_error_not_zero() {
        for text in ["", "boottime 7 0\n", "monotonic x 0\n", "monotonic 1\n", "monotonic 9999999999999 0\n"]
        {
            assert_eq!(offset_ns(text), None, "{text}");
        }
    }

    #[test]
    fn clock_of_this_process_is_the_kernels_with_the_offset() {
        // Whatever namespace the test runs in: perf's test compares the two by a switch.
        assert!(KernelClock::of_this_process().is_ok());
    }
}
