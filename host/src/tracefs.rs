//! tracefs: what the kernel says of its tracepoints.
//!
//! It need not be mounted. Where it is not, who has the right to mount it gets an instance of it that lies in no directory,
//! and is gone when it is dropped.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where it is mounted, if it is.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// tracefs does not serve.
#[derive(Debug, thiserror::Error)]
pub enum TraceFsError {
    /// It is not mounted, and cannot be.
    #[error(
        "Cannot find tracefs at /sys/kernel/tracing, nor mount it (it takes CONFIG_TRACING, and CAP_SYS_ADMIN or `mount -t \
         tracefs nodev /sys/kernel/tracing`)"
    )]
    NotMounted(#[source] io::Error),
    /// A file is not there, or not for us.
    #[error("Cannot read {file} in tracefs (try `sudo`)")]
    Unreadable {
        /// The file, below the mount point.
        file: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// An id is none.
    #[error("Tracefs gives a tracepoint the id `{what}`, which is no number")]
    NotANumber {
        /// What it gives.
        what: String,
    },
}

/// See the module.
#[derive(Debug)]
pub struct TraceFs {
    root: PathBuf,
    /// What the root leads through, where it is mounted nowhere.
    _mount: Option<OwnedFd>,
}

impl TraceFs {
    /// Finds it, or mounts it nowhere.
    ///
    /// # Errors
    /// [`TraceFsError::NotMounted`].
    pub fn find() -> Result<Self, TraceFsError> {
        // An empty directory is there in any case. Who may not look into it may not read in it either.
        let is_one = |root: &&str| Path::new(root).join("events").is_dir();
        if let Some(root) = PLACES.iter().find(|root| is_one(root)) {
            return Ok(Self { root: PathBuf::from(root), _mount: None });
        }
        let mount = mount_nowhere().map_err(TraceFsError::NotMounted)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Self { root, _mount: Some(mount) })
    }

    /// The text of a file.
    ///
    /// # Errors
    /// [`TraceFsError::Unreadable`].
    pub fn read(&self, file: &Path) -> Result<String, TraceFsError> {
        fs::read_to_string(self.root.join(file))
            .map_err(|source| TraceFsError::Unreadable { file: file.to_owned(), source })
    }
}

fn mount_nowhere() -> io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}
