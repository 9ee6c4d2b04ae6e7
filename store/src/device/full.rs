//! What is done where a store is full: how long guests wait for room, and looking for it meanwhile.
//!
//! Owns how patient each disk is, and since when which store is full. Never holds a request: what
//! needs room is put aside by its worker, holds nothing, and is woken from here. A store that has
//! grown lets it go on; one that has not lets it fail when the time is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Devices, Inner};
use super::error::DeviceError;
use super::live::Live;
use crate::cow::StoreState;

/// Between two looks at a store that is full and waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct FullStores {
    /// By disk; none that do not wait.
    patience: BTreeMap<String, Duration>,
    /// By store.
    since: BTreeMap<String, Instant>,
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
        let inner = &mut *self.lock();
        let mut since = std::mem::take(&mut inner.full.since);
        let (mut next, mut changed) = (None, false);
        for live in full_stores(inner) {
            let store = &live.store;
            let began = since.remove(store.name()).unwrap_or(now);
            let deadline = began + store.patience();
            if live.has_found_room() {
                tracing::info!("the store {} has room again", store.name());
                store.go_on();
                changed = true;
            } else if deadline <= now {
                store.give_up();
                changed = true;
            } else {
                inner.full.since.insert(store.name().into(), began);
                let again = deadline.min(now + LOOK_EVERY);
                next = Some(next.map_or(again, |next: Instant| next.min(again)));
            }
        }
        if changed {
            self.workers.wake(u64::MAX);
        }
        next
    }
}

fn full_stores(inner: &Inner) -> Vec<Arc<Live>> {
    let active = inner.devices.values().filter_map(|device| device.active.as_ref());
    let all = active.flat_map(|active| active.snaps.values()).map(|snap| &snap.live);
    all.filter(|live| live.store.state() == StoreState::Full).cloned().collect()
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
