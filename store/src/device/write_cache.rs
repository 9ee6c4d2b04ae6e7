//! Whether a guest turned its disk's write cache off.
//!
//! Owns that this setting survives the process: neither guests nor front-ends repeat it. Never
//! knows how a write becomes durable.

use super::core::{Devices, Inner};
use super::error::DeviceError;

impl Inner {
    /// A removed device's name may be given to another.
    pub(super) fn forget_caches(&mut self) {
        let Inner { state, devices, .. } = self;
        state.write_through.retain(|name, _| devices.contains_key(name));
    }
}

impl Devices {
    /// Whether the guest of the export `export` of the device `name` relies on every completed
    /// write being durable.
    pub fn is_write_through(&self, name: &str, export: &str) -> bool {
        let inner = self.look();
        inner.state.write_through.get(name).is_some_and(|exports| exports.contains(export))
    }

    /// Turns that on or off; it survives a kill, unless the device is read-only.
    ///
    /// # Errors
    /// There is no such device; or the state file cannot be written: then it holds until this
    /// process ends.
    pub fn set_write_through(&self, name: &str, export: &str, on: bool) -> Result<(), DeviceError> {
        // A guest waits for this, and it changes no table.
        let inner = &mut *self.look();
        let device = inner.device(name)?;
        let read_only = device.active.as_ref().is_some_and(|active| active.read_only);
        let exports = inner.state.write_through.entry(name.to_owned()).or_default();
        let changed = match on {
            true => exports.insert(export.to_owned()),
            false => exports.remove(export),
        };
        inner.state.write_through.retain(|_, exports| !exports.is_empty());
        // What is only read has nothing to lose, and its file may be shared by servers which would then want
        // one state.
        if changed && !read_only { self.keep(inner) } else { Ok(()) }
    }
}
