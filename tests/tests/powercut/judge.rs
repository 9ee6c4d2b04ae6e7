//! The expected content of the disks after a power cut.
//!
//! Owns the model: for each sector of the disk the permitted writes, and for each snapshot its
//! origin's content. It learns from the marks in the log. Never knows which writes a cut kept.

use std::collections::HashMap;

use snapblk_tests::disk::Disk;
use snapblk_tests::disklog::Record;
use snapblk_tests::powercut::Mark;
use snapblk_tests::server::{Place, Scratch, ServerCommand};
use snapblk_tests::verify::stamp::{Found, Generation, SECTOR, stamp};

use crate::guest::{FIRST, MARKS, Mode, ORIGIN, SECOND};
use crate::store::compose;

/// The progress of the rollback to the first snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    None,
    /// Requested, but not answered: the disk is one or the other.
    Asked,
    /// The disk is the first snapshot with the writes since.
    Begun,
}

pub(crate) struct Judge {
    mode: Mode,
    /// The generations written to a sector, in order.
    writes: Vec<Vec<u32>>,
    /// All generations up to this are flushed.
    flushed: u32,
    newest: u32,
    /// The generation of each sector, by snapshot.
    taken: Vec<Vec<u32>>,
    merge: Merge,
    stamps: HashMap<(usize, u32), [u8; SECTOR]>,
}

/// The chunk sizes of the stores in sectors: see the load.
const CHUNKS: [usize; 2] = [1, 8];

impl Judge {
    pub(crate) fn new(mode: Mode, sectors: u64) -> Judge {
        Judge {
            mode,
            writes: vec![vec![1]; sectors as usize],
            flushed: 1,
            newest: 1,
            taken: Vec::new(),
            merge: Merge::None,
            stamps: HashMap::new(),
        }
    }

    /// Learns from a record.
    pub(crate) fn see(&mut self, record: &Record) {
        let Record::Write { disk: MARKS, bytes, .. } = record else { return };
        match Mark::decode(bytes).expect("marks alone are written there") {
            Mark::Batch(writes) => {
                for write in writes {
                    for sector in write.first..write.first + write.sectors {
                        self.writes[sector as usize].push(write.generation);
                    }
                    self.newest = self.newest.max(write.generation);
                }
            }
            Mark::Flushed(upto) => self.flushed = self.flushed.max(upto),
            Mark::Taken(n) => {
                assert_eq!((self.flushed, self.taken.len()), (self.newest, n as usize));
                let newest = |writes: &Vec<u32>| *writes.last().expect("there is a first");
                self.taken.push(self.writes.iter().map(newest).collect());
            }
            Mark::MergeAsked(_) => self.merge = Merge::Asked,
            Mark::MergeBegun(n) => {
                self.merge = Merge::Begun;
                let taken = &self.taken[n as usize];
                self.writes = taken.iter().map(|&generation| vec![generation]).collect();
            }
            // The removals are durable, so the disk can be read with or without the store.
            Mark::MergeEnded(_) => {}
        }
    }

    /// Compares everything that can be read after a cut.
    pub(crate) fn judge(&mut self, disks: &[Vec<u8>]) -> Result<(), String> {
        let origin = &disks[ORIGIN];
        let first =
            compose(origin, &disks[FIRST], CHUNKS[0]).map_err(|e| format!("store 1: {e}"))?;
        if self.mode == Mode::Overlay {
            return self.disk(&first);
        }
        let second = compose(origin, &disks[SECOND], CHUNKS[1]);
        match self.merge {
            Merge::None => self.disk(origin)?,
            Merge::Asked => {}
            Merge::Begun => self.disk(&first)?,
        }
        if self.merge != Merge::Begun && !self.taken.is_empty() {
            self.snapshot(0, &first)?;
        }
        if self.taken.len() > 1 {
            self.snapshot(1, &second.map_err(|error| format!("store 2: {error}"))?)?;
        }
        Ok(())
    }

    /// Each sector has the newest flushed write, or a later one.
    fn disk(&mut self, content: &[u8]) -> Result<(), String> {
        for (sector, bytes) in content.chunks_exact(SECTOR).enumerate() {
            let writes = &self.writes[sector];
            let since = writes.iter().rposition(|&g| g <= self.flushed).unwrap_or(0);
            let permitted = writes[since..].to_vec();
            if !permitted.iter().any(|&generation| self.is_stamp(sector, generation, bytes)) {
                let found = Found::new(bytes);
                return Err(format!(
                    "disk: sector {sector} holds {found}, not one of {permitted:?}"
                ));
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, n: usize, content: &[u8]) -> Result<(), String> {
        for (sector, bytes) in content.chunks_exact(SECTOR).enumerate() {
            let generation = self.taken[n][sector];
            if !self.is_stamp(sector, generation, bytes) {
                let found = Found::new(bytes);
                return Err(format!(
                    "snapshot {n}: sector {sector} holds {found}, not {generation}"
                ));
            }
        }
        Ok(())
    }

    fn is_stamp(&mut self, sector: usize, generation: u32, bytes: &[u8]) -> bool {
        let stamped = self.stamps.entry((sector, generation)).or_insert_with(|| {
            let mut bytes = [0; SECTOR];
            stamp(sector as u64, Generation(generation), &mut bytes);
            bytes
        });
        stamped == bytes
    }

    /// snapblk opens the stores as well, and must find the same content.
    pub(crate) fn serve_again(&self, disks: &[Vec<u8>]) -> Result<(), String> {
        let stores = if self.mode == Mode::Overlay { 1 } else { self.taken.len() };
        for (store, chunk) in [FIRST, SECOND].into_iter().zip(CHUNKS).take(stores) {
            let scratch = Scratch::new(Place::Memory).map_err(|error| error.to_string())?;
            scratch.file("origin", &disks[ORIGIN]).map_err(|error| error.to_string())?;
            scratch.file("store", &disks[store]).map_err(|error| error.to_string())?;
            let sectors = disks[ORIGIN].len() / SECTOR;
            let table = format!("0 {sectors} snapshot ./origin ./store PO {chunk}");
            let command = ServerCommand::snapblk(&scratch).map_err(|error| error.to_string())?;
            let server = command.arg("--num-queues").arg("1").arg("--table").arg(table).start();
            let server = server.map_err(|error| error.to_string())?;
            let mut disk = Disk::connect(server.socket()).map_err(|error| error.to_string())?;
            let found = disk.read_all().map_err(|error| error.to_string())?;
            if found != compose(&disks[ORIGIN], &disks[store], chunk)? {
                return Err(format!("snapblk reads something else in store {store}"));
            }
        }
        Ok(())
    }
}
