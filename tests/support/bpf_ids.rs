//! BPF programs and maps of the kernel, by their ids.

#![expect(unsafe_code, reason = "bpf(2) finds programs and maps by id")]

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// A BPF program or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    /// A program.
    Program(u32),
    /// A map.
    Map(u32),
}

/// The attributes of bpf(2) for the commands below.
#[repr(C)]
struct Attr {
    id: u32,
    next_id: u32,
    flags: u32,
}

const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_int> {
    // SAFETY: for these commands the kernel reads and writes only `attr`, whose size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<Attr>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        libc::c_int::try_from(result).map_err(io::Error::other)
    }
}

impl Id {
    /// All programs of the kernel.
    pub(crate) fn all_programs() -> HashSet<Self> {
        let mut programs = HashSet::new();
        let mut attr = Attr { id: 0, next_id: 0, flags: 0 };
        while bpf(BPF_PROG_GET_NEXT_ID, &mut attr).is_ok() {
            programs.insert(Self::Program(attr.next_id));
            attr.id = attr.next_id;
        }
        programs
    }

    /// The programs and maps of which process `pid` (or `self`) has descriptors.
    pub(crate) fn held_by(pid: &str) -> HashSet<Self> {
        let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process lives");
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

    /// Whether the kernel still has it.
    pub(crate) fn lives(self) -> bool {
        let (command, id) = match self {
            Self::Program(id) => (BPF_PROG_GET_FD_BY_ID, id),
            Self::Map(id) => (BPF_MAP_GET_FD_BY_ID, id),
        };
        match bpf(command, &mut Attr { id, next_id: 0, flags: 0 }) {
            Ok(fd) => {
                // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
                true
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
                false
            }
        }
    }

    /// Waits until the kernel has freed all of `ids`, which takes an RCU grace period.
    pub(crate) fn wait_until_gone(ids: &HashSet<Self>) {
        for _ in 0..500 {
            if !ids.iter().any(|id| id.lives()) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("still there: {:?}", ids.iter().filter(|id| id.lives()).collect::<Vec<_>>());
    }
}
