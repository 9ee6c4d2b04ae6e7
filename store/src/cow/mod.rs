//! A store on disk: the kernel's persistent exception store, version 1.
//!
//! Owns the bytes: where a header, an area and a data chunk lie, and how a store is read before
//! it serves. Never knows who uses a store (a snapshot, a merge, a tool) or what waits for it.

pub mod error;
pub mod layout;
pub mod open;

pub use error::{Problem, ProblemKind, StoreError, StoreErrorKind};
pub use layout::{Entry, Geometry, Header};
pub use open::{OpenOptions, OpenStore};
