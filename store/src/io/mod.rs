//! Input and output as the engine sees it: the actions that it asks for, and their results.
//!
//! The engine performs no I/O. It pushes [`Action`]s; an executor carries them out ([`Io`] on
//! files, a simulator in tests) and returns one [`Completion`] for each. Nothing here knows what a
//! chunk, a snapshot or a guest is.

pub mod ahead;
pub mod buffer;
pub mod durable;
pub mod executor;
pub mod files;
pub mod lock;
pub(crate) mod room;
pub mod shared;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod storage;
mod sync;
mod transfer;
mod transfers;
mod uring;
mod watch;

pub use ahead::{Ahead, Late};
pub(crate) use buffer::Slices;
pub use buffer::{GuestData, Pages, ScratchConfig};
pub use executor::{Io, IoOptions};
pub use files::{FileError, FileId, FileInfo, Files, Identity, OpenMode, real_path};
pub use lock::{Lock, LockError};
pub use shared::SharedWords;
pub use storage::{SLICE, Storage};

use crate::request::Token;

/// A scratch buffer of the worker, at least as long as the engine was told when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufId(pub u32);

/// The place of the bytes of a part of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seg {
    /// `len` bytes of a request's data, from byte `offset` of it.
    Guest {
        /// The request whose data it is.
        token: Token,
        /// First byte within the request's data.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// `len` bytes of a scratch buffer of the worker, from byte `offset` of it.
    Scratch {
        /// Which buffer.
        buf: BufId,
        /// First byte within the buffer.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// `len` bytes of zero; only in writes.
    Zero {
        /// Bytes.
        len: u32,
    },
    /// `len` bytes of metadata that the engine holds; only in writes. Copied when the action is
    /// carried out.
    Meta {
        /// The engine's name for them.
        slot: u32,
        /// Bytes.
        len: u32,
    },
}

impl Seg {
    /// Bytes in this part.
    pub fn len(&self) -> u32 {
        match *self {
            Seg::Guest { len, .. }
            | Seg::Scratch { len, .. }
            | Seg::Zero { len }
            | Seg::Meta { len, .. } => len,
        }
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An operation on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoOp {
    /// Fill the parts from the file. Past the file's end is an error, not zeroes.
    Read,
    /// Write the parts to the file.
    Write,
    /// Fill the parts with zeroes; no file is meant.
    Clear,
    /// Make all writes to the file that completed before durable (fdatasync).
    Sync,
    /// Make the range read as zeroes; its space is kept or released, whichever is cheapest.
    Zero,
    /// Make the range read as zeroes and release its space.
    Punch,
    /// Tell the device below that the range is not needed; its content is undefined then.
    Discard,
}

/// The engine's name for an action in flight; comes back in its [`Completion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// One action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub op: IoOp,
    /// To which file.
    pub file: FileId,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes; for reads and writes the sum of the parts.
    pub len: u64,
    /// First of the action's parts in the engine's list, and how many.
    pub segs: (u32, u32),
    /// Returned when it is done.
    pub tag: Tag,
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub tag: Tag,
    /// `Ok` only if all of `len` was done; an executor resubmits the rest of a partial operation
    /// and turns an end of file into `EIO`. The error is a positive errno.
    pub result: Result<(), Errno>,
}

/// A system error number, positive (`EIO` is 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Input/output error.
    pub const EIO: Errno = Errno(libc::EIO);
    /// No space left.
    pub const ENOSPC: Errno = Errno(libc::ENOSPC);
    /// No space left for the file's owner, or its project.
    pub const EDQUOT: Errno = Errno(libc::EDQUOT);

    /// Whether there is no room, or none for the file's owner.
    pub fn is_no_space(self) -> bool {
        matches!(self, Errno::ENOSPC | Errno::EDQUOT)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}
