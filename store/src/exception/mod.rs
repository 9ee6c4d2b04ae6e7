//! Relocation: which chunks of a device are elsewhere, and which worker is moving one at the
//! moment.
//!
//! Other modules see `table`: one word per chunk (`word`). Each region has a `leaf` of words, and
//! the `directory` says which one it is and how long it lives. Leaves are in the process's memory,
//! or in an `arena`, of which only a part is in memory at a time. An `intake` loads the list of a
//! store.
//!
//! Owns the table that all workers of a store share and the protocol by which they meet in it.
//! Never knows why a chunk is moved: a target decides that. Keeps I5 (at most one pending move per
//! chunk; never both pending and mapped) and I17 (register, check again, sleep).

pub mod arena;
mod directory;
mod intake;
mod leaf;
pub mod table;
pub mod word;

pub use arena::{Arena, Memory};
pub use intake::Intake;
pub use table::{Claim, Counts, ExceptionTable};
pub use word::{ChunkState, Layer, Place};
