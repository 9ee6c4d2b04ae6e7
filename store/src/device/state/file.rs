//! The state file of this process: reading it, and replacing it durably.
//!
//! Owns what was last written there, and settings: guests wait until theirs are kept, and a verb may
//! hold the devices while it waits for a disk. So these are written with the devices as they were kept
//! last. Never knows what a device is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sole::Sole;
use super::{
    BaseState, POISONED, State, StateError, VERSION, absolute, beside, names_of, place_of_state,
    put_back, text,
};
use crate::device::error::DeviceError;
use crate::device::write_cache::Caches;
use crate::io::durable::{sync_file, sync_name};
use crate::io::real_path;

/// See the module's description.
#[derive(Debug, Default)]
pub(in crate::device) struct StateFile {
    pub(super) path: Option<PathBuf>,
    pub(super) invalid: BTreeSet<PathBuf>,
    pub(super) caches: Caches,
    pub(super) on_full: BTreeMap<String, u64>,
    pub(super) generation: u64,
    /// The devices as they were kept last, without the settings.
    last: State,
    /// The bases when this process last kept them.
    bases: Vec<BaseState>,
    /// The file's text, as this process read or wrote it; none if there is no file of its own.
    pub(super) kept: Option<String>,
    /// It was named: that it is not there shall mean that it never was.
    pub(super) named: bool,
    /// The states of these disks that are not used.
    pub(super) others: Vec<PathBuf>,
    /// The lock on it, from when there is one.
    pub(super) sole: Option<Sole>,
    /// It says what was undone, and could not be written again.
    pub(super) stale: bool,
}

/// Keeps the state from being replaced until it is dropped: during a start, the verbs that make the devices
/// again would keep what is incomplete, in place of all that the last process kept.
pub(super) struct HeldBack {
    file: Arc<Mutex<StateFile>>,
    path: Option<PathBuf>,
}

impl HeldBack {
    pub(super) fn of(file: Arc<Mutex<StateFile>>) -> HeldBack {
        // Without a path nothing is written.
        let path = file.lock().expect(POISONED).path.take();
        HeldBack { file, path }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.path = self.path.take();
    }
}

impl StateFile {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        StateFile { path: path.as_deref().map(place_of_state), ..StateFile::default() }
    }

    /// Keeps `state`, the devices and what works on them, and the settings.
    pub(in crate::device) fn keep_devices(&mut self, state: State) -> Result<(), StateError> {
        // A start makes hundreds of devices before it keeps any.
        if self.path.is_some() {
            self.keep_with_settings(&state)?;
        }
        self.last = state;
        Ok(())
    }

    /// Takes note of `state`, which a start makes again without the file.
    pub(in crate::device) fn note_devices(&mut self, state: State) {
        self.last = state;
    }

    /// Keeps the settings, with the devices as they were kept last.
    fn keep_settings(&mut self) -> Result<(), StateError> {
        self.keep_with_settings(&self.last.clone())
    }

    /// Those of disks that are left out are in `state` already.
    fn keep_with_settings(&mut self, state: &State) -> Result<(), StateError> {
        let is_read_only =
            |name: &str| state.devices.get(name).is_some_and(|device| device.read_only);
        let mut caches = self.caches.to_keep(is_read_only);
        caches.retain(|name, _| state.devices.contains_key(name));
        let on_full = self.on_full.iter().filter(|(name, _)| state.devices.contains_key(*name));
        let mut all = State { invalid: self.invalid.clone(), ..state.clone() };
        all.write_through.extend(caches.clone());
        all.on_full.extend(on_full.map(|(name, millis)| (name.clone(), *millis)));
        self.keep(all)?;
        self.caches.were_kept(caches);
        Ok(())
    }

    /// Replaces the file, durably; removes it if there is nothing to keep, unless it was named.
    pub(super) fn keep(&mut self, state: State) -> Result<(), StateError> {
        let state = state.without_reproducible();
        if state.is_empty() && !self.stays() {
            return self.remove();
        }
        self.claim()?;
        let Some(path) = &self.path else { return Ok(()) };
        let (generation, bases) = (self.generation + 1, state.bases.clone());
        let text = toml::to_string_pretty(&State { generation, ..state })
            .map_err(|error| StateError::Bad { path: path.clone(), why: error.to_string() })?;
        text::refuse_longer(path, &text)?;
        let fail = |what| move |source| StateError::Io { what, path: path.clone(), source };
        let (new, mut file) = beside::create(path).map_err(fail("write"))?;
        file.write_all(text.as_bytes()).map_err(fail("write"))?;
        sync_file(&file).map_err(fail("flush"))?;
        std::fs::rename(&new, path).map_err(fail("replace"))?;
        if let Err(error) = sync_name(path) {
            // The caller continues with the former state, and so must the next start, as far as a
            // directory that cannot be synced allows it.
            let undone = match &self.kept {
                Some(text) => put_back(path, text),
                None => std::fs::remove_file(path),
            };
            if let Err(error) = undone {
                tracing::error!("cannot restore the state file {}: {error}", path.display());
                // It is there still, and this process wrote it.
                (self.kept, self.stale) = (Some(text), true);
            }
            return Err(fail("flush")(error));
        }
        self.generation = generation;
        self.bases.retain(|known| bases.iter().all(|base| base.path != known.path));
        self.bases.extend(bases);
        (self.kept, self.stale) = (Some(text), false);
        Ok(())
    }

    /// Whether the file says what was undone: the next start would find that.
    pub(in crate::device) fn is_stale(&self) -> bool {
        self.stale
    }

    /// What was kept last was undone, and nothing else can be kept.
    pub(in crate::device) fn set_stale(&mut self) {
        self.stale = self.path.is_some();
    }

    pub(super) fn read(&mut self) -> Result<Option<State>, StateError> {
        let Some(path) = &self.path else { return Ok(None) };
        let Some(text) = text::read(path)? else { return Ok(None) };
        let bad = |why: String| StateError::Bad { path: path.clone(), why };
        let wrong = |e: toml::de::Error| bad(text::wrong(&text, e.span(), e.message()));
        let state: State = toml::from_str(&text).map_err(wrong)?;
        if state.version != VERSION {
            return Err(bad(format!("it is of version {}", state.version)));
        }
        self.kept = Some(text);
        Ok(Some(state.with_escapes().without_reproducible()))
    }

    /// Whether the store at `path` is known to be invalid.
    pub(in crate::device) fn is_invalid(&self, path: &Path) -> bool {
        // It may have been recorded under its other name.
        !self.invalid.is_empty() && names_of(path).iter().any(|name| self.invalid.contains(name))
    }

    /// The store at `path` is created anew, or is about to be removed. Returns what was recorded of it.
    pub(in crate::device) fn forget_invalid(&mut self, path: &Path) -> Vec<PathBuf> {
        let names = names_of(path).into_iter();
        names.filter_map(|name| self.invalid.take(&name)).collect()
    }

    /// It is there still.
    pub(in crate::device) fn recall_invalid(&mut self, forgotten: &[PathBuf]) {
        self.invalid.extend(forgotten.iter().cloned());
    }

    /// Records that the store at `path` is invalid, although its header does not say so. True if a
    /// restart will know.
    pub(super) fn record_invalid(&mut self, path: &Path) -> Result<bool, StateError> {
        self.invalid.insert(absolute(&real_path(path)));
        self.keep_settings().map(|()| self.path.is_some())
    }

    /// Whether the guest of the export `export` of the device `name` turned its write cache off.
    pub(in crate::device) fn is_write_through(&self, name: &str, export: &str) -> bool {
        self.caches.is_off(name, export)
    }

    /// Records that, or the opposite.
    pub(in crate::device) fn set_write_through(
        &mut self,
        name: &str,
        export: &str,
        on: bool,
    ) -> Result<(), DeviceError> {
        let device = self.last.devices.get(name);
        let read_only = device.ok_or_else(|| DeviceError::NotFound(name.into()))?.read_only;
        let changed = self.caches.set((name, export), on, read_only);
        if changed && !read_only { Ok(self.keep_settings()?) } else { Ok(()) }
    }

    /// Forgets the settings of other devices than those.
    pub(in crate::device) fn retain_devices(&mut self, there: impl Fn(&str) -> bool) {
        self.caches.retain_devices(&there);
        self.on_full.retain(|name, _| there(name));
    }

    /// Records how long writes to the device `name` wait for room.
    pub(in crate::device) fn set_on_full(
        &mut self,
        name: &str,
        patience: Duration,
    ) -> Result<(), StateError> {
        let millis = patience.as_millis().try_into().unwrap_or(u64::MAX);
        let before = self.on_full.insert(name.to_owned(), millis);
        if before == Some(millis) {
            return Ok(());
        }
        self.keep_settings().inspect_err(|_| {
            self.on_full.remove(name);
            self.on_full.extend(before.map(|before| (name.to_owned(), before)));
        })
    }

    /// Records the threshold of the device `name`.
    pub(in crate::device) fn set_write_threshold(
        &mut self,
        name: &str,
        threshold: Option<u64>,
    ) -> Result<(), StateError> {
        let Some(device) = self.last.devices.get_mut(name) else { return Ok(()) };
        let before = std::mem::replace(&mut device.write_threshold, threshold);
        if before == threshold {
            return Ok(());
        }
        self.keep_settings().inspect_err(|_| {
            let device = self.last.devices.get_mut(name);
            device.into_iter().for_each(|device| device.write_threshold = before);
        })
    }

    /// The same once it was passed, unless another one was set.
    pub(in crate::device) fn forget_write_threshold(
        &mut self,
        name: &str,
        passed: u64,
    ) -> Result<(), StateError> {
        let device = self.last.devices.get(name);
        match device.and_then(|device| device.write_threshold) {
            Some(threshold) if threshold == passed => self.set_write_threshold(name, None),
            _ => Ok(()),
        }
    }

    /// Whether there is a file: a start takes note of devices before it has one.
    pub(super) fn is_kept(&self) -> bool {
        self.path.is_some()
    }

    /// The stores and the files below them that were kept last as bases.
    pub(super) fn kept_bases(&self) -> BTreeSet<(&str, &Path)> {
        self.last.bases.iter().map(|base| (&*base.store, &*base.path)).collect()
    }

    /// The bases as this process kept them last.
    pub(super) fn bases(&self) -> &[BaseState] {
        &self.bases
    }
}
