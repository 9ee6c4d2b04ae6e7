//! The control plane through the real program: its monitor, its tables, its state, with a real
//! front end at its sockets.

mod common;
mod devices;
mod history;
mod overlays;
mod snapshots;
