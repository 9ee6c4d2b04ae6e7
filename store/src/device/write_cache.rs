//! Whether a guest turned its disk's write cache off.
//!
//! Owns that this setting survives the process: neither guests nor front-ends repeat it. Never
//! knows how a write becomes durable. Takes no lock that a verb holds while it waits for a disk: a guest
//! waits for this.

use super::core::{Devices, Inner};
use super::error::DeviceError;

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
