//! What comes into the kernel goes out of it again, and what may not come in is told why.
#![expect(unsafe_code, reason = "asks the kernel for programs and maps by id")]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use protocol::VcpuId;
use vmm::publisher::bpf::Program;

use super::{chain, load};

#[test]
fn each_stage_of_loading_is_timed() {
    let Some(program) = load(4) else { return };
    for (stage, took) in program.timings() {
        println!("{stage:>16} {:>6} us", took.as_micros());
    }
    let total: Duration = program.timings().iter().map(|(_, took)| *took).sum();
    println!("{:>16} {:>6} us", "all", total.as_micros());
    assert!(program.timings().len() > 3 && total > Duration::ZERO);
}

/// A program or a map of the kernel's, by the id that it has for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Id {
    Program(u32),
    Map(u32),
}

impl Id {
    /// The programs and maps that process `pid` (or `self`) holds a descriptor of.
    fn held_by(pid: &str) -> HashSet<Self> {
        let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process of ours");
        let read = |info: fs::DirEntry| fs::read_to_string(info.path()).unwrap_or_default();
        let id = |line: &str| {
            let (key, value) = line.split_once(':')?;
            let value = value.trim().parse().ok()?;
            match key {
                "prog_id" => Some(Self::Program(value)),
                "map_id" => Some(Self::Map(value)),
                _ => None,
            }
        };
        infos.flatten().flat_map(|info| read(info).lines().filter_map(id).collect::<Vec<_>>()).collect()
    }

    /// The same, of a process that has loaded the program.
    fn held_by_loader(pid: &str) -> HashSet<Self> {
        let ids = Self::held_by(pid);
        assert!(ids.iter().any(|id| matches!(id, Self::Program(_))), "{ids:?}");
        assert!(ids.iter().any(|id| matches!(id, Self::Map(_))), "{ids:?}");
        assert!(ids.iter().all(|id| id.lives()), "{ids:?}");
        ids
    }

    /// Whether the kernel still has it: `BPF_PROG_GET_FD_BY_ID`, `BPF_MAP_GET_FD_BY_ID`.
    fn lives(self) -> bool {
        #[repr(C)]
        struct Attr {
            id: u32,
            next_id: u32,
            flags: u32,
        }
        let (command, id) = match self {
            Self::Program(id) => (13, id),
            Self::Map(id) => (14, id),
        };
        let attr = Attr { id, next_id: 0, flags: 0 };
        // SAFETY: the kernel reads `attr`, as long as it is said to be.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<Attr>()) };
        if fd < 0 {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT));
            return false;
        }
        let fd = libc::c_int::try_from(fd).expect("a descriptor");
        // SAFETY: a descriptor that the kernel has just made for us.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        true
    }

    /// Waits until the kernel has freed all of `ids`, which it does after an RCU grace period.
    fn wait_until_gone(ids: &HashSet<Self>) {
        for _ in 0..500 {
            if !ids.iter().any(|id| id.lives()) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("still there: {:?}", ids.iter().filter(|id| id.lives()).collect::<Vec<_>>());
    }
}

/// Runs a test of this file marked `#[ignore]`, in a process of its own.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
    command.args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// In a child: says what happened, and then lives until it is killed or its standard input ends.
#[test]
#[ignore = "a part of other tests"]
fn child_that_holds_the_program() {
    let program = Program::load(1, 1);
    let enrolled = program.as_ref().map(|program| program.enrol_current_thread(VcpuId::BOOT));
    match &enrolled {
        Ok(Ok(_)) => println!("\nholding"),
        Ok(Err(error)) => println!("\nrefused: {}", chain(error)),
        Err(error) => println!("\nrefused: {}", chain(*error)),
    }
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn killed_process_leaves_no_program_and_no_map() {
    if load(1).is_none() {
        return;
    }
    let mut child = child("lifetime::child_that_holds_the_program").spawn().expect("a child");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    assert!(output.lines().map_while(Result::ok).any(|line| line == "holding"));
    let ids = Id::held_by_loader(&child.id().to_string());
    child.kill().expect("SIGKILL");
    child.wait().expect("the child's end");
    Id::wait_until_gone(&ids);
}

#[test]
fn dropped_program_leaves_no_program_and_no_map() {
    if load(1).is_none() {
        return;
    }
    // In a child, since other tests of this process hold programs too
    let output = child("lifetime::child_that_drops_the_program").output().expect("a child");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains("gone"), "{output}");
}

#[test]
#[ignore = "a part of another test"]
fn child_that_drops_the_program() {
    let program = Program::load(1, 1).expect("the parent could");
    let enrolled = program.enrol_current_thread(VcpuId::BOOT).expect("a fresh thread");
    let ids = Id::held_by_loader("self");
    drop(enrolled);
    drop(program);
    assert!(Id::held_by("self").is_empty());
    Id::wait_until_gone(&ids);
    println!("\ngone");
}

#[test]
fn user_without_rights_is_told_which_it_takes() {
    if !fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    if fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").is_ok_and(|value| value.trim() == "0")
    {
        eprintln!("skipped: anybody may use BPF here");
        return;
    }
    let child = child("lifetime::child_that_holds_the_program");
    // Nobody may not reach the directory that we are built in
    let copy = tempfile::NamedTempFile::with_prefix("bpf-test").expect("a temporary file").into_temp_path();
    fs::copy(child.get_program(), &copy).expect("a copy of this test");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&copy)
        .args(child.get_args())
        .stdin(Stdio::null())
        .output()
        .expect("setpriv, of util-linux");
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("refused") && output.contains("CAP_BPF and CAP_PERFMON"), "{output}");
    assert!(output.contains("try `sudo`"), "{output}");
}
