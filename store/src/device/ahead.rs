//! Flushing before guests are stopped, so that they are stopped for less time.
//!
//! Owns only this flush. No verb depends on it: each verb flushes what it must while guests are
//! stopped, and waits for commits that are under way. Keeps: it holds no lock, and a disk that
//! hangs delays the caller no longer than a verb's deadline.

use std::time::Instant;

use super::build::Active;
use super::core::Devices;
use super::flushes::Late;
use super::serving::blocked;
use super::verbs::with_uppers;
use crate::cow::log::RING;

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
            let owing = self.owing_much(&names);
            let all: Vec<&Active> = owing.iter().collect();
            if all.is_empty() || self.flush_until(deadline, &all).contains(&Err(Late)) {
                break;
            }
        }
    }

    fn owing_much(&self, names: &[&str]) -> Vec<Active> {
        let inner = &*self.lock_unsettled();
        let mut all: Vec<String> = names.iter().flat_map(|name| with_uppers(inner, name)).collect();
        all.sort();
        all.dedup();
        let serving = all.iter().filter(|name| !blocked(inner, name));
        let active = serving.flat_map(|name| inner.active(name));
        active.filter(|active| owes_much(active)).cloned().collect()
    }
}

/// Whether a flush, or the end of a commit that is under way, would take long on a disk.
fn owes_much(active: &Active) -> bool {
    let mut logs = active.table.flush_set().stores.iter().map(|store| store.log());
    logs.any(|log| log.owed_count() > RING / 2 || log.is_committing())
}
