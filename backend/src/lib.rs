//! snapblk's device and its command line.

pub mod cli;
