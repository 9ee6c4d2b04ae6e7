//! The atomics that workers share, in one place, so that a model checker can replace them.
//!
//! With the feature `shuttle` every load, store and read-modify-write of the exception table, the
//! log and the inboxes becomes a scheduling point of the checker.

#[cfg(not(feature = "shuttle"))]
pub use std::sync::atomic;

#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic;
