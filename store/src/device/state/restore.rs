//! A start: from the arguments' tables, or from the state at the end of the last process.
//!
//! Owns the choice between the two, and the order in which devices are made again: lower ones
//! first. Never changes the kept state before all of it serves.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::file::HeldBack;
use super::others::Others;
use super::{
    BaseState, CommitJob, InitialDevice, InitialTable, RollbackJob, State, StateError,
    has_no_header, too_short,
};
use crate::cow::Persistence;
use crate::device::build::lines_name;
use crate::device::chain::lower_layers;
use crate::device::core::{Device, Devices, Loaded};
use crate::device::error::DeviceError;
use crate::device::guards::refuse_missing;
use crate::device::handover::Lost;
use crate::device::origins::OriginKey;
use crate::device::verbs::Suspend;
use crate::device::write_cache::Caches;
use crate::lines::parse_table;

impl State {
    /// A snapshot in memory ended with the process before, and a file of it that is gone is not made
    /// again: its device is Invalid, and the others serve. One that the arguments ask for has a file, and
    /// what lies on another could not be built without it.
    fn lose_forgotten(&self, name: &str, loaded: &mut Loaded) {
        if self.is_initial_but_settings(name) || self.users().contains_key(name) {
            return;
        }
        for (number, line) in loaded.lines.iter().enumerate() {
            let spec = line.target.snapshot();
            let spec = spec.filter(|spec| spec.persistence == Persistence::Transient);
            let Some(path) = spec.and_then(|spec| spec.cow.path()) else { continue };
            if path.try_exists().is_ok_and(|exists| !exists) {
                tracing::warn!(
                    "the file {} of '{name}' is gone, and its content ended with the process before: '{name}' \
                     is Invalid, and can only be deleted",
                    path.display()
                );
                loaded.lost.entry(number).or_insert(Lost::SourceGone);
            }
        }
    }

    /// Whether it knows `table` by its name, with the same initial table. One that knows the name with
    /// another table belongs to other arguments.
    pub(super) fn knows(&self, table: &InitialDevice) -> Result<bool, StateError> {
        let given = InitialTable::of(table);
        match self.initial.get(&table.name) {
            Some(knows) if *knows == given => Ok(true),
            Some(knows) if knows.differs_in_length(&given) && self.is_within(table) => Ok(true),
            Some(knows) => {
                let device = table.name.clone();
                // The arguments use a file's whole length: its length is not their fault.
                let short = Some(knows).filter(|knows| knows.differs_in_length(&given));
                Err(match short.and_then(too_short) {
                    Some((path, needs, has)) => StateError::Shorter { path, device, needs, has },
                    None => {
                        let (knows, given) = (knows.to_string(), given.to_string());
                        StateError::Other { device, knows, given }
                    }
                })
            }
            None => Ok(false),
        }
    }
}

/// `tables` in an order in which each comes after those that it lies on, and otherwise as they are.
fn lower_ones_first(mut tables: Vec<&InitialDevice>) -> Result<Vec<&InitialDevice>, DeviceError> {
    let mut sorted = Vec::new();
    while !tables.is_empty() {
        // One that lies on itself is refused when it is loaded.
        let lies = |table: &InitialDevice, on: &InitialDevice| {
            on.name != table.name && lines_name(&table.lines, &on.name)
        };
        let ready = |table: &&InitialDevice| !tables.iter().any(|other| lies(table, other));
        let Some(at) = tables.iter().position(ready) else {
            let names: Vec<String> = tables.iter().map(|of| format!("'{}'", of.name)).collect();
            return Err(DeviceError::refused(format!(
                "the disks {} lie on each other, or on such disks",
                names.join(", ")
            )));
        };
        sorted.push(tables.remove(at));
    }
    Ok(sorted)
}

impl Devices {
    /// Starts with the devices of the program's arguments, in any order: in their recorded state, or as
    /// given if the state file does not know them. `make_stores` is called for a new device before its table
    /// is built.
    ///
    /// # Errors
    /// A state that belongs to other arguments, a base that changed, and any error of a table.
    pub fn start(
        &self,
        initial: &[InitialDevice],
        mut make_stores: impl FnMut(&InitialDevice) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let (kept, others) = {
            let mut file = self.state_file();
            file.wait_for_others()?;
            let kept = file.read()?;
            let others = file.read_others(kept.as_ref())?;
            (kept, others)
        };
        let held_back = HeldBack::of(self.lock().state.shared_file());
        let started = self.start_from((kept, &others), initial, &mut make_stores);
        let inner = &mut *self.lock();
        drop(held_back);
        let known = started?;
        // Another process may have kept its state while this one waited for its disks.
        inner.state.file().refuse_foreign()?;
        // A plain disk leaves no state file until a command changes something.
        let has_stores =
            |device: &Device| device.active.as_ref().is_some_and(|active| !active.snaps.is_empty());
        if known || inner.devices.values().any(has_stores) {
            self.keep(inner)?;
        } else {
            let state = State::of(self, inner, &BTreeMap::new());
            inner.state.file().note_devices(state);
        }
        inner.state.file().replace(others)?;
        Ok(())
    }

    /// True if a state was found.
    fn start_from(
        &self,
        (kept, others): (Option<State>, &Others),
        initial: &[InitialDevice],
        make_stores: &mut dyn FnMut(&InitialDevice) -> Result<(), DeviceError>,
    ) -> Result<bool, DeviceError> {
        let known = kept.is_some();
        let (mut caches, mut on_full) = (Caches::default(), BTreeMap::new());
        let mut new = Vec::new();
        for table in initial {
            let is_kept = |state: &State| state.knows(table);
            if !kept.as_ref().map_or(Ok(false), is_kept)? {
                new.push(table);
            }
        }
        others.refuse_lost_stores(&new)?;
        self.check_bases(others.bases(&new)?)?;
        if let Some(mut state) = kept {
            let left_out = state.take_unnamed(initial);
            left_out.refuse_renamed(&new)?;
            self.check_bases(left_out.bases(&new))?;
            self.lock().state.left_out = left_out;
            caches = Caches::kept(std::mem::take(&mut state.write_through));
            on_full = std::mem::take(&mut state.on_full);
            self.check_bases(&state.bases)?;
            self.restore(&state)?;
        }
        for table in lower_ones_first(new)? {
            make_stores(table)?;
            self.lock().state.initial.insert(table.name.clone(), InitialTable::of(table));
            self.create(&table.name, None)?;
            self.load(&table.name, table.lines.clone(), table.read_only)?;
            self.resume(&table.name)?;
        }
        // After all devices exist: those that only the arguments name have settings, too.
        let inner = &mut *self.lock();
        {
            let mut file = inner.state.file();
            (file.caches, file.on_full) = (caches, on_full);
        }
        inner.forget_settings();
        let on_full = inner.state.file().on_full.clone();
        for (name, millis) in on_full {
            tracing::info!(
                "writes to '{name}' that find no room wait for {millis} ms: so a message has set it, \
                 whatever the arguments say"
            );
            self.full().set_patience(inner, &name, Duration::from_millis(millis));
        }
        Ok(known)
    }

    /// The rollbacks that run as jobs, by the jobs' names; after a start, those to be restarted.
    pub fn rollback_jobs(&self) -> BTreeMap<String, RollbackJob> {
        self.lock().state.rollbacks.clone()
    }

    /// The store called `store` is invalid, but its header could not be written: records this here
    /// instead. Until then, no code treats it as invalid (I14).
    pub fn record_invalid(&self, store: &str) {
        // Guests wait for this: not for a verb that holds the devices.
        let Some(live) = self.live_store(store) else { return };
        let recorded = self.state_file().record_invalid(&live.disk.info.path);
        let recorded = recorded.inspect_err(|error| {
            tracing::error!("{error}; writes to the origin of {store} fail from now on");
        });
        self.workers.wake(live.store.recorded(recorded.unwrap_or(false)));
    }

    fn check_bases<'a>(
        &self,
        bases: impl IntoIterator<Item = &'a BaseState>,
    ) -> Result<(), DeviceError> {
        if self.config.force {
            return Ok(());
        }
        for base in bases {
            let what = format!("cannot use {}", base.path.display());
            let meta = std::fs::metadata(&base.path).map_err(DeviceError::io(what))?;
            let modified = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            let is_file = meta.is_file();
            if is_file && (meta.len() != base.size || modified != base.modified) {
                let say = |size: u64, at: i64| format!("{size} bytes, changed at {at} ns");
                return Err(StateError::BaseChanged {
                    base: base.path.clone(),
                    store: base.store.clone(),
                    had: say(base.size, base.modified),
                    has: say(meta.len(), modified),
                }
                .into());
            }
        }
        Ok(())
    }

    /// The commits that run as jobs, by the jobs' names; after a start, those to be restarted.
    pub fn commit_jobs(&self) -> BTreeMap<String, CommitJob> {
        self.lock().state.commits.clone()
    }

    /// Makes the devices of `state` again, lower ones first.
    fn restore(&self, state: &State) -> Result<(), DeviceError> {
        {
            let inner = &mut *self.lock();
            inner.state.initial = state.initial.clone();
            inner.state.rollbacks = state.rollbacks.clone();
            inner.state.commits = state.commits.clone();
            let mut file = inner.state.file();
            file.invalid = state.invalid.clone();
            file.generation = state.generation;
        }
        let mut tables = BTreeMap::new();
        for (name, device) in &state.devices {
            tables.extend(device.active()?.map(|loaded| (name.clone(), loaded.lines)));
        }
        self.lock().lower_layers = lower_layers(&tables);
        let restored = self.restore_all(state);
        self.lock().lower_layers.clear();
        self.seal_layers();
        self.forget_moments(state);
        restored
    }

    /// A snapshot in memory of an origin that is served: what it kept since its moment is gone with the
    /// process before. One that the arguments ask for is of this moment.
    fn forget_moments(&self, state: &State) {
        let inner = &*self.lock();
        let devices = || inner.devices.iter();
        let active =
            || devices().filter_map(|(name, device)| Some((name, device.active.as_ref()?)));
        let is_origin = |key: &OriginKey| {
            active().any(|(_, active)| active.origin_keys.values().any(|origin| origin == key))
        };
        for (_, changed) in active().filter(|(name, _)| !state.is_initial_but_settings(name)) {
            for snap in changed.snaps.values() {
                let store = &snap.live.store;
                if store.persistence() == Persistence::Transient && is_origin(&snap.key) {
                    store.forgotten();
                }
            }
        }
    }

    fn restore_all(&self, state: &State) -> Result<(), DeviceError> {
        for (name, device) in &state.devices {
            let uuid = device.uuid.clone();
            self.lock().devices.insert(name.clone(), Device { uuid, ..Device::default() });
        }
        let mut left: Vec<&String> = state.devices.keys().collect();
        while !left.is_empty() {
            let ready = |name: &&&String| {
                let lines = &state.devices[**name].table;
                let below = parse_table(lines.iter().map(String::as_str)).unwrap_or_default();
                !left.iter().any(|other| lines_name(&below, other))
            };
            let Some(&name) = left.iter().find(ready) else {
                return Err(DeviceError::refused("the state file's tables lie on each other"));
            };
            left.retain(|other| *other != name);
            if let Some(mut loaded) = state.devices[name].active()? {
                self.refuse_lost_stores(name, &loaded)?;
                state.lose_forgotten(name, &mut loaded);
                self.put(&mut self.lock(), name, loaded)?;
                self.resume(name)?;
                let inner = &*self.lock();
                let live = inner.active(name)?.only_store();
                live.iter().for_each(|live| {
                    live.store.set_write_threshold(state.devices[name].write_threshold);
                });
            }
        }
        for (name, device) in &state.devices {
            if let Some(loaded) = device.inactive()? {
                let inner = &mut *self.lock();
                // Its resume says so again, if that is still the case then.
                if let Err(error) = refuse_missing(inner, &loaded) {
                    tracing::warn!("the table that is loaded into '{name}' cannot serve: {error}");
                }
                self.put(inner, name, loaded)?;
            }
            if device.suspended && !device.table.is_empty() {
                self.suspend(name, Suspend { noflush: true })?;
            }
            if device.removed {
                self.lock().device_mut(name)?.removed = true;
            }
        }
        Ok(())
    }

    /// A store that the state knows is never created anew.
    fn refuse_lost_stores(&self, name: &str, loaded: &Loaded) -> Result<(), DeviceError> {
        for (number, line) in loaded.lines.iter().enumerate() {
            let Some(spec) = line.target.snapshot() else { continue };
            if loaded.lost.contains_key(&number) {
                continue;
            }
            let Some(path) = spec.cow.path() else { continue };
            if spec.persistence != Persistence::Transient && has_no_header(path) {
                let store = path.to_owned();
                return Err(StateError::StoreGone { store, device: name.into() }.into());
            }
        }
        Ok(())
    }
}
