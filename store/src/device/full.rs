//! Full stores: how long guests' writes wait for room, and the search for room meanwhile.
//!
//! Owns each disk's time limit, and since when which store is full. Never holds a request: the
//! worker parks a request that needs room, which blocks nothing else, and is woken from here. When
//! the store has grown, the request proceeds; when the time is over, it fails. A file system may
//! report space that no write gets (quotas, reserved blocks): until a write gets some, the time
//! runs on, and waiting requests are retried at long intervals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Devices, Inner};
use super::error::DeviceError;
use super::live::Live;
use crate::cow::{Store, StoreState};

/// The interval between two checks of a full store that writes wait for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The interval between two retries of a store that reports room and has none: the first, and the
/// longest.
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct FullStores {
    /// By disk; only disks that wait.
    patience: BTreeMap<String, Duration>,
    /// By store.
    waits: BTreeMap<String, Wait>,
}

/// A store that is full, or that was retried and has not proven yet that it has room.
#[derive(Debug)]
struct Wait {
    /// Since when it is full, not counting the time of retries.
    since: Instant,
    /// When it was retried.
    went_on: Option<Instant>,
    /// The time of the next retry.
    not_before: Instant,
    /// The delay from being full again to the next retry.
    rest: Duration,
}

impl Wait {
    fn new(now: Instant) -> Wait {
        Wait { since: now, went_on: None, not_before: now, rest: SHORTEST_REST }
    }

    /// It is full again, and nothing was written meanwhile: there was no room.
    fn was_in_vain(&mut self, now: Instant) {
        if let Some(went_on) = self.went_on.take() {
            self.since += now.saturating_duration_since(went_on);
            self.not_before = now + self.rest;
            self.rest = (2 * self.rest).min(LONGEST_REST);
        }
    }

    /// Whether the store's being full now belongs to this wait. A write that asks for room so long
    /// after the retry is another one.
    fn goes_for(&self, store: &Store, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) <= store.patience();
        self.went_on.is_none_or(|at| store.is_promised_room() && is_recent(at))
    }
}

impl Devices {
    /// A guest's writes to the disk `name` that find no room, in its store or in that of a snapshot
    /// of it, wait as long as `patience` for that to grow; for no time at all they fail at once.
    /// Also where there is no such device yet.
    pub fn set_patience(&self, name: &str, patience: Duration) {
        let inner = &mut *self.lock();
        if patience.is_zero() {
            inner.full.patience.remove(name);
        } else {
            inner.full.patience.insert(name.into(), patience);
        }
        spread_patience(inner);
    }

    /// Says once when more than `bytes` of the device's store are in use; never for 0.
    ///
    /// # Errors
    /// Where it has no store, or several.
    pub fn set_write_threshold(&self, name: &str, bytes: u64) -> Result<(), DeviceError> {
        let inner = self.lock();
        let mut snaps = inner.active(name)?.snaps.values();
        let (Some(snap), None) = (snaps.next(), snaps.next()) else {
            return Err(DeviceError::refused(format!(
                "'{name}' has not one store that could fill up; name an overlay or a snapshot"
            )));
        };
        snap.live.store.set_write_threshold((bytes != 0).then_some(bytes));
        Ok(())
    }

    /// Looks after stores that are full and waited for: lets go on what waits for one that has
    /// grown, and fails what has waited for long enough. To be called when one becomes full
    /// ([`StoreEvent::Full`](crate::cow::store::StoreEvent::Full)), and again when this says so;
    /// none where nothing waits.
    pub fn tend_full(&self, now: Instant) -> Option<Instant> {
        // Guests wait for it, and no table changes.
        let inner = &mut *self.look();
        let mut waits = std::mem::take(&mut inner.full.waits);
        let (mut next, mut changed) = (None, false);
        for live in stores(inner) {
            let store = &live.store;
            let wait = waits.remove(store.name()).filter(|wait| wait.goes_for(store, now));
            if store.state() != StoreState::Full {
                let unproven = wait.filter(|wait| wait.went_on.is_some());
                inner.full.waits.extend(unproven.map(|wait| (store.name().into(), wait)));
                continue;
            }
            let mut wait = wait.unwrap_or_else(|| Wait::new(now));
            wait.was_in_vain(now);
            let deadline = wait.since + store.patience();
            if wait.not_before <= now && live.has_found_room() {
                tracing::info!("the store {} has room again", store.name());
                store.go_on();
                wait.went_on = Some(now);
                changed = true;
            } else if deadline <= now {
                store.give_up();
                changed = true;
                continue;
            } else {
                let look = Some(wait.not_before).filter(|at| *at > now).unwrap_or(now + LOOK_EVERY);
                let again = deadline.min(look);
                next = Some(next.map_or(again, |next: Instant| next.min(again)));
            }
            inner.full.waits.insert(store.name().into(), wait);
        }
        if changed {
            self.workers.wake(u64::MAX);
        }
        next
    }
}

fn stores(inner: &Inner) -> Vec<Arc<Live>> {
    let active = inner.devices.values().filter_map(|device| device.active.as_ref());
    active.flat_map(|active| active.snaps.values()).map(|snap| snap.live.clone()).collect()
}

/// Tells every store how patient those are that write to it: its own disk's guest, and that of the
/// origin.
pub(super) fn spread_patience(inner: &Inner) {
    let patience = |name: &String| inner.full.patience.get(name).copied().unwrap_or_default();
    for (name, device) in &inner.devices {
        let snaps = device.active.iter().flat_map(|active| active.snaps.values());
        for snap in snaps {
            let is_origin = |(_, origin): &(&String, &super::core::Device)| {
                let keys = origin.active.iter().flat_map(|active| active.origin_keys.values());
                keys.into_iter().any(|key| *key == snap.key)
            };
            let origins = inner.devices.iter().filter(is_origin);
            let most = origins.map(|(origin, _)| patience(origin)).max().unwrap_or_default();
            snap.live.store.set_patience(most.max(patience(name)));
        }
    }
}
