//! A store's metadata: its format, how it is opened, and how new entries become durable.
//!
//! Owns everything that is written to a store except the chunks' data. Never knows a target, an
//! origin or a copy. Keeps I2, I3, I11, I13 and I16.

pub mod adopt;
pub mod error;
pub mod layout;
pub mod log;
pub mod open;
#[cfg(not(feature = "shuttle"))]
pub mod owed;
pub mod store;
pub mod tail;
mod threshold;
pub mod words;

pub use error::{Problem, ProblemKind, StoreError, StoreErrorKind};
pub use layout::{Entry, Geometry, Header};
pub use log::{Allocation, Log};
pub use open::{Keep, OpenOptions, OpenStore};
pub use store::{MergeMark, Persistence, Store, StoreState};
