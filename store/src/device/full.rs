//! Full stores and files: how long guests' writes wait for room, and the search for room meanwhile.
//!
//! Owns each disk's time limit, and since when which file is full, under a lock of its own: guests
//! wait for the search, and a verb may hold the devices while it waits for another disk. Never holds a
//! request: the worker parks a request that needs room, which blocks nothing else, and is woken from
//! here. When the store has grown, or the file system has room again, the request proceeds; when the
//! time is over, it fails. A file system may report space that no write gets (quotas, reserved
//! blocks): until a write gets some, the time runs on, and waiting requests are retried at long
//! intervals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::build::Active;
use super::core::{Devices, Inner};
use super::disks::Disk;
use super::error::DeviceError;
use super::live::Live;
use crate::cow::StoreState;
use crate::io::FileId;
use crate::table::Keeper;
use crate::wake::WakeSet;

/// The interval between two checks of a full file that writes wait for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The interval between two retries of a file that reports room and has none: the first, and the
/// longest.
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct FullStores {
    /// By disk; only disks that wait.
    patience: BTreeMap<String, Duration>,
    waits: BTreeMap<Key, Wait>,
    /// The stores of all tables that serve.
    stores: Vec<Weak<Live>>,
    /// The other files that guests write.
    files: Vec<Weak<Disk>>,
    /// By such a file's path: the disks whose guests write to it.
    writers: BTreeMap<PathBuf, Vec<String>>,
}

/// The name of a store, or the number of another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Store(String),
    File(u32),
}

/// A file that can be full, with writes that wait for room.
enum Watched {
    Store(Arc<Live>),
    File(Arc<Disk>),
}

impl Watched {
    fn key(&self) -> Key {
        match self {
            Watched::Store(live) => Key::Store(live.store.name().into()),
            Watched::File(disk) => Key::File(disk.file().0),
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Watched::Store(live) => live.store.state() == StoreState::Full,
            Watched::File(disk) => disk.medium.is_full(),
        }
    }

    fn patience(&self) -> Duration {
        match self {
            Watched::Store(live) => live.store.patience(),
            Watched::File(disk) => disk.medium.patience(),
        }
    }

    fn is_promised_room(&self) -> bool {
        match self {
            Watched::Store(live) => live.store.is_promised_room(),
            Watched::File(disk) => disk.medium.is_promised_room(),
        }
    }

    fn has_found_room(&self) -> bool {
        match self {
            Watched::Store(live) => live.has_found_room(),
            Watched::File(disk) => disk.has_room_below(0),
        }
    }

    fn go_on(&self) -> WakeSet {
        match self {
            Watched::Store(live) => live.store.go_on(),
            Watched::File(disk) => disk.medium.go_on(),
        }
    }

    fn give_up(&self) -> WakeSet {
        match self {
            Watched::Store(live) => live.store.give_up(),
            Watched::File(disk) => disk.medium.give_up(),
        }
    }

    /// Whether room alone ends a wait that was given up. A store needs a command for that.
    fn is_cured_by_room(&self) -> bool {
        matches!(self, Watched::File(_))
    }

    fn say_that_it_goes_on(&self) {
        match self {
            Watched::Store(live) => {
                tracing::info!("the store {} has room again", live.store.name());
            }
            Watched::File(disk) => {
                tracing::info!("there is room for {} again", disk.info.path.display());
            }
        }
    }
}

/// A file that is full, that was retried and has not proven yet that it has room, or that was given up
/// and has no room yet.
#[derive(Debug)]
struct Wait {
    /// Since when it is full, not counting the time of retries.
    since: Instant,
    /// The time of the retry.
    went_on: Option<Instant>,
    given_up: bool,
    /// The time of the next retry.
    not_before: Instant,
    /// The delay from being full again to the next retry.
    rest: Duration,
}

impl Wait {
    fn new(now: Instant) -> Wait {
        Wait { since: now, went_on: None, given_up: false, not_before: now, rest: SHORTEST_REST }
    }

    /// It is full again, and nothing was written meanwhile: there was no room.
    fn was_in_vain(&mut self, now: Instant) {
        if let Some(went_on) = self.went_on.take() {
            self.since += now.saturating_duration_since(went_on);
            self.not_before = now + self.rest;
            self.rest = (2 * self.rest).min(LONGEST_REST);
        }
    }

    /// Whether the file's being full now belongs to this wait. A write that asks for room so long after
    /// the retry is another one.
    fn goes_for(&self, watched: &Watched, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) <= watched.patience();
        self.went_on.is_none_or(|at| watched.is_promised_room() && is_recent(at))
    }

    /// Retries the writes that wait for the full file, or gives them up.
    fn tend(&mut self, watched: &Watched, now: Instant) -> WakeSet {
        if std::mem::take(&mut self.given_up) {
            // There was room in the meantime.
            *self = Wait::new(now);
        }
        self.was_in_vain(now);
        if self.not_before <= now && watched.has_found_room() {
            watched.say_that_it_goes_on();
            self.went_on = Some(now);
            watched.go_on()
        } else if self.since + watched.patience() <= now {
            self.given_up = true;
            self.not_before = now + LONGEST_REST;
            watched.give_up()
        } else {
            WakeSet::NONE
        }
    }

    /// When to check the file again.
    fn look_at(&self, watched: &Watched, now: Instant) -> Instant {
        let look = Some(self.not_before).filter(|at| *at > now).unwrap_or(now + LOOK_EVERY);
        if self.given_up { look } else { look.min(self.since + watched.patience()) }
    }
}

impl Devices {
    /// A guest's writes to the disk `name` that find no room wait as long as `patience` for it: in
    /// its store, in that of a snapshot of it, or below the file that they go to. For no time at all
    /// they fail at once. Also where there is no such device yet.
    pub fn set_patience(&self, name: &str, patience: Duration) {
        let inner = &*self.lock();
        self.full().set_patience(inner, name, patience);
    }

    /// The same for a device, and for the time after a restart.
    ///
    /// # Errors
    /// There is no such device, or the state file cannot be written; then nothing has changed.
    pub fn change_patience(&self, name: &str, patience: Duration) -> Result<(), DeviceError> {
        let inner = &*self.lock();
        inner.device(name)?;
        inner.state.file().set_on_full(name, patience)?;
        self.full().set_patience(inner, name, patience);
        Ok(())
    }

    /// Verbs have changed tables.
    pub(super) fn spread_patience(&self, inner: &Inner) {
        self.full().spread(inner);
    }

    /// The store called `name` of a table that serves.
    pub(super) fn live_store(&self, name: &str) -> Option<Arc<Live>> {
        let full = self.full();
        let mut stores = full.stores.iter().filter_map(Weak::upgrade);
        stores.find(|live| live.store.name() == name)
    }

    /// Sends an event once when more than `bytes` of the device's store are in use; never for 0. A
    /// restart knows it.
    ///
    /// # Errors
    /// The device has no store, or several; or the state file cannot be written.
    pub fn set_write_threshold(&self, name: &str, bytes: u64) -> Result<(), DeviceError> {
        let inner = self.lock();
        let live = inner.active(name)?.only_store().ok_or_else(|| {
            DeviceError::refused(format!(
                "'{name}' has not one store that could fill up; name an overlay or a snapshot"
            ))
        })?;
        let threshold = (bytes != 0).then_some(bytes);
        inner.state.file().set_write_threshold(name, threshold)?;
        live.store.set_write_threshold(threshold);
        Ok(())
    }

    /// The store of the device `name` has passed its threshold `bytes`, which was reported: a restart does
    /// not set it again.
    pub fn passed_threshold(&self, name: &str, bytes: u64) {
        let forgotten = self.state_file().forget_write_threshold(name, bytes);
        if let Err(error) = forgotten {
            tracing::warn!("{error}; after a restart the threshold of '{name}' is reported again");
        }
    }

    /// Looks after what is full and waited for: lets go on what waits for a store that has grown or a
    /// file system that has room, and fails what has waited for long enough. To be called when
    /// something becomes full ([`StoreEvent::Full`](crate::cow::store::StoreEvent::Full),
    /// [`DeviceEvent::FileFull`](super::DeviceEvent::FileFull)), and again when this says so; none
    /// where nothing waits. One thread calls it.
    pub fn tend_full(&self, now: Instant) -> Option<Instant> {
        // Not locked afterwards: a file system that is asked for space may not answer, and verbs take
        // the lock.
        let (stores, files, mut waits) = {
            let full = &mut *self.full();
            (full.stores.clone(), full.files.clone(), std::mem::take(&mut full.waits))
        };
        let (mut next, mut wake) = (None, WakeSet::NONE);
        let mut going_on = BTreeMap::new();
        // Held one at a time: what a verb closes meanwhile is closed when the verb has ended.
        let stores = stores.iter().filter_map(Weak::upgrade).map(Watched::Store);
        let files = files.iter().filter_map(Weak::upgrade).map(Watched::File);
        for watched in stores.chain(files) {
            let key = watched.key();
            let wait = waits.remove(&key).filter(|wait| wait.goes_for(&watched, now));
            let mut wait = match (watched.is_full(), wait) {
                (true, wait) => wait.unwrap_or_else(|| Wait::new(now)),
                (false, Some(wait)) if wait.given_up => {
                    if wait.not_before <= now && watched.has_found_room() {
                        // From now on, writes that find no room wait.
                        wake |= watched.go_on();
                        continue;
                    }
                    wait
                }
                (false, wait) => {
                    let unproven = wait.filter(|wait| wait.went_on.is_some());
                    going_on.extend(unproven.map(|wait| (key, wait)));
                    continue;
                }
            };
            if watched.is_full() {
                wake |= wait.tend(&watched, now);
            }
            if wait.given_up && !watched.is_cured_by_room() {
                continue;
            }
            if wait.went_on.is_none() {
                let again = wait.look_at(&watched, now);
                next = Some(next.map_or(again, |next: Instant| next.min(again)));
            }
            going_on.insert(key, wait);
        }
        self.full().waits = going_on;
        self.workers.wake(wake);
        next
    }

    /// The disks whose guests' writes to `file`, which is no store, wait for room.
    pub fn waiting_for(&self, file: &Path) -> Vec<String> {
        let full = self.full();
        let writers = full.writers.get(file).into_iter().flatten();
        writers.filter(|name| full.patience.contains_key(*name)).cloned().collect()
    }
}

/// The files other than stores that a device's guest writes.
pub(super) fn written(active: &Active) -> impl Iterator<Item = &Arc<Disk>> {
    let files: BTreeSet<FileId> = active
        .table
        .all_keepers()
        .filter(|keeper| matches!(keeper, Keeper::Medium(_)))
        .map(|keeper| keeper.file())
        .collect();
    active.disks.iter().filter(move |disk| files.contains(&disk.file()))
}

impl FullStores {
    pub(super) fn set_patience(&mut self, inner: &Inner, name: &str, patience: Duration) {
        if patience.is_zero() {
            self.patience.remove(name);
        } else {
            self.patience.insert(name.into(), patience);
        }
        self.spread(inner);
    }

    /// Takes note of the tables that serve, and tells every store and other file how patient those are
    /// that write to it: of a store its own disk's guest, and that of the origin.
    fn spread(&mut self, inner: &Inner) {
        let patience = |name: &String| self.patience.get(name).copied().unwrap_or_default();
        let active = || {
            inner.devices.iter().filter_map(|(name, device)| Some((name, device.active.as_ref()?)))
        };
        let mut stores = Vec::new();
        for (name, of_it) in active() {
            for snap in of_it.snaps.values() {
                let is_origin = |active: &Active| {
                    let mut keys = active.origin_keys.values();
                    keys.any(|key| *key == snap.key)
                };
                let origins = active().filter(|(_, active)| is_origin(active));
                let most = origins.map(|(origin, _)| patience(origin)).max().unwrap_or_default();
                snap.live.store.set_patience(most.max(patience(name)));
                stores.push(Arc::downgrade(&snap.live));
            }
        }
        let mut files: BTreeMap<FileId, (Weak<Disk>, Duration)> = BTreeMap::new();
        let mut writers: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for (name, of_it) in active() {
            for disk in written(of_it) {
                let file = files.entry(disk.file());
                let (_, most) = file.or_insert_with(|| (Arc::downgrade(disk), Duration::ZERO));
                *most = patience(name).max(*most);
                writers.entry(disk.info.path.clone()).or_default().push(name.clone());
            }
        }
        for disk in active().flat_map(|(_, active)| &active.disks) {
            let most = files.get(&disk.file()).map_or(Duration::ZERO, |(_, most)| *most);
            disk.medium.set_patience(most);
        }
        let files = files.into_values().map(|(disk, _)| disk).collect();
        (self.stores, self.files, self.writers) = (stores, files, writers);
    }
}
