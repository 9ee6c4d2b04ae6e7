//! snapblk's device.

pub mod cli;
