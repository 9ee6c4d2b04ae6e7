//! The control plane through the real program: its monitor, its tables, its state, with a real
//! front end at its sockets.

mod commits;
mod common;
mod config;
mod devices;
mod exports;
mod full;
mod golden;
mod handovers;
mod history;
mod hostile;
mod jobs;
mod lockfs;
mod locks;
mod merges;
mod moments;
mod monitor;
mod overlays;
mod owed;
mod passdown;
mod resize;
mod sharing;
mod snapshots;
mod starts;
mod state;
mod waits;
