//! The file systems that the benchmark runs on, and the files on them.
//!
//! Owns the directory, one disk image per family of servers, and the directory of the current
//! overlay. Images are written completely before any measurement, and no page of them is left in
//! the page cache: a server with O_DIRECT must not meet buffered pages.
//!
//! They are written as a guest would write them, in clusters and directly. On a virtual disk, the size
//! of the requests that first wrote a file decides how fast it takes small random writes afterwards, by
//! more than a factor of two; buffered writes reach the disk as very large ones.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{statfs, syncfs};

use super::BenchError;
use super::job::CLUSTER;
use crate::rng::Rng;
use crate::server::{Place, Scratch, disk_dir};

/// A file system under test.
#[derive(Debug)]
pub struct Ground {
    /// Its name in the report.
    pub name: String,
    /// The kind of file system.
    pub place: Place,
    scratch: Scratch,
    disk: u64,
}

impl Ground {
    /// A new directory on `place`, for disks of `disk` bytes; `dir` replaces the build directory as
    /// the place on disk.
    pub fn new(place: Place, dir: Option<&Path>, disk: u64) -> Result<Self, BenchError> {
        let failed = BenchError::at("make a directory for the benchmark's files");
        let made = match (place, dir) {
            (Place::Memory, _) => Scratch::new(Place::Memory),
            (Place::Disk, Some(dir)) => Scratch::within(dir),
            (Place::Disk, None) => disk_dir().and_then(|dir| Scratch::within(&dir)),
        };
        let scratch = made.map_err(failed)?;
        let kind = file_system(scratch.dir()).map_err(BenchError::at("ask for the file system"))?;
        let name = match place {
            Place::Memory => kind,
            Place::Disk => format!("disk ({kind})"),
        };
        Ok(Self { name, place, scratch, disk })
    }

    /// The size of the disks in bytes.
    pub fn disk(&self) -> u64 {
        self.disk
    }

    /// The directory for servers' sockets and logs.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The disk image of the servers of `family`, made if missing.
    pub fn image(&self, family: &str) -> Result<PathBuf, BenchError> {
        let path = self.scratch.path(&format!("{family}.img"));
        if !path.exists() {
            let step = format!("write the disk image {}", path.display());
            write_image(&path, self.disk, self.place).map_err(BenchError::at(step))?;
        }
        Ok(path)
    }

    /// An empty directory for one overlay, without the files of an earlier one.
    pub fn fresh_overlay_dir(&self) -> Result<PathBuf, BenchError> {
        let dir = self.scratch.path("overlay");
        let renew = || {
            if dir.exists() {
                fs::remove_dir_all(&dir)?;
            }
            fs::create_dir(&dir)
        };
        renew().map_err(BenchError::at("renew the overlay's directory"))?;
        self.settle()?;
        Ok(dir)
    }

    /// Waits until all writes are complete, so that no repetition pays for the one before.
    pub(super) fn settle(&self) -> Result<(), BenchError> {
        File::open(self.scratch.dir())
            .and_then(|dir| Ok(syncfs(&dir)?))
            .map_err(BenchError::at("sync the file system"))
    }
}

/// Random bytes, different in each MiB, on stable storage and not in the page cache.
fn write_image(path: &Path, len: u64, place: Place) -> io::Result<()> {
    const STEP: usize = 1 << 20;
    const ALIGN: usize = 4096;
    let flags = match place {
        Place::Memory => 0,
        Place::Disk => libc::O_DIRECT,
    };
    let mut memory = vec![0; STEP + ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN);
    let bytes = &mut memory[start..start + STEP];
    let mut rng = Rng::new(len);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    let mut file = File::options().write(true).create_new(true).custom_flags(flags).open(path)?;
    for step in 0..len / STEP as u64 {
        bytes[..8].copy_from_slice(&step.to_le_bytes());
        bytes.rotate_left(8);
        for cluster in bytes.chunks_exact(CLUSTER as usize) {
            file.write_all(cluster)?;
        }
    }
    file.sync_all()
}

/// The name of the file system that `dir` is on.
fn file_system(dir: &Path) -> io::Result<String> {
    // The magic numbers of statfs(2).
    Ok(match statfs(dir)?.f_type as u64 {
        0x0102_1994 => "tmpfs".to_owned(),
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        other => format!("file system {other:#x}"),
    })
}
