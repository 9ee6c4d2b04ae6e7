//! The snapshot engine of snapblk.
//!
//! A userspace device-mapper whose devices are the disks of guests: tables of targets over files,
//! and copy-on-write snapshots in the Linux kernel's own store format. This crate knows nothing of
//! virtio, vhost-user, guest memory or the monitor's wire format.

extern crate self as snapblk_store;

pub mod attached;
pub mod background;
pub mod control;
pub mod cow;
#[cfg(not(feature = "shuttle"))]
pub mod device;
pub mod engine;
pub mod exception;
#[cfg(not(feature = "shuttle"))]
pub mod flusher;
pub mod io;
pub mod lines;
pub mod request;
pub mod rounds;
pub mod sync;
pub mod table;
pub mod target;
pub mod units;
pub mod wake;
pub mod workers;
