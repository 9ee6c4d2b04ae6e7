//! Flushing before guests are stopped, so that they are stopped for less time.
//!
//! Owns only this flush. No verb depends on it: each verb flushes what it must while guests are
//! stopped, and waits for commits that are under way. Keeps: it holds no lock, and a disk that
//! hangs delays the caller no longer than a verb's deadline.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

use super::build::Active;
use super::core::Devices;
use super::serving::blocked;
use super::verbs::with_uppers;
use crate::cow::log::RING;
use crate::table::Table;

/// The most flushes in a row: guests continue, and may owe much again.
const FLUSHES: usize = 3;

impl Devices {
    /// Makes the owed chunks of the devices `names` and of those above them durable, if there are
    /// many and guests are served. To be called before a verb that stops these devices, and before
    /// guests are frozen for it. An error here also occurs there: a file reports it again, and a
    /// failed store stays failed.
    pub fn flush_ahead<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names: Vec<&str> = names.into_iter().collect();
        let deadline = Instant::now() + self.config.deadline;
        for _ in 0..FLUSHES {
            let tables = self.owing_much(&names);
            if tables.is_empty() || !self.flush_until(deadline, tables) {
                break;
            }
        }
    }

    fn owing_much(&self, names: &[&str]) -> Vec<Arc<Table>> {
        let inner = &*self.look();
        let mut all: Vec<String> = names.iter().flat_map(|name| with_uppers(inner, name)).collect();
        all.sort();
        all.dedup();
        let serving = all.iter().filter(|name| !blocked(inner, name));
        let active = serving.flat_map(|name| inner.active(name));
        active.filter(|active| owes_much(active)).map(|active| active.table.clone()).collect()
    }

    /// Flushes all of them, each in its own thread, which continues if it takes longer. False if
    /// one does.
    fn flush_until(&self, deadline: Instant, tables: Vec<Arc<Table>>) -> bool {
        let (ended, end) = channel::<()>();
        for table in tables {
            let (flusher, ended) = (self.config.flusher.clone(), ended.clone());
            let flush = move || {
                flusher.flush(&table);
                drop(ended);
            };
            if std::thread::Builder::new().name("flush ahead".into()).spawn(flush).is_err() {
                return false;
            }
        }
        drop(ended);
        // Nothing is ever sent: the channel is closed when all have ended.
        let left = deadline.saturating_duration_since(Instant::now());
        end.recv_timeout(left) == Err(RecvTimeoutError::Disconnected)
    }
}

/// Whether a flush, or the end of a commit that is under way, would take long on a disk.
fn owes_much(active: &Active) -> bool {
    let mut logs = active.table.flush_set().stores.iter().map(|store| store.log());
    logs.any(|log| log.owes() > RING / 2 || log.is_committing())
}
