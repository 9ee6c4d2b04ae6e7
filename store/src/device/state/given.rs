//! State that the program's arguments give anyway, and that is not kept.
//!
//! Owns the rule that disks which are as the arguments made them are neither written to the file
//! nor read from that of an older version: a guest that sets its write cache does not bind the
//! next start to a size or to arguments. Never knows what else is kept, only whether there is
//! anything. Keeps: a file that was named stays, with nothing in it, so that the next start knows that
//! it was chosen.

use std::path::PathBuf;

use super::{DeviceState, First, State, StateError, StateFile, put_back};
use crate::device::core::Devices;
use crate::io::durable::sync_name;
use crate::lines::parse_table;

impl First {
    /// Whether it has stores, with data of a guest, that would be created anew without the file;
    /// assumed for a table that cannot be parsed.
    fn has_stores(&self) -> bool {
        let lines = parse_table(self.table.iter().map(String::as_str));
        lines.map_or(true, |lines| lines.iter().any(|line| line.target.snapshot().is_some()))
    }
}

impl DeviceState {
    /// Whether it is as the arguments made it.
    pub(super) fn is_as(&self, first: &First) -> bool {
        let (table, read_only) = (first.table.clone(), first.read_only);
        *self == DeviceState { table, read_only, ..DeviceState::default() }
    }

    /// Whether it is made of that alone, whatever it is set to.
    pub(super) fn is_made_as(&self, first: &First) -> bool {
        DeviceState { suspended: false, write_threshold: None, ..self.clone() }.is_as(first)
    }
}

impl State {
    /// The same state without its devices, if a start without them makes the same ones. All or
    /// none: if only some are as given, the others were changed.
    pub(super) fn without_given(mut self) -> State {
        if self.is_given() {
            self.first.clear();
            self.devices.clear();
        }
        self
    }

    pub(super) fn is_given(&self) -> bool {
        let has_stores = self.first.values().any(First::has_stores);
        self.is_as_given() && !has_stores && self.bases.is_empty()
    }

    /// Whether each device has the table that it was first given, and nothing works on it.
    pub(super) fn is_as_given(&self) -> bool {
        let works = !self.jobs.is_empty() || !self.commits.is_empty();
        let all = self.devices.len() == self.first.len();
        let all = all && self.devices.keys().all(|name| self.is_as_first(name));
        all && !works && self.invalid.is_empty()
    }

    /// Whether the device `name` is as the arguments made it.
    pub(super) fn is_as_first(&self, name: &str) -> bool {
        let device = self.devices.get(name);
        self.first.get(name).is_some_and(|first| device.is_some_and(|device| device.is_as(first)))
    }

    /// Whether the device `name` is made of what the arguments made it of.
    pub(super) fn is_made_as_first(&self, name: &str) -> bool {
        let both = self.first.get(name).zip(self.devices.get(name));
        both.is_some_and(|(first, device)| device.is_made_as(first))
    }

    /// Whether it has settings that bind no device to a table.
    pub(super) fn has_settings(&self) -> bool {
        !self.write_through.is_empty() || !self.on_full.is_empty()
    }

    /// Whether it has one of the device `name`.
    pub(super) fn has_setting_of(&self, name: &str) -> bool {
        self.write_through.contains_key(name) || self.on_full.contains_key(name)
    }

    /// Whether a start without the file has the same result.
    pub(super) fn is_nothing(&self) -> bool {
        let is_empty = self.devices.is_empty() && !self.has_settings();
        self.is_given() && is_empty && self.kept_in.is_none()
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
