//! A store on disk: the kernel's persistent exception store, version 1.
//!
//! Owns the bytes: where a header, an area and a data chunk lie, and how a store is read before
//! it serves. Never knows who uses a store (a snapshot, a merge, a tool) or what waits for it.

pub mod layout;

pub use layout::{Entry, Geometry, Header};
