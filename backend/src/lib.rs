//! snapblk's device.

pub mod binding;
pub mod cli;
pub mod config;
pub mod export;
pub mod memory;
pub mod request;
pub mod session;
pub mod vring;
pub mod worker;

#[cfg(test)]
mod testing;
