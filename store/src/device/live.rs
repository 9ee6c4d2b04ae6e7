//! Live stores: opened, locked, with what a killed process owed entered, ready for workers.
//!
//! Owns a store's file, its lock and the file of what it owes for as long as the store lives.
//! Never knows which device serves it. Keeps I8.

use std::sync::Arc;

use super::core::Owner;
use super::disks::{Disk, Disks};
use super::error::DeviceError;
use super::state::StateFile;
use crate::cow::log::Log;
use crate::cow::open::{self, OpenOptions, OpenStore};
use crate::cow::owed::{Owed, tail_of};
use crate::cow::store::{StoreObserver, StoreParts};
use crate::cow::{Geometry, Persistence, Store};
use crate::exception::{ExceptionTable, Layer, Place};
use crate::io::OpenMode;
use crate::lines::SnapshotSpec;
use crate::units::ChunkSize;

/// Bytes that a file system which had none must have again before a store on it is tried again.
const ROOM_BELOW: u64 = 1 << 20;

/// What a store is opened for.
#[derive(Clone, Copy, Debug)]
pub(super) struct LiveFor {
    /// Bytes of the device.
    pub(super) len: u64,
    /// Whether it is a guest's own disk.
    pub(super) guest_disk: bool,
    /// Whether it lives already, and may go on to live so where the new one comes to nothing.
    pub(super) replaces: bool,
}

/// A store that lives.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) store: Arc<Store>,
    pub(super) disk: Arc<Disk>,
    pub(super) owner: Owner,
    owed: Option<Owed>,
}

impl Live {
    /// Opens the store of `spec`, or makes it where its file is empty. One that `state` knows to
    /// be invalid is, whatever its header says.
    pub(super) fn open(
        disks: &mut Disks,
        spec: &SnapshotSpec,
        LiveFor { len, guest_disk, replaces }: LiveFor,
        state: &StateFile,
        (owner, observer): (Owner, Box<dyn StoreObserver>),
    ) -> Result<(Live, OpenStore), DeviceError> {
        let path = spec.cow.path().ok_or_else(|| {
            DeviceError::refused(format!(
                "the store '{}' is no file: write its path with a '/'",
                spec.cow
            ))
        })?;
        let disk = disks.open(path, OpenMode::ReadWrite)?;
        let transient = spec.persistence == Persistence::Transient;
        let mut opened = if transient {
            let chunk = spec.chunk.unwrap_or(ChunkSize::DEFAULT);
            let geometry = Geometry::of_len(chunk, disk.len()?);
            let next = crate::units::DataIndex(0);
            OpenStore { geometry, valid: true, entries: Vec::new(), next, garbage: false }
        } else {
            let options = OpenOptions { chunk: spec.chunk, create: true, origin_len: Some(len) };
            open::open(&*disk.info, &options)?
        };
        opened.valid &= transient || !state.is_invalid(path);
        if let Some(asked) = spec.chunk
            && asked != opened.geometry.chunk
        {
            let (has, name) = (opened.geometry.chunk, path.display());
            tracing::warn!("the store {name} has chunks of {has}, not the {asked} of its table");
        }
        let mut owed = None;
        let log = if transient {
            Log::transient(opened.geometry.device_chunks)
        } else {
            let mut file = Owed::of(&disk.info, opened.geometry.chunk.sectors());
            if opened.valid {
                if file.enter(&*disk.info, &mut opened)? {
                    tracing::info!("entered what a killed process owed to {}", path.display());
                }
                open::zero_garbage(&*disk.info, &mut opened)?;
            }
            let words = file.create(replaces)?;
            owed = Some(file);
            Log::new(words, opened.next, opened.geometry.capacity())
        };
        let store = Arc::new(Store::new(StoreParts {
            name: spec.cow.to_string(),
            file: disk.file(),
            geometry: opened.geometry,
            persistence: spec.persistence,
            guest_disk,
            valid: opened.valid,
            log,
            tail: tail_of(&opened),
            observer,
        }));
        Ok((Live { store, disk, owner, owed }, opened))
    }

    /// Looks at the file's length again: a store that grew has room again, and what waits for that
    /// goes on. The caller wakes the workers.
    pub(super) fn grow(&self) -> Result<(), DeviceError> {
        self.look_at_length()?;
        if self.store.log().has_room() {
            self.store.go_on();
        }
        Ok(())
    }

    fn look_at_length(&self) -> Result<(), DeviceError> {
        let geometry = Geometry::of_len(self.store.chunk(), self.disk.len()?);
        self.store.grow(geometry.device_chunks);
        Ok(())
    }

    /// Whether there is room in it by now, and below it where that was what had none.
    pub(super) fn has_found_room(&self) -> bool {
        if let Err(error) = self.look_at_length() {
            tracing::warn!("{error}");
        }
        let below = || {
            let Ok(stat) = rustix::fs::fstatvfs(&self.disk.info.file) else { return false };
            stat.f_bavail.saturating_mul(stat.f_frsize)
                >= ROOM_BELOW.max(self.store.chunk().bytes())
        };
        self.store.log().has_room() && (!self.store.is_full_below() || below())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let log = self.store.log();
        if let Some(owed) = &self.owed
            && !owed.discard_if_replaced()
            && (log.next() == log.committed()
                || self.store.state() >= crate::cow::StoreState::Invalid)
        {
            owed.remove();
        }
    }
}

/// Enters a store's exceptions into a table, as those of `layer`.
pub(super) fn load(table: &mut ExceptionTable, opened: &OpenStore, layer: Layer) {
    table.fill(opened.entries.iter().map(|&(old, chunk)| (old, Place { layer, chunk })));
}
