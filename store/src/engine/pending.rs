//! A request in flight: who asked, how far it is, and what it waits for.
//!
//! Owns no more than that. Never knows where the request goes.

use super::room::NoRoomIn;
use crate::request::{Op, Token};

/// The source of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// The host.
    Host(Token),
    /// The merge that runs here: it asks that a range of the origin may be overwritten.
    Merge,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Its dispatch, which may be going on.
    Dispatch,
    /// In the parked list: a wake.
    Wake,
    /// In the parked list: room in a store or in a file.
    Room,
    /// In the parked list: the end of a batch that is merged, which has the chunk at its cursor.
    Batch,
    /// A commit: before it is dispatched again, or before it ends.
    Commit,
    /// Its own actions and claims, and nothing else: it was dispatched to its end.
    Parts,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) asker: Asker,
    pub(super) op: Op,
    pub(super) durable: bool,
    /// First byte on the device.
    pub(super) start: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Bytes dispatched.
    pub(super) cursor: u64,
    /// Its actions and claims that have not ended.
    pub(super) outstanding: u32,
    pub(super) failed: bool,
    /// A part of it found no room.
    pub(super) no_space: bool,
    /// Where it found no room when it was last tried: there is some once it is written.
    pub(super) no_room_in: Option<NoRoomIn>,
    /// A piece from here on found no room: when all parts have ended, it is dispatched again from
    /// here.
    pub(super) again: Option<u64>,
    pub(super) waits: WaitsFor,
}

impl Pending {
    /// A request for `len` bytes from `start` on, which waits for its dispatch.
    pub(super) fn new(asker: Asker, op: Op, start: u64, len: u64, durable: bool) -> Pending {
        Pending {
            asker,
            op,
            durable,
            start,
            len,
            cursor: 0,
            outstanding: 0,
            failed: false,
            no_space: false,
            no_room_in: None,
            again: None,
            waits: WaitsFor::Dispatch,
        }
    }
}
