//! snapblk's device, its monitor's commands and its command line.
//!
//! Owns the guest's protocol (vhost-user-blk), the worker of each virtqueue, and the process.
//! Never knows where a chunk lies: the engine in `snapblk-store` does.

pub mod agent;
pub mod binding;
pub mod cli;
pub mod config;
pub mod export;
pub mod memory;
pub mod request;
pub mod server;
pub mod session;
pub mod signals;
pub mod vring;
pub mod worker;

#[cfg(test)]
mod testing;
