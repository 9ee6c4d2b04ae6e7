//! State that the program's arguments give anyway, and that is not kept.
//!
//! Owns the comparisons of a state with the initial tables (`classify` lists them), and the rule that
//! disks which are as the arguments made them are neither written to the file nor read from that of an
//! older version: a guest that sets its write cache does not bind the next start to a size or to
//! arguments. Never knows what else is kept, only whether there is anything. Keeps: a file that was
//! named stays, with nothing in it, so that the next start knows that it was chosen.

use std::path::PathBuf;

use super::{DeviceState, InitialTable, State, StateError, StateFile, put_back};
use crate::device::core::Devices;
use crate::io::durable::sync_name;
use crate::lines::parse_table;

impl InitialTable {
    /// Whether it has stores, with data of a guest, that would be created anew without the file;
    /// assumed for a table that cannot be parsed.
    fn has_stores(&self) -> bool {
        let lines = parse_table(self.table.iter().map(String::as_str));
        lines.map_or(true, |lines| lines.iter().any(|line| line.target.snapshot().is_some()))
    }
}

impl DeviceState {
    /// Whether it is as the arguments made it, settings included.
    pub(super) fn equals_initial(&self, initial: &InitialTable) -> bool {
        let (table, read_only) = (initial.table.clone(), initial.read_only);
        *self == DeviceState { table, read_only, ..DeviceState::default() }
    }

    /// The same, whatever it is set to.
    pub(super) fn equals_initial_but_settings(&self, initial: &InitialTable) -> bool {
        DeviceState { suspended: false, write_threshold: None, ..self.clone() }
            .equals_initial(initial)
    }
}

impl State {
    /// The same state without its devices, if they are reproducible. All or none: if only some are
    /// initial, the others were changed.
    pub(super) fn without_reproducible(mut self) -> State {
        if self.is_reproducible() {
            self.initial.clear();
            self.devices.clear();
        }
        self
    }

    /// Whether a start without the file makes the same devices. Stores and what lies below them are known
    /// only from it.
    pub(super) fn is_reproducible(&self) -> bool {
        let has_stores = self.initial.values().any(InitialTable::has_stores);
        self.all_initial() && !has_stores && self.bases.is_empty()
    }

    /// Whether each device is as the arguments made it, and nothing works on it.
    pub(super) fn all_initial(&self) -> bool {
        let works = !self.rollbacks.is_empty() || !self.commits.is_empty();
        let all = self.devices.len() == self.initial.len();
        let all = all && self.devices.keys().all(|name| self.is_initial(name));
        all && !works && self.invalid.is_empty()
    }

    /// Whether the device `name` is as the arguments made it.
    pub(super) fn is_initial(&self, name: &str) -> bool {
        let device = self.devices.get(name);
        self.initial
            .get(name)
            .is_some_and(|initial| device.is_some_and(|device| device.equals_initial(initial)))
    }

    /// The same, whatever it is set to.
    pub(super) fn is_initial_but_settings(&self, name: &str) -> bool {
        let both = self.initial.get(name).zip(self.devices.get(name));
        both.is_some_and(|(initial, device)| device.equals_initial_but_settings(initial))
    }

    /// Whether it has settings that bind no device to a table.
    pub(super) fn has_settings(&self) -> bool {
        !self.write_through.is_empty() || !self.on_full.is_empty()
    }

    /// Whether it has one of the device `name`.
    pub(super) fn has_setting_of(&self, name: &str) -> bool {
        self.write_through.contains_key(name) || self.on_full.contains_key(name)
    }

    /// Whether a start without the file has the same result: it is reproducible and has no settings.
    pub(super) fn is_empty(&self) -> bool {
        let is_empty = self.devices.is_empty() && !self.has_settings();
        self.is_reproducible() && is_empty && self.kept_in.is_none()
    }
}

impl Devices {
    /// Before a start: the state was named, so that it stays once it is there.
    pub fn state_was_named(&self) {
        self.state_file().named = true;
    }
}

impl StateFile {
    /// Whether the file stays if there is nothing to keep. A start takes a named one that is not there for a
    /// new one, which may hide another.
    pub(super) fn stays(&self) -> bool {
        // Not made again for nothing.
        let is_there = |path: &PathBuf| path.try_exists().unwrap_or(true);
        self.named && self.kept.is_some() && self.path.as_ref().is_some_and(is_there)
    }

    /// The file is not changed any more: the process ends.
    pub(in crate::device) fn close(&mut self) {
        self.path = None;
        self.sole = None;
    }

    /// Removes the file, durably: there is nothing to keep.
    pub(super) fn remove(&mut self) -> Result<(), StateError> {
        let Some(path) = &self.path else { return Ok(()) };
        // A file that is not this process's stays. One that is gone is not removed: a read-only file
        // system refuses that, too.
        if self.kept.is_none() || !path.try_exists().unwrap_or(true) {
            (self.kept, self.stale) = (None, false);
            self.sole = None;
            return Ok(());
        }
        self.claim()?;
        let Some(path) = &self.path else { return Ok(()) };
        let fail = |what| move |source| StateError::Io { what, path: path.clone(), source };
        std::fs::remove_file(path).map_err(fail("remove"))?;
        let kept = self.kept.take();
        if let Err(error) = sync_name(path) {
            // As for a replacement: the caller continues with the former state.
            let _ = kept.as_ref().map(|text| put_back(path, text));
            self.kept = kept;
            return Err(fail("remove")(error));
        }
        self.stale = false;
        self.sole = None;
        Ok(())
    }
}
