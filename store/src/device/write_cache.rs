//! Whether a guest turned its disk's write cache off.
//!
//! Owns that this outlives the process: neither guests nor front-ends say it again. Never knows how a
//! write becomes durable.

use super::core::{Devices, Inner};
use super::error::DeviceError;

impl Inner {
    /// Who is gone may come back as another.
    pub(super) fn forget_caches(&mut self) {
        let Inner { state, devices, .. } = self;
        state.write_through.retain(|name| devices.contains_key(name));
    }
}

impl Devices {
    /// Whether the guest of the device `name` counts on every write being durable when it ends.
    pub fn is_write_through(&self, name: &str) -> bool {
        self.lock().state.write_through.contains(name)
    }

    /// It does from now on, or does no more; also after the process was killed.
    ///
    /// # Errors
    /// No such device; or the state file cannot be written: then it holds until this process ends.
    pub fn set_write_through(&self, name: &str, on: bool) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.device(name)?;
        let changed = match on {
            true => inner.state.write_through.insert(name.to_owned()),
            false => inner.state.write_through.remove(name),
        };
        if changed { self.keep(inner) } else { Ok(()) }
    }
}
