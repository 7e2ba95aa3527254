//! Result files: checked for access before a measurement, written after it.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use serde::Serialize;

/// A result file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write {}", path.display())]
pub struct OutputError {
    path: PathBuf,
    source: io::Error,
}

/// A result file that can be written.
#[derive(Clone, Debug)]
pub struct OutputFile(PathBuf);

impl OutputFile {
    /// Checks that `path` can be written. Neither creates nor changes the file.
    ///
    /// # Errors
    /// [`OutputError`] if it cannot be written.
    pub fn at(path: &Path) -> Result<Self, OutputError> {
        let failed = |source| OutputError { path: path.to_owned(), source };
        match OpenOptions::new().append(true).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder =
                    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                access(folder, AccessFlags::W_OK | AccessFlags::X_OK)
                    .map_err(|errno| failed(errno.into()))?;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(Self(path.to_owned()))
    }

    /// Writes `document` as JSON.
    ///
    /// # Errors
    /// [`OutputError`] if the document or the file cannot be written.
    pub fn write(&self, document: &impl Serialize) -> Result<(), OutputError> {
        let failed = |source| OutputError { path: self.0.clone(), source };
        let mut text = serde_json::to_vec_pretty(document).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        self.write_bytes(&text)
    }

    /// Writes `bytes`.
    ///
    /// # Errors
    /// [`OutputError`] if the file cannot be written.
    pub fn write_bytes(&self, bytes: &[u8]) -> Result<(), OutputError> {
        fs::write(&self.0, bytes).map_err(|source| OutputError { path: self.0.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_in_a_missing_folder_is_refused_before_the_measurement() {
        let error = OutputFile::at(Path::new("/nowhere/at/all.json")).unwrap_err();
        assert_eq!(error.to_string(), "Cannot write /nowhere/at/all.json");
    }

    #[test]
    fn check_leaves_no_file_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let file = OutputFile::at(&path).unwrap();
        assert!(!path.exists());
        file.write(&[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        assert!(OutputFile::at(&path).is_ok());
        assert!(OutputFile::at(folder.path()).is_err());
    }
}
