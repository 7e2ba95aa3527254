//! Files that tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A file in a temporary folder of its own.
pub(crate) struct Fixture {
    _folder: TempDir,
    /// The file.
    pub(crate) path: PathBuf,
}

impl Fixture {
    /// A file with this content.
    pub(crate) fn file(name: &str, content: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("a file can be written");
        Self { _folder: folder, path }
    }

    /// An ELF kernel, assembled from `tests/fixtures/` and linked at 1 MiB.
    ///
    /// # Panics
    /// If the C compiler, which links this workspace too, does not build it.
    pub(crate) fn assembled(source: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
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
