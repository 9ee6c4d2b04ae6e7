//! snapblk's device.
