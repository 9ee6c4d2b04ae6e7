//! Marking a store invalid on disk, before any code acts on it (I14).
//!
//! Owns the header write and its sync, which are a round of the store: while a commit's sync is in
//! flight, the system may tell that one that the header was lost, and this one's would succeed. Never
//! knows the cause.

use std::sync::Arc;

use super::core::{Core, FileRange};
use super::tag::{MetaOf, Owner};
use crate::cow::layout::Header;
use crate::cow::{Persistence, Store};
use crate::io::{Errno, IoOp};
use crate::rounds::Turn;

/// A store that is being marked Invalid.
#[derive(Debug)]
pub(super) struct Invalidation {
    store: Arc<Store>,
    header: Vec<u8>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for the end of a round.
    Wait,
    /// Writing the header.
    Write,
    /// Syncing it.
    Sync,
}

impl Invalidation {
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }
}

impl Core {
    /// Makes `store` Invalid, unless another worker does.
    pub(super) fn invalidate(&mut self, store: &Arc<Store>) {
        if !store.begin_invalidate() {
            return;
        }
        if store.persistence() == Persistence::Transient {
            return self.worker.all().wake(store.invalidated(true));
        }
        let chunk = store.geometry().chunk;
        let mut header = vec![0; chunk.bytes().min(4096) as usize];
        let bytes = Header { valid: false, chunk }.encode();
        header[..bytes.len()].copy_from_slice(&bytes);
        let store = store.clone();
        let index = self.invalidations.insert(Invalidation { store, header, stage: Stage::Wait });
        self.begin_invalidation(index);
    }

    /// Checks the invalidations that wait, after a wake.
    pub(super) fn look_at_invalidations(&mut self) {
        for index in 0..self.invalidations.capacity() {
            if self.invalidations.get(index).is_some_and(|of| of.stage == Stage::Wait) {
                self.begin_invalidation(index);
            }
        }
    }

    /// Writes the header as soon as no round of the store runs. That of a round which was running is
    /// the last: its leader leads no other when it finds the store's state changed.
    fn begin_invalidation(&mut self, index: usize) {
        let bit = self.worker.bit();
        let store = self.invalidations[index].store.clone();
        loop {
            match store.log().advance(&mut None, bit) {
                Turn::Lead => break,
                Turn::Wait => return,
                // Another's, which wrote no header.
                Turn::Ended => {}
            }
        }
        let invalidation = &mut self.invalidations[index];
        invalidation.stage = Stage::Write;
        let (file, len) = (store.file(), invalidation.header.len());
        let first = self.segs.len();
        self.segs.push(MetaOf::Invalidation.seg(index, len));
        let range = FileRange { file, offset: 0, len: len as u64 };
        self.act(IoOp::Write, range, first, Owner::Invalidation(index));
    }

    pub(super) fn invalidation_io_done(&mut self, index: usize, result: Result<(), Errno>) {
        let invalidation = &mut self.invalidations[index];
        if result.is_ok() && invalidation.stage == Stage::Write {
            invalidation.stage = Stage::Sync;
            let file = invalidation.store.file();
            return self.act_sync(file, Owner::Invalidation(index));
        }
        let Invalidation { store, .. } = self.invalidations.remove(index);
        let waiting = store.invalidated(result.is_ok());
        // Nobody waits for another: the store's state is enough for all.
        let joined = store.log().end_round(false).wake;
        self.worker.all().wake(waiting | joined);
    }

    /// Nobody will hear of their I/O: whether the headers were written is not known.
    pub(super) fn abandon_invalidations(&mut self) {
        for Invalidation { store, stage, .. } in self.invalidations.drain() {
            let mut waiting = store.invalidated(false);
            if stage != Stage::Wait {
                waiting |= store.log().end_round(false).wake;
            }
            self.worker.all().wake(waiting);
        }
    }
}
