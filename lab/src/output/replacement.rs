//! Replacement of a file as a whole: its new content appears at once, or not at all.
//!
//! Where the file system has `O_TMPFILE`, the new file has no name until it is complete, and a
//! killed process leaves nothing behind. Elsewhere (NFS, FAT) it is named from the beginning.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Statx, StatxFlags, Uid, fchmod, fchown, fstat, linkat, openat, renameat,
    statx, unlinkat,
};
use rustix::io::Errno;

/// Mode of a file that does not exist yet, before the umask.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// Maximum number of names that are tried beside a file.
const NAMES: u32 = 1 << 16;

/// New content of a file, beside its place until it is complete.
#[derive(Debug)]
pub(super) struct Replacement {
    /// The file's folder. It stays the same when its path is renamed or mounted over.
    folder: OwnedFd,
    /// The file's name in the folder.
    name: OsString,
    content: File,
    /// The temporary name of `content`, where it needs one.
    temporary: Option<Temporary>,
}

/// A name in a folder, which is removed when this is dropped.
#[derive(Debug)]
struct Temporary {
    folder: OwnedFd,
    name: String,
}

impl Replacement {
    /// Creates the replacement of the file at `path`, which is open as `existing` if it exists. It
    /// will have the same owner, group and permissions.
    ///
    /// # Errors
    /// The folder cannot be written, or the file cannot be replaced by one like it.
    pub(super) fn of(path: &Path, existing: Option<&File>) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it is a directory (name a file)"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        if let Some(existing) = existing {
            refuse_mount_point(existing, &folder)?;
        }
        let (content, temporary) = create(&folder)?;
        let replacement = Self { folder, name: name.to_owned(), content, temporary };
        if let Some(existing) = existing {
            replacement.take_permissions_of(existing)?;
        }
        Ok(replacement)
    }

    /// Whether `other` replaces the same file.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let identity = |folder: &OwnedFd| fstat(folder).ok().map(|folder| (folder.st_dev, folder.st_ino));
        self.name == other.name && identity(&self.folder) == identity(&other.folder)
    }

    /// Writes `bytes`, and puts the file in its place.
    ///
    /// # Errors
    /// The host's, such as a full disk. The old file is unchanged then.
    pub(super) fn write(mut self, bytes: &[u8]) -> io::Result<()> {
        self.fill(bytes)?;
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => match self.link(&self.name) {
                Err(Errno::EXIST) => Temporary::new(&self.folder, |name| self.link(name.as_ref()))?.0,
                linked => return Ok(linked?),
            },
        };
        Ok(renameat(&self.folder, &temporary.name, &self.folder, &self.name)?)
    }

    /// Writes `bytes` beside the file, to the disk.
    fn fill(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.content.write_all(bytes)?;
        self.content.sync_all()
    }

    /// Gives the nameless content a name in the folder.
    fn link(&self, name: &OsStr) -> Result<(), Errno> {
        linkat(CWD, own_path(&self.content), &self.folder, name, AtFlags::SYMLINK_FOLLOW)
    }

    fn take_permissions_of(&self, existing: &File) -> io::Result<()> {
        let (old, new) = (existing.metadata()?, self.content.metadata()?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            let owner = (Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())));
            fchown(&self.content, owner.0, owner.1).map_err(|error| {
                let why =
                    "it belongs to another user or group, which its replacement cannot (remove it first)";
                io::Error::new(io::Error::from(error).kind(), why)
            })?;
        }
        fchmod(&self.content, Mode::from_raw_mode(old.mode()))?;
        Ok(())
    }
}

impl Temporary {
    /// Calls `create` with names until it has created one that is free. Returns its result.
    fn new<T>(folder: &OwnedFd, mut create: impl FnMut(&str) -> Result<T, Errno>) -> io::Result<(Self, T)> {
        for number in 0..NAMES {
            let name = format!(".vmm-lab.{}.{number}", process::id());
            match create(&name) {
                Err(Errno::EXIST) => {}
                created => {
                    let created = created?;
                    return Ok((Self { folder: folder.try_clone()?, name }, created));
                }
            }
        }
        Err(Errno::EXIST.into())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

/// Creates an empty file in `folder`, without a name if the file system can.
fn create(folder: &OwnedFd) -> io::Result<(File, Option<Temporary>)> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = openat(folder, ".", flags | OFlags::TMPFILE, MODE) {
        // Its later name comes by way of /proc, which may be missing.
        if Path::new(&own_path(&file)).exists() {
            return Ok((file.into(), None));
        }
    }
    let exclusive = flags | OFlags::CREATE | OFlags::EXCL;
    let (temporary, file) = Temporary::new(folder, |name| openat(folder, name, exclusive, MODE))?;
    Ok((file.into(), Some(temporary)))
}

/// Returns a path that leads to an open file.
fn own_path(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Refuses a file on which something is mounted: it cannot be renamed over.
fn refuse_mount_point(file: &File, folder: &OwnedFd) -> io::Result<()> {
    let mount = |fd: BorrowedFd<'_>| statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let has_mount = |found: &Statx| found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let (file, folder) = (mount(file.as_fd())?, mount(folder.as_fd())?);
    // Kernels before Linux 5.8 do not report mounts. The rename fails then.
    if has_mount(&file) && has_mount(&folder) && file.stx_mnt_id != folder.stx_mnt_id {
        return Err(io::Error::other(
            "it is a mount point, and cannot be replaced (mount its folder instead)",
        ));
    }
    Ok(())
}
