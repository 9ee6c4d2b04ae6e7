//! The files that tables name: each is opened once, locked, and shared by all tables that name it.
//!
//! Owns the process's open files and their locks. Never knows their content.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::core::{DeviceEvent, DevicesConfig, EventSink};
use super::error::DeviceError;
use super::paths::replaced;
use super::state::refuse_state_name;
use crate::cow::owed::Owed;
use crate::io::{FileId, FileInfo, Files, Identity, Lock, OpenMode, Storage};
use crate::target::Medium;

/// How long to wait for the lock of a killed process, which its last I/O still holds.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// Bytes that must be free again on a full file system before a write to a file on it is retried.
const ROOM_BELOW: u64 = 1 << 20;

/// An open file, locked for as long as it is used.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) medium: Arc<Medium>,
    pub(super) info: Arc<FileInfo>,
    /// Moved when the file is opened again for writing: that lock covers both.
    lock: Mutex<Option<Lock>>,
    /// The file that the lock was moved from.
    reader: Weak<Disk>,
    files: Arc<Files>,
}

impl Disk {
    pub(super) fn file(&self) -> FileId {
        self.medium.file
    }

    /// Its present length in bytes.
    pub(super) fn len(&self) -> Result<u64, DeviceError> {
        let what = || format!("cannot tell the length of {}", self.info.path.display());
        self.info.current_len().map_err(DeviceError::io(what()))
    }

    /// Whether the file system below it has `least` bytes, and enough to be tried again. What a
    /// block device has is known to nobody before it is.
    pub(super) fn has_room_below(&self, least: u64) -> bool {
        if self.info.block_device {
            return true;
        }
        let Ok(stat) = rustix::fs::fstatvfs(&self.info.file) else { return false };
        stat.f_bavail.saturating_mul(stat.f_frsize) >= ROOM_BELOW.max(least)
    }
}

/// The bytes of a file that tables may share. The system reports an error of a sync only once to each
/// open file, so whoever gets it here leaves it for a guest's next flush.
impl Storage for Disk {
    fn name(&self) -> String {
        self.info.name()
    }

    fn len(&self) -> io::Result<u64> {
        Storage::len(&*self.info)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.info.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.info.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Owed::sync(&self.info).inspect_err(|_| self.medium.sync_failed())
    }

    fn write_again(&self, offset: u64, len: u64) -> io::Result<()> {
        self.info.write_again(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.info.write_zeroes(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.info.next_data(offset)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.files.remove(self.medium.file);
        let Some(reader) = self.reader.upgrade() else { return };
        drop(self.lock.lock().expect("lock of a lock poisoned").take());
        let mut lock = reader.lock.lock().expect("lock of a lock poisoned");
        match Lock::shared_read(&reader.info, None) {
            Ok(shared) => *lock = Some(shared),
            Err(error) => tracing::error!("{error}; it is read on"),
        }
    }
}

#[derive(Debug, Default)]
struct Opened {
    reading: Weak<Disk>,
    writing: Weak<Disk>,
}

/// See the module's description.
pub(super) struct Disks {
    files: Arc<Files>,
    direct: bool,
    events: EventSink,
    opened: HashMap<Identity, Opened>,
    /// Where the process keeps its state, which replaces what is there.
    state: Option<PathBuf>,
}

impl Disks {
    pub(super) fn new(files: Arc<Files>, config: &DevicesConfig) -> Self {
        let (events, state) = (config.events.clone(), config.state.clone());
        Disks { files, direct: config.direct, events, opened: HashMap::new(), state }
    }

    /// Refuses `path` for a file that is served, or made, if the state takes that name.
    pub(super) fn refuse_state(&self, path: &Path) -> Result<(), DeviceError> {
        self.state.as_ref().map_or(Ok(()), |state| refuse_state_name(state, path))
    }

    /// The file that `path` means, or names now if `meant` is none, open in a mode that allows at
    /// least `mode`.
    pub(super) fn open(
        &mut self,
        path: &Path,
        mode: OpenMode,
        meant: Option<Identity>,
    ) -> Result<Arc<Disk>, DeviceError> {
        self.refuse_state(path)?;
        self.opened.retain(|_, o| o.reading.strong_count() + o.writing.strong_count() > 0);
        let identity = meant.or_else(|| Identity::of_path(path).ok());
        let known = identity.and_then(|identity| self.opened.get(&identity));
        if let Some(known) = known {
            if let Some(disk) = known.writing.upgrade() {
                return Ok(disk);
            }
            if let (OpenMode::ReadOnly, Some(disk)) = (mode, known.reading.upgrade()) {
                return Ok(disk);
            }
        }
        let reader = known.and_then(|known| known.reading.upgrade());
        let info = FileInfo::open(path, mode, self.direct)?;
        if meant.is_some_and(|meant| info.identity != meant) {
            return Err(replaced(path));
        }
        let lock = match (mode, &reader) {
            (OpenMode::ReadOnly, _) => Lock::shared_read(&info, Some(LOCK_WAIT))?,
            (OpenMode::ReadWrite, None) => Lock::exclusive(&info, Some(LOCK_WAIT))?,
            (OpenMode::ReadWrite, Some(reader)) => take_over(reader, &info)?,
        };
        sync_left_over(&info)?;
        let identity = info.identity;
        let file = self.files.add(info);
        let info = self.files.get(file).expect("it was just added");
        let (events, path) = (self.events.clone(), info.path.clone());
        let on_full = Box::new(move || events(DeviceEvent::FileFull { file: path.clone() }));
        let disk = Arc::new(Disk {
            medium: Arc::new(Medium::watched(file, info.uring, on_full)),
            info,
            lock: Mutex::new(Some(lock)),
            reader: reader.map_or_else(Weak::new, |reader| Arc::downgrade(&reader)),
            files: self.files.clone(),
        });
        let opened = self.opened.entry(identity).or_default();
        match mode {
            OpenMode::ReadOnly => opened.reading = Arc::downgrade(&disk),
            OpenMode::ReadWrite => opened.writing = Arc::downgrade(&disk),
        }
        Ok(disk)
    }
}

/// Makes the writes of a killed process to the file durable: a table that only reads it would
/// never do so, and a guest's flush would promise data that a power cut could take.
fn sync_left_over(info: &FileInfo) -> Result<(), DeviceError> {
    match Owed::sync(info) {
        // It cannot be written, so there is nothing to sync.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) => Ok(()),
        synced => synced.map_err(DeviceError::io(format!("cannot sync {}", info.path.display()))),
    }
}

/// An exclusive lock for `info` in place of `reader`'s, which would conflict with it.
fn take_over(reader: &Disk, info: &FileInfo) -> Result<Lock, DeviceError> {
    let mut held = reader.lock.lock().expect("lock of a lock poisoned");
    drop(held.take());
    Lock::exclusive(info, None).map_err(|error| {
        *held = Lock::shared_read(&reader.info, None).ok();
        error.into()
    })
}
