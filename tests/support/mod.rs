//! What the integration tests share: the monitor as a process, guests in this process, fixtures, and the rules for
//! skipping.
//!
//! A test that needs KVM fails where there is none, unless `VMM_TESTS_WITHOUT_KVM=1` is set; then it says that it
//! skips. A test that needs something else of the machine (BPF rights, QEMU, a tool) says that it skips. Lines that
//! begin with `SKIPPED` can be counted.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod elf;

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use host::cpus::Cpus;
use host::perf::SwitchLog;
use host::thread::own_tid;
use tempfile::TempDir;

/// No guest of a test runs longer; one that does has hung.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Says that the calling test skips, and why.
pub(crate) fn skip(why: &str) {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED {name}: {why}");
}

/// Whether there is a KVM to test with.
///
/// # Panics
/// Where there is none, and nobody has said that this is meant.
pub(crate) fn has_kvm() -> bool {
    if Path::new("/dev/kvm").exists() {
        return true;
    }
    let meant = std::env::var_os("VMM_TESTS_WITHOUT_KVM").is_some_and(|value| value == "1");
    assert!(meant, "/dev/kvm is missing (set VMM_TESTS_WITHOUT_KVM=1 to skip what needs it)");
    skip("there is no /dev/kvm");
    false
}

/// Whether perf may record switches here.
pub(crate) fn has_perf() -> bool {
    if !has_kvm() {
        return false;
    }
    match SwitchLog::of_thread(own_tid(), 1) {
        Ok(_) => true,
        Err(error) => {
            skip(&error.to_string());
            false
        }
    }
}

/// Whether `program` can be run here.
pub(crate) fn has_program(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}

/// Whether two CPUs may be used.
pub(crate) fn has_two_cpus() -> bool {
    let enough = cpus().count() >= 2;
    if !enough {
        skip("only one CPU may be used");
    }
    enough
}

/// The CPUs that may be used.
pub(crate) fn cpus() -> Cpus {
    Cpus::allowed().expect("the CPUs of this process can be read")
}

/// What became of a process.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status; `None` when a signal ended it.
    pub(crate) status: Option<i32>,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained.
    pub(crate) stderr: String,
}

/// Runs `command` to its end.
///
/// # Panics
/// If it does not end within [`LIMIT`].
pub(crate) fn end_of(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let pid = child.id();
    let waiting = thread::spawn(move || child.wait_with_output());
    let began = Instant::now();
    while !waiting.is_finished() {
        if began.elapsed() > LIMIT {
            kill(pid, "KILL");
            panic!("{command:?} did not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let Output { status, stdout, stderr } =
        waiting.join().expect("the waiting thread ends").expect("it can be waited for");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Sends a signal by its name.
pub(crate) fn kill(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(sent.expect("kill is installed").success());
}

/// A process that runs. It does not outlive the test, however that ends.
pub(crate) struct Running(Child);

impl Running {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// What it prints, if that is piped and nobody has taken it yet.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`.
pub(crate) fn start(command: &mut Command) -> Running {
    Running(command.spawn().expect("the command starts"))
}

/// Waits for a process to end, and gives its exit status; `None` when a signal ended it.
///
/// # Panics
/// If it does not within [`LIMIT`].
pub(crate) fn wait_for(mut running: Running) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = running.0.try_wait().expect("it can be waited for") {
            return status.code();
        }
        assert!(began.elapsed() < LIMIT, "the process did not end");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a process has used `time` of CPU.
///
/// # Panics
/// If it has not within [`LIMIT`], or is gone.
pub(crate) fn wait_for_cpu_time(running: &Running, time: Duration) {
    let began = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.id())).expect("it runs");
        // After the name, which ends with the last parenthesis: state, ten more, then utime and stime in ticks of 10 ms.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        if Duration::from_millis(10 * ticks) >= time {
            return;
        }
        assert!(began.elapsed() < LIMIT, "the process does nothing");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Does what needs the CPUs, one test at a time: each would take the other's.
pub(crate) fn alone<R>(act: impl FnOnce() -> R) -> R {
    static CPUS: Mutex<()> = Mutex::new(());
    let _guard = CPUS.lock().unwrap_or_else(PoisonError::into_inner);
    act()
}

/// A folder with a fixture in it.
pub(crate) struct Fixture {
    _folder: TempDir,
    /// The fixture's file.
    pub(crate) path: PathBuf,
}

impl Fixture {
    /// A file with this content.
    pub(crate) fn file(name: &str, content: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("a file can be written");
        Self { _folder: folder, path }
    }

    /// An ELF kernel, assembled and linked from `tests/fixtures/` as if nobody knew of this monitor.
    ///
    /// # Panics
    /// If the C compiler's assembler and linker, which building this workspace needs anyway, do not make it.
    pub(crate) fn assembled(source: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join(source).with_extension("elf");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(source);
        let link =
            ["-Wl,--build-id=none", "-Wl,-Ttext=0x100000", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"];
        let mut cc = Command::new("cc");
        cc.args(["-nostdlib", "-static", "-no-pie", "-Wl,-e,start"])
            .args(link)
            .arg("-o")
            .arg(&path)
            .arg(source);
        let built = cc.output().expect("cc is installed");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self { _folder: folder, path }
    }

    /// The path, as an argument.
    pub(crate) fn arg(&self) -> &str {
        self.path.to_str().expect("temporary folders have plain names")
    }
}
