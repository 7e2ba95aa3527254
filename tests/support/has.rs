//! What a test needs of the host.
//!
//! A test that needs KVM fails without it, unless `VMM_TESTS_WITHOUT_KVM=1` is set: then it skips.
//! A test that needs anything else skips without it. It prints a line that begins with `SKIPPED`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use host::perf::SwitchLog;
use host::thread::own_tid;
use steal_time::bpf::{BpfError, Program};

use super::cpus;

/// Returns from the calling test, which skips, unless the host has everything that is named:
/// functions of [`has`](self).
macro_rules! needs {
    ($($need:ident $(($argument:expr))?),+ $(,)?) => {
        if $(!$crate::support::has::$need($($argument)?))||+ {
            return;
        }
    };
}
pub(crate) use needs;

/// Prints that the calling test skips, and why.
pub(crate) fn skip(why: &str) {
    let thread = thread::current();
    eprintln!("SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// `/dev/kvm`.
///
/// # Panics
/// If it is missing and `VMM_TESTS_WITHOUT_KVM` is not 1.
pub(crate) fn kvm() -> bool {
    if Path::new("/dev/kvm").exists() {
        return true;
    }
    let is_expected = std::env::var_os("VMM_TESTS_WITHOUT_KVM").is_some_and(|value| value == "1");
    assert!(is_expected, "/dev/kvm is missing (set VMM_TESTS_WITHOUT_KVM=1 to skip the tests that need it)");
    skip("there is no /dev/kvm");
    false
}

/// KVM, and perf records of the context switches of a thread.
pub(crate) fn perf() -> bool {
    kvm()
        && SwitchLog::of_thread(own_tid(), 1).map_or_else(
            |error| {
                skip(&error.to_string());
                false
            },
            |_| true,
        )
}

/// KVM, and the right to load the BPF publisher.
pub(crate) fn bpf() -> bool {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    can_load(&REFUSAL, Program::load)
}

/// KVM, and the right to load the classic BPF program, which also needs tracefs.
pub(crate) fn classic_bpf() -> bool {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    can_load(&REFUSAL, Program::load_classic)
}

/// Held while a program is loaded by [`bpf`], and by tests that count the programs of this process.
pub(crate) static PROBE: Mutex<()> = Mutex::new(());

fn can_load(
    refusal: &OnceLock<Option<String>>,
    load: impl FnOnce(usize, usize) -> Result<Program, BpfError>,
) -> bool {
    if !kvm() {
        return false;
    }
    let probe = || {
        let _guard = PROBE.lock().unwrap_or_else(PoisonError::into_inner);
        load(1, 1).err().map(|error| error.to_string())
    };
    refusal.get_or_init(probe).as_ref().is_none_or(|refusal| {
        skip(refusal);
        false
    })
}

/// The right to create a time namespace, and `unshare` that knows of them.
pub(crate) fn time_namespaces() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args(SHIFTED_CLOCK).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    let can = unshare.status().is_ok_and(|status| status.success());
    if !can {
        skip("no time namespace can be created");
    }
    can
}

/// Options of `unshare` for a time namespace whose clocks are far ahead, each by another time.
pub(crate) const SHIFTED_CLOCK: [&str; 6] =
    ["--time", "--fork", "--monotonic", "1000000", "--boottime", "3000000"];

/// A program in the search path.
pub(crate) fn program(name: &str) -> bool {
    let found =
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// Two host CPUs.
pub(crate) fn two_cpus() -> bool {
    let has_two = cpus().count() >= 2;
    if !has_two {
        skip("only one CPU may be used");
    }
    has_two
}
