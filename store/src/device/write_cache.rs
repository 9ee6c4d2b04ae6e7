//! Whether a guest turned its disk's write cache off.
//!
//! Owns that this setting survives the process: neither guests nor front-ends repeat it. Never
//! knows how a write becomes durable. Takes no lock that a verb holds while it waits for a disk: a guest
//! waits for this. Keeps: what was set while the disk was only read is in no file before the disk is
//! written. There is nothing to lose, and servers that share the disk's file would each want the state
//! beside it.

use std::collections::{BTreeMap, BTreeSet};

use super::core::{Devices, Inner};
use super::error::DeviceError;

/// By device: the exports whose guests turned the cache off.
pub(super) type Exports = BTreeMap<String, BTreeSet<String>>;

/// The settings of all devices.
#[derive(Debug, Default)]
pub(super) struct Caches {
    /// To be kept in the state file, and there already unless that failed.
    lasting: Exports,
    /// Set while the device was only read.
    passing: Exports,
}

impl Caches {
    /// As the state file has them.
    pub(super) fn kept(lasting: Exports) -> Caches {
        Caches { lasting, passing: Exports::new() }
    }

    pub(super) fn is_off(&self, name: &str, export: &str) -> bool {
        let has = |all: &Exports| all.get(name).is_some_and(|exports| exports.contains(export));
        has(&self.lasting) || has(&self.passing)
    }

    /// True if that changes anything.
    pub(super) fn set(&mut self, (name, export): (&str, &str), off: bool, read_only: bool) -> bool {
        if self.is_off(name, export) == off {
            return false;
        }
        let all = if read_only { &mut self.passing } else { &mut self.lasting };
        if off {
            all.entry(name.to_owned()).or_default().insert(export.to_owned());
            return true;
        }
        for all in [&mut self.lasting, &mut self.passing] {
            if let Some(exports) = all.get_mut(name) {
                exports.remove(export);
            }
            all.retain(|_, exports| !exports.is_empty());
        }
        true
    }

    /// Forgets those of other devices than these.
    pub(super) fn retain_devices(&mut self, there: impl Fn(&str) -> bool) {
        for all in [&mut self.lasting, &mut self.passing] {
            all.retain(|name, _| there(name));
        }
    }

    /// Those that the state file is to have, where these devices are `read_only`.
    pub(super) fn to_keep(&self, read_only: impl Fn(&str) -> bool) -> Exports {
        let mut all = self.lasting.clone();
        let passing = self.passing.iter().filter(|(name, _)| !read_only(name));
        add(&mut all, passing.map(|(name, exports)| (name.clone(), exports.clone())));
        all
    }

    /// The state file has these: what was passing is lasting if it is among them.
    pub(super) fn were_kept(&mut self, kept: Exports) {
        add(&mut self.lasting, kept.into_iter());
    }
}

fn add(all: &mut Exports, more: impl Iterator<Item = (String, BTreeSet<String>)>) {
    more.for_each(|(name, exports)| all.entry(name).or_default().extend(exports));
}

impl Inner {
    /// A removed device's name may be given to another.
    pub(super) fn forget_settings(&mut self) {
        let Inner { state, devices, .. } = self;
        state.file().retain_devices(|name| devices.contains_key(name));
    }
}

impl Devices {
    /// Whether the guest of the export `export` of the device `name` relies on every completed
    /// write being durable.
    pub fn is_write_through(&self, name: &str, export: &str) -> bool {
        self.state_file().is_write_through(name, export)
    }

    /// Turns that on or off; it survives a kill, unless the device is read-only.
    ///
    /// # Errors
    /// There is no such device; or the state file cannot be written: then it holds until this
    /// process ends.
    pub fn set_write_through(&self, name: &str, export: &str, on: bool) -> Result<(), DeviceError> {
        self.state_file().set_write_through(name, export, on)
    }
}
