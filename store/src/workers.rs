//! The workers of a process: how one wakes another, and their ranges in flight that others must
//! not overtake.
//!
//! Owns an inbox per worker (one word) and the worker's tracked ranges. Never knows what a worker
//! does. Keeps I17: to sleep, register and check again; to wake, set the cause and then look for a
//! sleeper. Keeps I6 with those who use them: a range is seen by whoever looks after it was tracked.

use std::sync::{Arc, Mutex, RwLock};

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::wake::{Waiters, WakeSet, WorkerBit};

/// Workers a process can have at a time.
pub const MAX_WORKERS: usize = 512;
/// Of these, places reserved for flushes and jobs, however many queues there are.
pub const KEPT: usize = 32;
/// Ranges that a worker can track at a time. Few for the model checker.
pub const TRACKED: usize = if cfg!(feature = "shuttle") { 2 } else { 128 };

const WOKEN: u64 = 1;
const SLEEPING: u64 = 1 << 63;

/// How a sleeping worker is woken: its host writes an eventfd, or notes it in a test.
pub trait Wake: Send + Sync {
    /// Ends the worker's sleep, or the next one if it does not sleep.
    fn wake(&self);
}

/// All places for workers are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there are {limit} queues and jobs already, which is all that this process has room for; \
     delete an export, give exports fewer queues, or wait until a job has ended"
)]
pub struct TooManyWorkers {
    /// How many there may be.
    pub limit: usize,
}

impl From<TooManyWorkers> for std::io::Error {
    fn from(error: TooManyWorkers) -> Self {
        std::io::Error::other(error)
    }
}

/// Identity of an origin, or of anything else whose ranges are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrackedObject(pub u32);

/// One range that a worker has in flight: written by that worker alone, read by all.
#[derive(Debug)]
struct Track {
    /// `start << 20 | length`, in sectors; 0 while free.
    range: AtomicU64,
    /// The tracked object that the range is part of.
    of: AtomicU32,
    /// The workers that wait until it is free.
    watchers: Waiters,
}

struct Slot {
    inbox: AtomicU64,
    in_flight: AtomicU32,
    tracks: Box<[Track]>,
    wake: RwLock<Option<Box<dyn Wake>>>,
}

/// All workers of a process.
pub struct Workers {
    slots: Box<[Slot]>,
    used: Mutex<Vec<bool>>,
    /// One past the highest slot ever used, so that scans stay short.
    high: AtomicU32,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("high", &self.high).finish()
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::with_capacity(MAX_WORKERS)
    }
}

impl Workers {
    /// Room for `capacity` workers at a time.
    pub fn with_capacity(capacity: usize) -> Self {
        let track = |_| Track {
            range: AtomicU64::new(0),
            of: AtomicU32::new(0),
            watchers: Waiters::default(),
        };
        let slot = |_| Slot {
            inbox: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            tracks: (0..TRACKED).map(track).collect(),
            wake: RwLock::new(None),
        };
        Workers {
            slots: (0..capacity).map(slot).collect(),
            used: Mutex::new(vec![false; capacity]),
            high: AtomicU32::new(0),
        }
    }

    /// Adds a worker.
    ///
    /// # Errors
    /// All places are taken.
    pub fn register(self: &Arc<Self>, wake: Box<dyn Wake>) -> Result<Worker, TooManyWorkers> {
        self.register_beside(wake, 0)
    }

    /// Adds a worker that may live as long as the process: the queue of an export.
    ///
    /// # Errors
    /// All places are taken but the [`KEPT`] ones.
    pub fn register_queue(self: &Arc<Self>, wake: Box<dyn Wake>) -> Result<Worker, TooManyWorkers> {
        self.register_beside(wake, KEPT)
    }

    /// Adds a worker if more than `kept` places are free.
    fn register_beside(
        self: &Arc<Self>,
        wake: Box<dyn Wake>,
        kept: usize,
    ) -> Result<Worker, TooManyWorkers> {
        let mut used = self.used.lock().expect("workers lock poisoned");
        let no_room = TooManyWorkers { limit: used.len().saturating_sub(kept) };
        if used.iter().filter(|used| !**used).count() <= kept {
            return Err(no_room);
        }
        let id = used.iter().position(|used| !used).ok_or(no_room)?;
        used[id] = true;
        *self.slots[id].wake.write().expect("wake lock poisoned") = Some(wake);
        self.slots[id].inbox.store(0, Ordering::SeqCst);
        self.high.fetch_max(id as u32 + 1, Ordering::SeqCst);
        Ok(Worker { workers: self.clone(), id })
    }

    /// Wakes the workers of `set`.
    pub fn wake(&self, set: WakeSet) {
        if set.is_empty() {
            return;
        }
        let high = self.high.load(Ordering::SeqCst) as usize;
        for (id, slot) in self.slots[..high].iter().enumerate() {
            if set.has(WorkerBit::of(id))
                && slot.inbox.fetch_or(WOKEN, Ordering::SeqCst) & SLEEPING != 0
                && let Some(wake) = &*slot.wake.read().expect("wake lock poisoned")
            {
                wake.wake();
            }
        }
    }

    /// Looks for a tracked range of `of` that overlaps `[start, start + len)` (sectors), in flight
    /// in any worker, and registers `worker` to be woken when it is gone. False if there is none.
    ///
    /// Before it calls, the caller has published the state that keeps *new* ranges from starting
    /// there; the fence below pairs with the one in [`Worker::track`].
    pub fn overlaps(&self, of: TrackedObject, start: u64, len: u64, worker: WorkerBit) -> bool {
        fence(Ordering::SeqCst);
        let high = self.high.load(Ordering::SeqCst) as usize;
        self.slots[..high]
            .iter()
            .filter(|slot| slot.in_flight.load(Ordering::SeqCst) != 0)
            .flat_map(|slot| slot.tracks.iter())
            .any(|track| track.overlaps(of, start, len) && track.watch(of, start, len, worker))
    }
}

impl Track {
    fn overlaps(&self, of: TrackedObject, start: u64, len: u64) -> bool {
        let range = self.range.load(Ordering::SeqCst);
        let (first, count) = (range >> 20, range & 0xf_ffff);
        range != 0
            && self.of.load(Ordering::SeqCst) == of.0
            && first < start + len
            && start < first + count
    }

    fn watch(&self, of: TrackedObject, start: u64, len: u64, worker: WorkerBit) -> bool {
        self.watchers.add(worker);
        fence(Ordering::SeqCst);
        self.overlaps(of, start, len)
    }
}

/// A worker's place among the workers, released when dropped.
#[derive(Debug)]
pub struct Worker {
    workers: Arc<Workers>,
    id: usize,
}

/// A range being tracked; give it back to [`Worker::untrack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackSlot(u8);

impl TrackSlot {
    /// As part of an action's tag.
    pub(crate) const fn to_u8(self) -> u8 {
        self.0
    }

    /// From an action's tag.
    pub(crate) const fn from_u8(value: u8) -> Self {
        TrackSlot(value)
    }
}

impl Worker {
    /// The longest range that can be tracked, in sectors.
    pub const MAX_TRACKED_LEN: u64 = 0xf_ffff;
    /// The end of the highest range that can be tracked, in sectors.
    pub const MAX_TRACKED_END: u64 = 1 << 44;

    /// All of them.
    pub fn all(&self) -> &Workers {
        &self.workers
    }

    /// This worker's bit in a mask.
    #[inline]
    pub fn bit(&self) -> WorkerBit {
        WorkerBit::of(self.id)
    }

    /// Whether it was woken since it last asked.
    #[inline]
    pub fn take_wake(&self) -> bool {
        let inbox = &self.slot().inbox;
        inbox.load(Ordering::Relaxed) != 0 && inbox.swap(0, Ordering::SeqCst) & WOKEN != 0
    }

    /// Announces that it goes to sleep; false if it was woken already and must check again.
    pub fn may_sleep(&self) -> bool {
        self.slot().inbox.compare_exchange(0, SLEEPING, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Announces that it no longer sleeps.
    pub fn woke(&self) {
        self.slot().inbox.fetch_and(!SLEEPING, Ordering::SeqCst);
    }

    /// Tracks `[start, start + len)` (sectors) of `of`; none if all places are taken. After this
    /// the caller must check *again* the condition that allowed the range to start.
    pub fn track(&self, of: TrackedObject, start: u64, len: u64) -> Option<TrackSlot> {
        debug_assert!(len != 0 && len <= Self::MAX_TRACKED_LEN && start < Self::MAX_TRACKED_END);
        let slot = self.slot();
        if slot.in_flight.load(Ordering::Relaxed) as usize == TRACKED {
            return None;
        }
        let index = slot.tracks.iter().position(|t| t.range.load(Ordering::Relaxed) == 0)?;
        let track = &slot.tracks[index];
        track.of.store(of.0, Ordering::SeqCst);
        slot.in_flight.fetch_add(1, Ordering::SeqCst);
        track.range.store((start << 20) | len, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Some(TrackSlot(index as u8))
    }

    /// The range is no longer in flight: wakes the workers that wait for it.
    pub fn untrack(&self, id: TrackSlot) {
        let slot = self.slot();
        let track = &slot.tracks[id.0 as usize];
        track.range.store(0, Ordering::SeqCst);
        slot.in_flight.fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.workers.wake(track.watchers.take());
    }

    fn slot(&self) -> &Slot {
        &self.workers.slots[self.id]
    }

    /// Its process is gone, with its ranges in flight: for simulations of that.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn killed(&self) {
        self.slot().in_flight.store(0, Ordering::SeqCst);
    }
}

impl Drop for Worker {
    /// Where its I/O could not be waited for, ranges may be in flight. They are no obstacle any more: others
    /// would wait for ever.
    fn drop(&mut self) {
        let slot = self.slot();
        if slot.in_flight.load(Ordering::SeqCst) != 0 {
            let is_used = |index: &usize| slot.tracks[*index].range.load(Ordering::SeqCst) != 0;
            for index in (0..TRACKED).filter(is_used) {
                self.untrack(TrackSlot(index as u8));
            }
        }
        *self.slot().wake.write().expect("wake lock poisoned") = None;
        self.workers.used.lock().expect("workers lock poisoned")[self.id] = false;
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(Arc<AtomicUsize>);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_a_sleeper_costs_a_wake() {
        let workers = Arc::new(Workers::with_capacity(2));
        let count = Arc::new(AtomicUsize::new(0));
        let worker = workers.register(Box::new(Count(count.clone()))).unwrap();
        workers.wake(worker.bit().into());
        assert_eq!(count.load(Ordering::SeqCst), 0);
        assert!(!worker.may_sleep(), "it was woken and must look again");
        assert!(worker.take_wake());
        assert!(worker.may_sleep());
        workers.wake(worker.bit().into());
        assert_eq!(count.load(Ordering::SeqCst), 1);
        worker.woke();
        assert!(worker.take_wake());
    }

    #[test]
    fn a_tracked_range_is_seen_until_it_ends() {
        let workers = Arc::new(Workers::with_capacity(2));
        let reader = workers.register(Box::<Count>::default()).unwrap();
        let writer = workers.register(Box::<Count>::default()).unwrap();
        let id = reader.track(TrackedObject(7), 100, 8).unwrap();
        assert!(!workers.overlaps(TrackedObject(7), 92, 8, writer.bit()));
        assert!(!workers.overlaps(TrackedObject(7), 108, 8, writer.bit()));
        assert!(!workers.overlaps(TrackedObject(8), 100, 8, writer.bit()));
        assert!(workers.overlaps(TrackedObject(7), 107, 1, writer.bit()));
        reader.untrack(id);
        assert!(writer.take_wake());
        assert!(!workers.overlaps(TrackedObject(7), 107, 1, writer.bit()));
    }

    #[test]
    fn queues_leave_room_for_a_flush() {
        let workers = Arc::new(Workers::with_capacity(KEPT + 2));
        let wake = || Box::<Count>::default();
        let job = workers.register(wake()).unwrap();
        let queue = workers.register_queue(wake()).unwrap();
        assert_eq!(workers.register_queue(wake()).unwrap_err(), TooManyWorkers { limit: 2 });
        let jobs: Vec<_> = (0..KEPT).map(|_| workers.register(wake()).unwrap()).collect();
        assert_eq!(workers.register(wake()).unwrap_err(), TooManyWorkers { limit: KEPT + 2 });
        drop((job, queue));
        drop(jobs);
        let _queues = [(); 2].map(|()| workers.register_queue(wake()).unwrap());
        let said = workers.register_queue(wake()).unwrap_err().to_string();
        assert!(said.contains("2 queues") && said.contains("delete an export"), "{said}");
    }

    #[test]
    fn tracking_is_bounded() {
        let workers = Arc::new(Workers::with_capacity(1));
        let reader = workers.register(Box::<Count>::default()).unwrap();
        let ids: Vec<_> =
            (0..TRACKED as u64).map(|n| reader.track(TrackedObject(1), n, 1).unwrap()).collect();
        assert_eq!(reader.track(TrackedObject(1), 0, 1), None);
        ids.into_iter().for_each(|id| reader.untrack(id));
    }
}
