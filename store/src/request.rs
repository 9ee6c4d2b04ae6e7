//! Requests to a device, and their results.
//!
//! Owns the vocabulary between the source of requests (a virtqueue, a test) and the engine. Never
//! knows where a request came from or where its bytes are: data is named by the request's
//! [`Token`] and an offset into it.

use crate::units::Sector;

/// The submitter's name for a request. Unique among the requests in flight of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u32);

/// The operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Fill the request's bytes from the device.
    Read,
    /// Put the request's bytes on the device.
    Write,
    /// Make every write that completed before durable. Has no range.
    Flush,
    /// The content of the range is no longer needed.
    Discard,
    /// The range must read as zeroes; with `unmap` its space may be released.
    WriteZeroes {
        /// Whether the space may be released.
        unmap: bool,
    },
}

/// One request. The submitter has checked that the range is within the device; where the device shrank
/// since, the request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The submitter's name for it, and for its bytes.
    pub token: Token,
    /// What to do.
    pub op: Op,
    /// First sector of the range (0 for a flush).
    pub sector: Sector,
    /// Length of the range in bytes, a multiple of 512 (0 for a flush).
    pub len: u64,
    /// Write-through: the request ends only when its data is durable.
    pub durable: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// All of it was done.
    Ok,
    /// Some of it could not be done.
    Error,
    /// Likewise, for lack of room in a store or in the file system below.
    NoSpace,
}
