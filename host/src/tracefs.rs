//! tracefs: the kernel's description of its tracepoints.
//!
//! tracefs need not be mounted. With `CAP_SYS_ADMIN`, [`TraceFs::find`] creates a detached mount of
//! it, which appears in no directory and ends with the value.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The usual mount points.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// tracefs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceFsError {
    /// tracefs is not mounted, and mounting it failed.
    #[error(
        "Cannot find tracefs at /sys/kernel/tracing, nor mount it (it needs CONFIG_TRACING, and CAP_SYS_ADMIN or `mount -t \
         tracefs nodev /sys/kernel/tracing`)"
    )]
    NotMounted(#[source] io::Error),
    /// A file is missing, not readable for this process, or malformed.
    #[error("Cannot read {file} in tracefs (try `sudo`)")]
    Unreadable {
        /// The file's path below the mount point.
        file: PathBuf,
        /// The error of reading or parsing it.
        source: io::Error,
    },
}

/// A mount of tracefs.
#[derive(Debug)]
pub struct TraceFs {
    root: PathBuf,
    /// Keeps a detached mount alive; `root` leads through this descriptor.
    _mount: Option<OwnedFd>,
}

impl TraceFs {
    /// Finds tracefs at its usual mount points, or creates a detached mount.
    ///
    /// # Errors
    /// [`TraceFsError::NotMounted`].
    pub fn find() -> Result<Self, TraceFsError> {
        // The kernel creates the mount points empty, so their existence shows nothing. A directory
        // that this process may not search has no readable files either.
        let is_mounted = |root: &&str| Path::new(root).join("events").is_dir();
        if let Some(root) = MOUNT_POINTS.iter().find(|root| is_mounted(root)) {
            return Ok(Self { root: PathBuf::from(root), _mount: None });
        }
        let mount = mount_detached().map_err(TraceFsError::NotMounted)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Self { root, _mount: Some(mount) })
    }

    /// Reads the format of a tracepoint's record, such as `sched/sched_switch`: a line for each
    /// field.
    ///
    /// # Errors
    /// [`TraceFsError::Unreadable`].
    pub fn format(&self, tracepoint: &str) -> Result<String, TraceFsError> {
        self.read(tracepoint, "format")
    }

    /// Reads the ID of a tracepoint, such as `sched/sched_switch`, as `perf_event_open(2)` takes
    /// it.
    ///
    /// # Errors
    /// [`TraceFsError::Unreadable`], also if the file does not hold a number.
    pub fn id(&self, tracepoint: &str) -> Result<u64, TraceFsError> {
        let text = self.read(tracepoint, "id")?;
        text.trim().parse().map_err(|error| TraceFsError::Unreadable {
            file: path(tracepoint, "id"),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }

    fn read(&self, tracepoint: &str, name: &str) -> Result<String, TraceFsError> {
        let file = path(tracepoint, name);
        fs::read_to_string(self.root.join(&file)).map_err(|source| TraceFsError::Unreadable { file, source })
    }
}

fn path(tracepoint: &str, name: &str) -> PathBuf {
    Path::new("events").join(tracepoint).join(name)
}

fn mount_detached() -> io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}
