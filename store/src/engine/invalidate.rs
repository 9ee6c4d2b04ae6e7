//! Marking a store invalid on disk, before any code acts on it (I14).
//!
//! Owns the header write and its sync. Never knows the cause.

use std::sync::Arc;

use super::core::{Core, Kind, MetaOf};
use crate::cow::layout::Header;
use crate::cow::{Persistence, Store};
use crate::io::IoOp;
use crate::table::Table;

/// A store that is being marked Invalid.
#[derive(Debug)]
pub(super) struct Invalidation {
    store: Arc<Store>,
    header: Vec<u8>,
    written: bool,
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
            store.invalidated(true);
            self.worker.all().wake(u64::MAX);
            return;
        }
        let chunk = store.geometry().chunk;
        let mut header = vec![0; chunk.bytes().min(4096) as usize];
        let bytes = Header { valid: false, chunk }.encode();
        header[..bytes.len()].copy_from_slice(&bytes);
        let (file, len) = (store.file(), header.len());
        let store = store.clone();
        let index = self.invalidations.insert(Invalidation { store, header, written: false });
        let first = self.segs.len();
        self.segs.push(MetaOf::Invalidation.seg(index, len));
        self.act(IoOp::Write, file, 0, len as u64, first, (Kind::Invalidation, 0, index));
    }

    pub(super) fn invalidation_io_done(&mut self, _table: &Table, index: usize, ok: bool) {
        let invalidation = &mut self.invalidations[index];
        if ok && !invalidation.written {
            invalidation.written = true;
            let file = invalidation.store.file();
            let first = self.segs.len();
            return self.act(IoOp::Sync, file, 0, 0, first, (Kind::Invalidation, 0, index));
        }
        let Invalidation { store, .. } = self.invalidations.remove(index);
        store.invalidated(ok);
        self.worker.all().wake(u64::MAX);
    }
}
