//! Images: a payload's or an initrd's bytes, wherever they are, and their way into guest memory.
//!
//! Of a file only what is needed is read: the headers, and then each segment straight to where it belongs. A buffer in
//! between would cost a page fault for each page, twice, which is a tenth of the time that a guest takes to start.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use object::read::ReadCache;

use super::error::LoadError;
use crate::memory::{MemoryError, Ram};

/// So much is read of what is no plain file, and may have no end.
const MOST_READ: u64 = 256 << 20;

/// An image.
#[derive(Debug)]
pub struct Image {
    what: &'static str,
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// In memory: part of this program, or read from what is no plain file (a pipe, say), which can be done only once.
    Bytes(Cow<'static, [u8]>),
    /// A plain file, and its length.
    File(File, u64),
}

impl Image {
    /// Bytes that this program carries, by a name for messages.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { what: "payload", path: name.into(), content: Content::Bytes(bytes.into()) }
    }

    /// The file at `path`, which is `what`: `payload` or `initrd`.
    ///
    /// # Errors
    /// [`LoadError::Read`].
    pub fn open(what: &'static str, path: &Path) -> Result<Self, LoadError> {
        let content = Content::of_file(path);
        let content = content.map_err(|source| LoadError::Read { what, path: path.to_owned(), source })?;
        Ok(Self { what, path: path.to_owned(), content })
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Its length (bytes).
    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, len) => *len,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For reading here and there in it.
    pub(super) fn reader(&self) -> Reader<'_> {
        ReadCache::new(match &self.content {
            Content::Bytes(bytes) => Box::new(Cursor::new(bytes)),
            Content::File(file, _) => Box::new(file),
        })
    }

    /// Copies `part` of it to guest memory at `gpa`.
    ///
    /// # Errors
    /// [`LoadError::Read`] when a file has become shorter, [`LoadError::Memory`] where it does not fit.
    pub fn load(&self, part: Range<u64>, ram: &Ram, gpa: u64) -> Result<(), LoadError> {
        let loaded = match &self.content {
            Content::Bytes(bytes) => write(bytes, &part, ram, gpa),
            Content::File(file, _) => read(file, &part, ram, gpa),
        };
        loaded.map_err(|error| match error {
            MemoryError::Source(source) => {
                LoadError::Read { what: self.what, path: self.path.clone(), source }
            }
            error => error.into(),
        })
    }
}

fn write(bytes: &[u8], part: &Range<u64>, ram: &Ram, gpa: u64) -> Result<(), MemoryError> {
    let ends = usize::try_from(part.start).ok().zip(usize::try_from(part.end).ok());
    let bytes = ends.and_then(|(start, end)| bytes.get(start..end));
    ram.write(gpa, bytes.ok_or_else(|| MemoryError::Source(io::ErrorKind::UnexpectedEof.into()))?)
}

fn read(mut file: &File, part: &Range<u64>, ram: &Ram, gpa: u64) -> Result<(), MemoryError> {
    file.seek(SeekFrom::Start(part.start)).map_err(MemoryError::Source)?;
    ram.read_from(gpa, file, part.end - part.start)
}

/// Reads, anywhere.
pub(super) trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Reads from an image, and remembers what it has read.
pub(super) type Reader<'a> = ReadCache<Box<dyn ReadSeek + 'a>>;

impl Content {
    fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Ok(Self::File(file, metadata.len()));
        }
        let mut bytes = Vec::new();
        file.take(MOST_READ + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST_READ {
            let why = format!("it is no plain file, and gives more than {} MiB", MOST_READ >> 20);
            return Err(io::Error::other(why));
        }
        Ok(Self::Bytes(bytes.into()))
    }
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

    #[expect(unsafe_code, reason = "looks at guest memory")]
    fn byte_at(ram: &Ram, gpa: u64) -> u8 {
        let page = ram.page_hva(gpa & !0xfff).unwrap();
        let offset = usize::try_from(gpa & 0xfff).unwrap();
        // SAFETY: the offset lies within the page.
        let byte = unsafe { page.add(offset) };
        // SAFETY: the page is RAM, which is mapped as long as `ram` lives, and nobody else has it.
        unsafe { byte.read() }
    }

    #[test]
    fn part_of_a_file_goes_where_it_belongs_and_nothing_beside_it() {
        let (ram, (_folder, image)) = (Ram::new(1).unwrap(), file());
        assert_eq!(image.len(), 10_000);
        image.load(3..8_003, &ram, 0x2001).unwrap();
        let bytes = [0x2000, 0x2001, 0x2001 + 7_999, 0x2001 + 8_000].map(|gpa| byte_at(&ram, gpa));
        assert_eq!(bytes, [0, 3, 66, 0]);
    }

    #[test]
    fn file_that_has_become_shorter_and_memory_that_is_too_small_are_errors() {
        let (ram, (folder, image)) = (Ram::new(1).unwrap(), file());
        let outside = image.load(0..10_000, &ram, 0x10_0000 - 9_999).unwrap_err();
        assert!(matches!(outside, LoadError::Memory(MemoryError::Outside { .. })), "{outside:?}");
        fs::write(folder.path().join("image"), [1; 100]).unwrap();
        let short = image.load(0..10_000, &ram, 0).unwrap_err();
        assert!(matches!(short, LoadError::Read { .. }), "{short:?}");
    }

    #[test]
    fn embedded_bytes_are_loaded_as_those_of_a_file() {
        let (ram, image) = (Ram::new(1).unwrap(), Image::embedded("test", &[1, 2, 3]));
        image.load(1..3, &ram, 0x1000).unwrap();
        assert_eq!([0x1000, 0x1001, 0x1002].map(|gpa| byte_at(&ram, gpa)), [2, 3, 0]);
        assert!(image.load(1..4, &ram, 0x1000).is_err());
    }
}
