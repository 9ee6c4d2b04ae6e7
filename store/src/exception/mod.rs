//! Relocation: which chunks of a device live elsewhere, and who is moving one right now.
//!
//! `table` is what others see: a word a chunk (`word`). Words lie in a `leaf` a region, and the
//! `directory` says which one and how long it lives. They lie in the process's memory, or in an
//! `arena`, of which a part is in memory at a time. What a store lists gets there by an `intake`.
//!
//! Owns the table that all workers of a store share and the protocol by which they meet in it.
//! Never knows why a chunk is moved: a target decides that. Keeps I5 (at most one pending a
//! chunk; pending and mapped never both) and I17 (register, look again, sleep).

pub mod arena;
mod directory;
mod intake;
mod leaf;
pub mod table;
pub mod word;

pub use arena::{Arena, Memory};
pub use intake::Intake;
pub use table::{Claim, Counts, ExceptionTable};
pub use word::{Entry, Layer, Place};
