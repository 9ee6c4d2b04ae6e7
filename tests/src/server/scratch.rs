//! The place of a test's files.
//!
//! Owns a directory for disks, in memory or on disk, and one for sockets, whose paths must be
//! short. Both are removed with the [`Scratch`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The file system of a test's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// tmpfs, in `/dev/shm`.
    Memory,
    /// The file system of the build directory, or of `$SNAPBLK_TEST_DIR`.
    Disk,
}

/// Directories of one test.
#[derive(Debug)]
pub struct Scratch {
    files: TempDir,
    sockets: TempDir,
}

impl Scratch {
    /// New, empty directories.
    pub fn new(place: Place) -> io::Result<Self> {
        match place {
            Place::Memory => Self::within(Path::new("/dev/shm")),
            Place::Disk => Self::within(&disk_dir()?),
        }
    }

    /// New, empty directories; that of the files is in `parent`.
    pub fn within(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        let files = tempfile::Builder::new().prefix("snapblk-").tempdir_in(parent)?;
        // A socket's path has at most 107 bytes, and a build directory may be deep.
        let sockets = tempfile::Builder::new().prefix("snapblk-").tempdir()?;
        Ok(Self { files, sockets })
    }

    /// The directory for files.
    pub fn dir(&self) -> &Path {
        self.files.path()
    }

    /// The path of a file called `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The path of a socket called `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// Makes a file of `len` zeroes without space of its own.
    pub fn sparse(&self, name: &str, len: u64) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::File::create(&path)?.set_len(len)?;
        Ok(path)
    }

    /// Makes a file of these bytes.
    pub fn file(&self, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// A directory on disk for files of tests.
pub fn disk_dir() -> io::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SNAPBLK_TEST_DIR") {
        return Ok(dir.into());
    }
    build_dir().map(|dir| dir.join("scratch")).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the running program is not in a build directory; name a directory on disk in \
             SNAPBLK_TEST_DIR",
        )
    })
}

/// The directory that cargo builds programs into: the parent of the `deps` that this one lies in.
pub(super) fn build_dir() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let dir = exe.parent()?;
    if dir.file_name()? == "deps" { Some(dir.parent()?.to_owned()) } else { Some(dir.to_owned()) }
}
