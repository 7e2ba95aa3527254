//! Images: the bytes of a payload or an initrd, in memory or in a file.
//!
//! Segments of a file are read straight into guest memory. A buffer in between would fault in each
//! page twice, which takes a tenth of the start-up time of a guest.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use host::input;
use vm_memory::ByteValued;

use crate::error::VmmError;
use crate::memory::Ram;

/// The bytes of a payload or an initrd.
#[derive(Debug)]
pub struct Image {
    what: &'static str,
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Part of this program.
    Bytes(Cow<'static, [u8]>),
    /// A regular file and its length (bytes).
    File(File, u64),
}

impl Image {
    /// Creates a payload image from `bytes`. `name` stands for a path in messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { what: "payload", path: name.into(), content: Content::Bytes(bytes.into()) }
    }

    /// Opens the file at `path`. `what` is `payload` or `initrd`, for messages.
    ///
    /// # Errors
    /// [`VmmError::Host`] when the file cannot be opened, or is no regular file.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, VmmError> {
        let opened = input::open_regular(path);
        let (file, length) = opened.map_err(VmmError::cannot(format!("read {what} {}", path.display())))?;
        Ok(Self { what, path: path.to_owned(), content: Content::File(file, length) })
    }

    /// Returns the path or name, for messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Returns the length in bytes.
    pub(super) fn len(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, length) => *length,
        }
    }

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end of the image, or the error of the host.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.content {
            Content::Bytes(bytes) => {
                let part = slice(bytes, offset..offset.saturating_add(buffer.len() as u64))?;
                buffer.copy_from_slice(part);
                Ok(())
            }
            Content::File(file, _) => file.read_exact_at(buffer, offset),
        }
    }

    /// Returns the object at `offset`. Errors are those of [`Image::read_at`].
    pub(super) fn read_object<T: ByteValued + Default>(&self, offset: u64) -> io::Result<T> {
        let mut object = T::default();
        self.read_at(offset, object.as_mut_slice())?;
        Ok(object)
    }

    /// Copies the bytes at `part` to guest memory at `gpa`.
    ///
    /// # Errors
    /// [`VmmError::Host`] when the file is shorter by now, [`VmmError::OutsideMemory`] when `ram`
    /// does not hold the bytes.
    pub(super) fn load(&self, part: Range<u64>, ram: &Ram, gpa: u64) -> Result<(), VmmError> {
        let cannot_read = || VmmError::cannot(format!("read {} {}", self.what, self.path.display()));
        match &self.content {
            Content::Bytes(bytes) => ram.write(gpa, slice(bytes, part).map_err(cannot_read())?),
            Content::File(file, _) => {
                let mut file = file;
                file.seek(SeekFrom::Start(part.start)).map_err(cannot_read())?;
                ram.read_from(gpa, file, part.end - part.start)?.map_err(cannot_read())
            }
        }
    }
}

fn slice(bytes: &[u8], part: Range<u64>) -> io::Result<&[u8]> {
    let ends = usize::try_from(part.start).ok().zip(usize::try_from(part.end).ok());
    ends.and_then(|(start, end)| bytes.get(start..end)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file of 10,000 bytes, each the low byte of its offset.
    fn file() -> (tempfile::TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let bytes: Vec<u8> = (0..10_000_u32).map(|offset| offset.to_le_bytes()[0]).collect();
        fs::write(&path, bytes).unwrap();
        let image = Image::open("payload", &path).unwrap();
        (folder, image)
    }

    #[expect(unsafe_code, reason = "reads guest memory")]
    fn byte_at(ram: &Ram, gpa: u64) -> u8 {
        let page = ram.page_hva(gpa & !0xfff).unwrap();
        let offset = usize::try_from(gpa & 0xfff).unwrap();
        // SAFETY: the offset lies within the page.
        let byte = unsafe { page.add(offset) };
        // SAFETY: the page is RAM, mapped while `ram` lives, and no other thread accesses it.
        unsafe { byte.read() }
    }

    #[test]
    fn part_of_a_file_is_loaded_to_its_address_and_not_beside_it() {
        let (ram, (_folder, image)) = (Ram::new(1).unwrap(), file());
        assert_eq!(image.len(), 10_000);
        image.load(3..8_003, &ram, 0x2001).unwrap();
        let bytes = [0x2000, 0x2001, 0x2001 + 7_999, 0x2001 + 8_000].map(|gpa| byte_at(&ram, gpa));
        assert_eq!(bytes, [0, 3, 66, 0]);
    }

    #[test]
    fn truncated_file_and_small_memory_are_errors() {
        let (ram, (folder, image)) = (Ram::new(1).unwrap(), file());
        let outside = image.load(0..10_000, &ram, 0x10_0000 - 9_999).unwrap_err();
        assert!(matches!(outside, VmmError::OutsideMemory { .. }), "{outside:?}");
        fs::write(folder.path().join("image"), [1; 100]).unwrap();
        let short = image.load(0..10_000, &ram, 0).unwrap_err();
        assert!(short.to_string().starts_with("Cannot read payload "), "{short:?}");
    }

    #[test]
    fn bytes_in_memory_are_loaded_like_a_file() {
        let (ram, image) = (Ram::new(1).unwrap(), Image::from_bytes("test", &[1, 2, 3]));
        image.load(1..3, &ram, 0x1000).unwrap();
        assert_eq!([0x1000, 0x1001, 0x1002].map(|gpa| byte_at(&ram, gpa)), [2, 3, 0]);
        assert!(image.load(1..4, &ram, 0x1000).is_err());
    }
}
