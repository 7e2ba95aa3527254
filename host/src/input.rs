//! Input files: opened without waiting, and only if they are regular files.
//!
//! Opening a FIFO waits for a writer, and reading a device may never end. Both would hold a command
//! before it has begun. A regular file is always ready, can be read again, and has a length.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens the regular file at `path` for reading. Returns it with its length (bytes).
///
/// # Errors
/// The file cannot be opened, or it is no regular file. The text names its type and the cure.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    // Without a writer, the open of a FIFO blocks unless it is nonblocking. A terminal must not
    // become the controlling one.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok((file, metadata.len()));
    }
    let kind = name_of(metadata.file_type());
    Err(io::Error::other(format!("it is a {kind}, not a regular file (copy its content to one)")))
}

/// Reads the regular file at `path` as text. It may have up to `limit` bytes.
///
/// # Errors
/// See [`open_regular`]; the file is longer, or no text in UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let (file, length) = open_regular(path)?;
    let mut text = String::new();
    // A file may grow meanwhile, or report no length, as in /proc.
    let read =
        if length > limit { limit + 1 } else { file.take(limit + 1).read_to_string(&mut text)? as u64 };
    if read > limit {
        let limit = if limit < 1 << 20 { format!("{limit} bytes") } else { format!("{} MiB", limit >> 20) };
        return Err(io::Error::other(format!("it is longer than the limit of {limit} (shorten it)")));
    }
    Ok(text)
}

/// Returns the name of a file type, for messages.
pub fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "directory"
    } else if kind.is_symlink() {
        "symbolic link"
    } else if kind.is_fifo() {
        "FIFO"
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_block_device() {
        "block device"
    } else if kind.is_socket() {
        "socket"
    } else {
        "regular file"
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn text_up_to_the_limit_is_read_and_a_longer_one_is_refused_with_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert_eq!(
            read_text(&path, 4).unwrap_err().to_string(),
            "it is longer than the limit of 4 bytes (shorten it)"
        );
        let sparse = File::create(&path).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let refusal = read_text(&path, 64 << 20).unwrap_err().to_string();
        assert!(refusal.contains("limit of 64 MiB"), "{refusal}");
    }

    #[test]
    fn regular_file_is_opened_with_its_length_and_other_types_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (file, fifo) = (folder.path().join("file"), folder.path().join("fifo"));
        fs::write(&file, [1, 2, 3]).unwrap();
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert_eq!(open_regular(&file).unwrap().1, 3);
        for (path, kind) in [
            (fifo.as_path(), "FIFO"),
            (folder.path(), "directory"),
            (Path::new("/dev/zero"), "character device"),
        ] {
            let refusal = open_regular(path).unwrap_err().to_string();
            assert!(refusal.contains(kind) && refusal.contains("copy"), "{refusal}");
        }
        assert_eq!(open_regular(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
