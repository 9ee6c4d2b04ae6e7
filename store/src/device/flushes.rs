//! Flushes of tables, which a disk that does not answer must not hold up for ever.
//!
//! Owns the thread of each flush, and how long a verb waits for it. Never knows what a table is
//! flushed for. Keeps: a flush that is given up goes on, with its files open and locked, until its
//! disk answers, so that whoever syncs these files later waits for that and learns of a failure;
//! and until then no other flush of these files is given up beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::build::{Active, Snap};
use super::core::{Devices, Flushed};
use super::error::DeviceError;
use crate::background::FlushError;
use crate::io::{FileId, Identity};
use crate::table::Table;

/// Flushes at a time: each takes a place among the workers.
const AT_ONCE: usize = 64;

/// It has not ended in time, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late;

/// The flushes that run.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    running: Mutex<Vec<Arc<Running>>>,
    ended: Condvar,
}

/// One of them.
#[derive(Debug)]
struct Running {
    table: Arc<Table>,
    given_up: AtomicBool,
}

impl Running {
    /// Whether a flush of `table` has to wait for it.
    fn holds_up(&self, table: &Table) -> bool {
        let shared = || self.table.files().iter().any(|file| table.files().contains(file));
        self.given_up.load(Ordering::SeqCst) && shared()
    }
}

/// Keeps one of them in the list.
struct Flight {
    flushes: Arc<Flushes>,
    running: Arc<Running>,
}

impl Flushes {
    fn begin(self: &Arc<Self>, table: &Arc<Table>) -> Flight {
        let running = Running { table: table.clone(), given_up: AtomicBool::new(false) };
        let running = Arc::new(running);
        self.running().push(running.clone());
        Flight { flushes: self.clone(), running }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<Running>>> {
        // The list is whole between any two statements.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Waits until no other flush that was given up uses one of its files.
    fn wait_for_late(&self, deadline: Instant) -> Result<(), Late> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (own, flushes) = (&self.running, &self.flushes);
        let holds_up =
            |other: &Arc<Running>| !Arc::ptr_eq(other, own) && other.holds_up(&own.table);
        let waited = flushes
            .ended
            .wait_timeout_while(flushes.running(), left, |running| running.iter().any(holds_up));
        let timed_out = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        if timed_out { Err(Late) } else { Ok(()) }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flushes.running().retain(|other| !Arc::ptr_eq(other, &self.running));
        self.flushes.ended.notify_all();
    }
}

/// A flush that was begun.
enum Begun {
    /// It has ended already.
    Ended(Flushed),
    /// It runs.
    Runs(Arc<Running>),
}

impl Devices {
    /// Makes everything durable that `active`, the table of the device `name`, owes. An Invalid store
    /// owes nothing any more, but its neighbours do.
    ///
    /// # Errors
    /// [`DeviceError::FlushFailed`]; or [`DeviceError::FlushLate`], and the flush goes on: its stores
    /// must stay as they are.
    pub(super) fn flush(&self, name: &str, active: &Active) -> Result<(), DeviceError> {
        self.flush_all([(name, active)]).remove(0)
    }

    /// The same for several devices, side by side.
    pub(super) fn flush_all<'a>(
        &self,
        all: impl IntoIterator<Item = (&'a str, &'a Active)>,
    ) -> Vec<Result<(), DeviceError>> {
        self.flush_within(self.config.deadline, all)
    }

    /// The same with another limit.
    pub(super) fn flush_within<'a>(
        &self,
        limit: Duration,
        all: impl IntoIterator<Item = (&'a str, &'a Active)>,
    ) -> Vec<Result<(), DeviceError>> {
        let (names, active): (Vec<&str>, Vec<&Active>) = all.into_iter().unzip();
        let ended = self.flush_until(Instant::now() + limit, &active);
        let of = names.into_iter().zip(active).zip(ended);
        of.map(|((name, active), ended)| match ended {
            Ok(Flushed::Failed) if owes_to_invalid_alone(active) => Ok(()),
            ended => judged(name, ended, limit),
        })
        .collect()
    }

    /// The same for one device, whose stores are all to be used on: none may be Invalid.
    pub(super) fn flush_valid(&self, name: &str, active: &Active) -> Result<(), DeviceError> {
        let deadline = Instant::now() + self.config.deadline;
        judged(name, self.flush_until(deadline, &[active]).remove(0), self.config.deadline)
    }

    /// Whether a flush that was given up may still write to the file at `path`.
    pub(super) fn is_flushed_late(&self, path: &Path) -> bool {
        let Ok(identity) = Identity::of_path(path) else { return false };
        let is_it = |file: &FileId| self.files.get(*file).is_some_and(|of| of.identity == identity);
        let running = self.flushes.running();
        let mut late = running.iter().filter(|flush| flush.given_up.load(Ordering::SeqCst));
        late.any(|flush| flush.table.files().iter().any(is_it))
    }

    /// Flushes each table of `all`, several at a time, and gives those up that have not ended at the
    /// deadline.
    pub(super) fn flush_until(
        &self,
        deadline: Instant,
        all: &[&Active],
    ) -> Vec<Result<Flushed, Late>> {
        let mut results = vec![Err(Late); all.len()];
        let mut running: BTreeMap<usize, Arc<Running>> = BTreeMap::new();
        let (end, ends) = channel();
        // Those first that end at once: no other takes their place.
        let mut waiting: Vec<usize> = (0..all.len()).collect();
        waiting.sort_by_key(|&index| self.config.flusher.may_hang(&all[index].table));
        let mut waiting = waiting.into_iter().peekable();
        while waiting.peek().is_some() || !running.is_empty() {
            if running.len() < AT_ONCE
                && let Some(index) = waiting.next()
            {
                let ended = end.clone();
                let then = move |flushed| _ = ended.send((index, flushed));
                match self.begin_flush(deadline, all[index], then) {
                    Begun::Ended(flushed) => results[index] = Ok(flushed),
                    Begun::Runs(flush) => _ = running.insert(index, flush),
                }
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((index, flushed)) = ends.recv_timeout(left) else { break };
            results[index] = flushed;
            running.remove(&index);
        }
        running.values().for_each(|flush| flush.given_up.store(true, Ordering::SeqCst));
        results
    }

    /// Flushes in a thread of its own, which calls `then` at its end, unless no disk can hold it up, or
    /// there is no thread.
    fn begin_flush(
        &self,
        deadline: Instant,
        active: &Active,
        then: impl FnOnce(Result<Flushed, Late>) + Send + 'static,
    ) -> Begun {
        let here = || Begun::Ended(self.config.flusher.try_flush(&active.table));
        if !self.config.flusher.may_hang(&active.table) {
            return here();
        }
        let (flusher, kept) = (self.config.flusher.clone(), active.clone());
        let flight = self.flushes.begin(&active.table);
        let running = flight.running.clone();
        let flush = move || {
            let flushed = flight.wait_for_late(deadline).map(|()| flusher.try_flush(&kept.table));
            // Whoever hears of the end may close the files, and expects them closed.
            drop(kept);
            drop(flight);
            then(flushed);
        };
        match std::thread::Builder::new().name("flush".into()).spawn(flush) {
            Ok(_) => Begun::Runs(running),
            // Without a limit rather than not at all.
            Err(_) => here(),
        }
    }
}

fn judged(name: &str, ended: Result<Flushed, Late>, limit: Duration) -> Result<(), DeviceError> {
    match ended {
        Ok(Flushed::Done) => Ok(()),
        Ok(Flushed::Failed | Flushed::NotRun) => Err(DeviceError::FlushFailed(name.into())),
        Err(Late) => Err(DeviceError::FlushLate { device: name.into(), limit }),
    }
}

/// Whether a flush that failed has failed for Invalid stores alone.
fn owes_to_invalid_alone(active: &Active) -> bool {
    let invalid = |snap: &Snap| snap.live.store.state().is_invalid();
    let flushed = active.snaps.values().any(invalid) && owes_no_more(active);
    // The flusher leaves the decision to this function if it cannot tell.
    if !flushed && active.table.flush_set().has_invalid() {
        tracing::error!("cannot flush a table with an invalid store: {}", FlushError::Failed);
    }
    flushed
}

/// Whether all of a table but its Invalid stores was flushed, according to the table itself.
fn owes_no_more(active: &Active) -> bool {
    let set = active.table.flush_set();
    let mut stores = set.stores.iter().chain(&set.merged).filter(|store| !store.is_sealed());
    let mut files =
        set.media.iter().chain(set.below.iter().filter(|file| file.medium.is_left_unsynced()));
    stores.all(|store| match store.state() {
        state if state.can_commit() => store.log().owed_count() == 0,
        state => state.is_invalid(),
    }) && !files.any(|file| file.has_failed())
}
