//! The verbs of device-mapper: create, load, clear, suspend, resume; remove is in
//! [`removal`](super::removal).
//!
//! Owns the order in which workers are stopped, tables swapped, the state written and workers
//! released. A failed verb changes nothing, except that a resume suspends a device whose loaded table
//! cannot serve. Keeps I9: who asks for a suspend is answered when every worker of the device has nothing in
//! flight.

use std::collections::BTreeMap;

use super::build::{Active, Plan, Undo};
use super::chain::unseal_tops;
use super::core::{Device, DeviceEvent, Devices, Inner, Loaded, User};
use super::error::DeviceError;
use super::files::MadeStores;
use super::guards::{devices_of, refuse_hopeless, refuse_missing};
use super::handover::{reactivate, settle};
use super::origins::mark_guest_disks;
use super::serving::{go, serving};
use super::state::State;
use crate::lines::TableLine;
use crate::wake::WakeSet;

/// How many times as long as a verb the end of the process waits for flushes: nothing else waits for it,
/// and a disk that is only slow gets to its end.
const AT_THE_END: u32 = 4;

/// How to suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspend {
    /// Hold requests in flight for the next table instead of making writes durable.
    pub noflush: bool,
}

/// One of a device's two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// The one that serves.
    Active,
    /// The one that was loaded.
    Inactive,
}

/// The table that a resumed device serves.
#[derive(Debug)]
pub enum Resumed {
    /// The one that was loaded last.
    Newest,
    /// The old one, after a resume that failed: the one that was loaded still cannot serve, and stays
    /// loaded. With a sentence that says so, and why.
    Old(String),
}

impl Devices {
    /// Makes an empty device.
    ///
    /// # Errors
    /// The name or the UUID is taken, or the name is not valid.
    pub fn create(&self, name: &str, uuid: Option<&str>) -> Result<(), DeviceError> {
        DeviceError::check_name(name)?;
        let uuid = uuid.filter(|uuid| !uuid.is_empty());
        uuid.map_or(Ok(()), DeviceError::check_uuid)?;
        let inner = &mut *self.lock();
        if inner.devices.contains_key(name) {
            return Err(DeviceError::Exists(name.into()));
        }
        let has_it =
            |(_, other): &(&String, &Device)| uuid.is_some() && other.uuid.as_deref() == uuid;
        if let Some((other, _)) = inner.devices.iter().find(has_it) {
            return Err(DeviceError::refused(format!(
                "the device '{other}' has the UUID '{}' already; choose another, or remove '{other}' \
                 first",
                uuid.unwrap_or_default()
            )));
        }
        let device = Device { uuid: uuid.map(str::to_owned), ..Device::default() };
        inner.devices.insert(name.into(), device);
        self.keep(inner).inspect_err(|_| {
            inner.devices.remove(name);
        })
    }

    /// Loads a table into the inactive slot; the active one continues to serve.
    ///
    /// # Errors
    /// An error that can be found without opening a store; or a job is about to remove a device that
    /// the table names.
    pub fn load(
        &self,
        name: &str,
        lines: Vec<TableLine>,
        read_only: bool,
    ) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let loaded = Loaded::of(lines, read_only);
        inner.device(name)?;
        inner.refuse_third(name, &loaded)?;
        refuse_missing(inner, &loaded)?;
        refuse_hopeless(name, &loaded.lines)?;
        self.refuse_loaded_within(inner, &loaded)?;
        let below = devices_of(&loaded.lines);
        below.iter().try_for_each(|below| inner.refuse_held_below(below, Some(name)))?;
        self.put(inner, name, loaded)?;
        self.forget_removed(inner);
        Ok(())
    }

    /// Puts a table into the inactive slot.
    pub(super) fn put(
        &self,
        inner: &mut Inner,
        name: &str,
        loaded: Loaded,
    ) -> Result<(), DeviceError> {
        let before = inner.device_mut(name)?.inactive.replace(loaded);
        self.keep(inner).inspect_err(|_| {
            if let Ok(device) = inner.device_mut(name) {
                device.inactive = before;
            }
        })
    }

    /// Drops the inactive table.
    ///
    /// # Errors
    /// There is no such device.
    pub fn clear(&self, name: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let before = inner.device_mut(name)?.inactive.take();
        self.keep(inner).inspect_err(|_| {
            if let Ok(device) = inner.device_mut(name) {
                device.inactive = before;
            }
        })?;
        self.forget_removed(inner);
        Ok(())
    }

    /// Stops serving: new requests wait with the front-end, those in flight end or are held. A device
    /// that is suspended already, maybe without a flush, is only flushed.
    ///
    /// # Errors
    /// Requests do not end in time, or writes cannot be made durable; the device continues to serve
    /// then, if it did before.
    pub fn suspend(&self, name: &str, how: Suspend) -> Result<(), DeviceError> {
        let mut inner = self.lock_unsettled();
        let (names, was_suspended) = loop {
            let was_suspended = inner.device(name)?.suspended;
            if was_suspended && how.noflush {
                return Ok(());
            }
            let names = with_uppers(&inner, name);
            if !names.iter().any(|name| inner.suspending.contains(name)) {
                break (names, was_suspended);
            }
            inner = self.wait_for_rest(inner);
        };
        // It takes as long as the slowest of its disks: suspends of other devices, and queries, do
        // not wait for it.
        inner.suspending.extend(names.iter().cloned());
        let active = inner.device(name)?.active.clone().filter(|_| !how.noflush);
        let workers = serving(&inner, &names);
        drop(inner);
        let stopped = self.stop_workers(&workers);
        let flushed = match (&stopped, &active) {
            (Ok(()), Some(active)) => self.flush(name, active),
            _ => Ok(()),
        };
        let inner = &mut *self.lock_unsettled();
        self.came_to_rest(inner, &names);
        if was_suspended {
            return flushed;
        }
        if let Err(error) = stopped {
            go(inner, &names);
            return Err(error);
        }
        inner.device_mut(name)?.suspended = true;
        let kept = flushed.and_then(|()| self.keep(inner));
        if kept.is_err() {
            inner.device_mut(name)?.suspended = false;
            go(inner, &names);
            return kept;
        }
        self.event(DeviceEvent::Suspended(name.into()));
        Ok(())
    }

    /// Serves again: with the inactive table, if there is one. If that names a store of a suspended
    /// device, the store moves. An inactive table with which a resume failed is tried once more; if it
    /// fails again, the old one serves.
    ///
    /// # Errors
    /// The inactive table cannot serve: then the old one is bound again, the new one is back in the
    /// inactive slot, and the device is suspended. Or its own store is to be handed over to a table
    /// that another device has loaded: then nothing has changed.
    pub fn resume(&self, name: &str) -> Result<Resumed, DeviceError> {
        let inner = &mut *self.lock();
        let device = inner.device(name)?;
        let was_suspended = device.suspended;
        if was_suspended || device.inactive.is_some() {
            inner.refuse_source(name)?;
        }
        let Some(loaded) = inner.device_mut(name)?.inactive.take() else {
            self.reactivate_merge(inner, name);
            return self.resume_as_it_is(inner, name, was_suspended).map(|()| Resumed::Newest);
        };
        let paused = match self.pause(inner, name, &loaded) {
            Ok(paused) => paused,
            Err(error) => {
                inner.device_mut(name)?.inactive = Some(loaded);
                return Err(error);
            }
        };
        let device = inner.device_mut(name)?;
        device.suspended = false;
        let before = device.active.as_ref().map(|active| active.table.size());
        // The state names the loaded table again before anything is waited for.
        let undo = |inner: &mut Inner| {
            let device = inner.devices.get_mut(name).into_iter();
            device.for_each(|device| {
                (device.inactive, device.suspended) = (Some(loaded.clone()), was_suspended);
            });
        };
        if let Err(error) = self.swap_in(inner, name, &loaded, Box::new(undo)) {
            let resumed = if loaded.failed && inner.device(name)?.active.is_some() {
                self.resume_the_old(inner, name, loaded, was_suspended, error)
            } else {
                Err(self.failed_resume(inner, name, loaded, was_suspended, error))
            };
            go(inner, &paused);
            return resumed;
        }
        go(inner, &paused);
        self.forget_removed(inner);
        let size = inner.active(name)?.table.size();
        if before.is_some_and(|before| before != size) {
            self.event(DeviceEvent::Resized { device: name.into(), bytes: size.bytes() });
        }
        self.event(DeviceEvent::Resumed(name.into()));
        Ok(Resumed::Newest)
    }

    /// The old table serves as if the new one, which stays in its slot, had never been tried.
    fn resume_the_old(
        &self,
        inner: &mut Inner,
        name: &str,
        loaded: Loaded,
        was_suspended: bool,
        error: DeviceError,
    ) -> Result<Resumed, DeviceError> {
        inner.device_mut(name)?.inactive = Some(loaded);
        self.resume_as_it_is(inner, name, was_suspended)?;
        let warning = format!(
            "'{name}' serves its old table, because the one that is loaded still cannot serve: {error}"
        );
        tracing::warn!("{warning}");
        Ok(Resumed::Old(warning))
    }

    fn resume_as_it_is(
        &self,
        inner: &mut Inner,
        name: &str,
        was_suspended: bool,
    ) -> Result<(), DeviceError> {
        let device = inner.device_mut(name)?;
        if device.active.is_none() {
            return Err(DeviceError::NoTable(name.into()));
        }
        device.suspended = false;
        let next = BTreeMap::new();
        let kept = self
            .refuse_second_writers(inner, &next, |writer| guest_writes(inner, writer))
            .and_then(|()| self.keep(inner));
        if let Err(error) = kept {
            inner.device_mut(name)?.suspended = was_suspended;
            return Err(error);
        }
        let active = inner.devices.get(name).and_then(|device| device.active.as_ref());
        let snaps = active.into_iter().flat_map(|active| active.snaps.values());
        let waiting = snaps.fold(WakeSet::NONE, |all, snap| all | snap.live.look_for_room());
        reactivate(inner, name);
        go(inner, &with_uppers(inner, name));
        // What waits for room in a store that grew meanwhile.
        self.workers.wake(waiting);
        self.event(DeviceEvent::Resumed(name.into()));
        Ok(())
    }

    /// The old table is still bound; the new one returns to its slot, and the device is suspended.
    fn failed_resume(
        &self,
        inner: &mut Inner,
        name: &str,
        loaded: Loaded,
        was_suspended: bool,
        error: DeviceError,
    ) -> DeviceError {
        // If workers cannot be stopped, they continue to serve, and the device's state says so.
        let stopped = self.stop(inner, &with_uppers(inner, name)).is_ok();
        if let Ok(device) = inner.device_mut(name) {
            device.inactive = Some(Loaded { failed: true, ..loaded });
            device.suspended = was_suspended || (stopped && device.active.is_some());
            if device.suspended && !was_suspended {
                self.event(DeviceEvent::Suspended(name.into()));
            }
        }
        if let Err(error) = self.keep(inner) {
            tracing::error!("{error}");
        }
        error
    }

    /// Stops a serving device, and the other users of a store that is to be reopened for `loaded`:
    /// an origin's writes would make exceptions that its new table does not know. Commits their
    /// owed chunks, and those of stores that are about to move. Returns the stopped devices.
    pub(super) fn pause(
        &self,
        inner: &Inner,
        name: &str,
        loaded: &Loaded,
    ) -> Result<Vec<String>, DeviceError> {
        let device = inner.device(name)?;
        let serves = !device.suspended && device.active.is_some();
        let mut names = if serves { with_uppers(inner, name) } else { Vec::new() };
        let reopened = inner.reopened(name, loaded);
        for user in reopened.iter().flat_map(|(_, snap)| inner.users_of(snap)) {
            names.extend(with_uppers(inner, &user));
        }
        names.sort();
        names.dedup();
        let mut owners: Vec<&str> = reopened.iter().map(|(owner, _)| owner.as_str()).collect();
        // Those that cannot give their stores away are refused later. A source is suspended, maybe
        // without a flush, so nobody has to stop for this.
        let sources = inner.sources(name, loaded).unwrap_or_default();
        let mut at_rest: Vec<&str> = sources.keys().map(String::as_str).collect();
        at_rest.retain(|source| !owners.contains(source));
        self.commit_before_they_move(inner, &at_rest)?;
        self.stop(inner, &names)?;
        owners.extend(serves.then_some(name));
        owners.sort_unstable();
        owners.dedup();
        if let Err(late) = self.commit_before_they_move(inner, &owners) {
            go(inner, &names);
            return Err(late);
        }
        if let (false, Some(active)) = (serves, &device.active) {
            // It may have been suspended without a flush.
            leave_unsynced(active);
        }
        Ok(names)
    }

    /// Commits what devices owe before their stores are reopened, or move.
    ///
    /// # Errors
    /// [`DeviceError::FlushLate`]: it may still write to a store that is to be opened again.
    fn commit_before_they_move(&self, inner: &Inner, names: &[&str]) -> Result<(), DeviceError> {
        let active = names.iter().map(|name| Some((*name, inner.active(name).ok()?)));
        let owners: Vec<(&str, &Active)> = active.flatten().collect();
        let flushed = self.flush_all(owners.iter().copied());
        for ((_, active), flushed) in owners.into_iter().zip(flushed) {
            match flushed {
                Ok(()) => {}
                Err(late @ DeviceError::FlushLate { .. }) => return Err(late),
                // A full or failed store reports that when it is reopened; devices on top of a file
                // know what it owes.
                Err(_) => leave_unsynced(active),
            }
        }
        Ok(())
    }

    /// Gives `name` the table `loaded`. `undo`: as in a [`Plan`].
    pub(super) fn swap_in<'a>(
        &'a self,
        inner: &'a mut Inner,
        name: &str,
        loaded: &Loaded,
        undo: Undo<'a>,
    ) -> Result<(), DeviceError> {
        let sources = inner.sources(name, loaded)?;
        let mut plan = Plan { undo, ..Plan::new(self, inner) };
        plan.take_over(name, loaded, &sources)?;
        plan.refuse_shrink(name)?;
        plan.follow()?;
        self.apply(plan, |inner| {
            inner.devices.retain(|_, device| !device.removed || device.active.is_some());
            reactivate(inner, name);
            self.say_invalid(inner, name);
            open_files_again(inner, name);
        })
    }

    /// Applies a plan: writes the state, stops workers, swaps tables, lets workers continue. `also`
    /// changes the parts without workers. An error changes nothing, and undoes what the plan says.
    pub(super) fn apply(
        &self,
        mut plan: Plan<'_>,
        also: impl FnOnce(&mut Inner),
    ) -> Result<(), DeviceError> {
        let kept = self.keep_plan(&mut plan);
        let Plan { inner, next, released, still, undo, .. } = plan;
        let (names, lost) = match kept {
            Ok(kept) => kept,
            Err(error) => {
                undo(inner);
                return Err(error);
            }
        };
        let stopped = self.stop_workers(&serving(inner, &names));
        if let Err(error) = stopped.and_then(|()| still.map_or(Ok(()), |still| still())) {
            // A store that is opened twice has the log of its old table set aside, where no start
            // looks: it is put back before a write can be recorded there.
            drop(next);
            undo(inner);
            go(inner, &names);
            inner.find_sources(lost);
            return Err(self.take_back(inner, error));
        }
        let mut old = Vec::new();
        // Whatever anybody waits for may be another table's now.
        let mut waiting = WakeSet::ALL;
        for (name, active) in next {
            active.iter().for_each(|active| waiting |= settle(&name, active));
            let device = inner.devices.entry(name).or_default();
            if let (Some(new), Some(old)) = (&active, &device.active) {
                new.table.flush_set().take_over(old.table.flush_set());
            }
            old.push(std::mem::replace(&mut device.active, active));
        }
        mark_guest_disks(inner);
        for name in &released {
            inner.devices.entry(name.clone()).or_default().suspended = false;
        }
        also(inner);
        unseal_tops(inner, &names, &old);
        self.spread_patience(inner);
        go(inner, &names);
        // The file may be being written.
        inner.forget_settings();
        // Other workers may wait for room in a store that grew meanwhile.
        self.workers.wake(waiting);
        drop(old);
        inner.forget_ended_rollbacks();
        self.keep_new_bases(inner);
        released.into_iter().for_each(|name| self.event(DeviceEvent::Resumed(name)));
        Ok(())
    }

    /// Prepares a device to be served, `writable` or not, for `user`, which uses it from now on:
    /// operations that need an unused device are refused, even while its threads start. Pass these
    /// to [`attach`](Self::attach); if there will be none, call [`detach`](Self::detach).
    ///
    /// # Errors
    /// The device does not exist or has no table, or another device is the only path by which its
    /// bytes may be written.
    pub fn prepare(&self, name: &str, user: &str, writable: bool) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.active(name)?;
        inner.refuse_held(name)?;
        if writable {
            let next = BTreeMap::new();
            self.refuse_second_writers(inner, &next, |writer| writer == name)?;
        }
        if inner.device(name)?.active.as_ref().is_some_and(Active::shares_table) {
            let mut plan = Plan::new(self, inner);
            plan.own_exception_table(name)?;
            self.apply(plan, |_| ())?;
        }
        let user_of_it = User { writable, workers: Vec::new() };
        inner.device_mut(name)?.users.insert(user.into(), user_of_it);
        Ok(())
    }

    /// An orderly end: stops all users of devices, makes everything owed durable, and releases all
    /// files. The state for the next start is unchanged. False if something could not be made
    /// durable. Devices in `but` are left unchanged: a user that cannot be stopped still uses them.
    pub fn close(&self, but: &[String]) -> bool {
        let inner = &mut *self.lock();
        let names = inner.devices.keys().filter(|name| !but.contains(name));
        let names: Vec<String> = names.cloned().collect();
        let stopped = self.stop(inner, &names);
        if let Err(error) = &stopped {
            tracing::error!("{error}");
        }
        let all =
            names.iter().filter_map(|n| Some((n.as_str(), inner.devices[n].active.as_ref()?)));
        // All of them, even where one fails.
        let flushed = self.flush_within(self.config.deadline * AT_THE_END, all);
        for late in flushed.iter().filter_map(|flushed| flushed.as_ref().err()) {
            say_given_up(late);
        }
        let said = !inner.state.file().is_stale();
        if !said {
            // The file goes on to name them.
            inner.left_over = MadeStores::default();
        }
        // A caller that comes now, such as a job that has just ended, finds no device; this must
        // not be written to the state.
        inner.state.file().close();
        // If a user is still at work, its files stay open and locked until the process ends.
        if stopped.is_ok() {
            inner.devices.retain(|name, _| but.contains(name));
        }
        stopped.is_ok() && said && flushed.iter().all(Result::is_ok)
    }

    /// Writes the present state.
    pub(super) fn keep(&self, inner: &mut Inner) -> Result<(), DeviceError> {
        let state = State::of(self, inner, &BTreeMap::new());
        Ok(inner.state.file().keep_devices(state)?)
    }
}

/// Other failures are in the log already.
fn say_given_up(error: &DeviceError) {
    if let DeviceError::FlushLate { device, limit } = error {
        tracing::error!(
            "what was written to '{device}' was not durable within {} s and is given up: a file of it \
             does not answer; what was acknowledged is in its files, and the next start takes it in",
            limit.as_secs()
        );
    }
}

/// The writes of `active` to files may be unsynced, and tables that only read the files must know.
fn leave_unsynced(active: &Active) {
    active.table.flush_set().media.iter().for_each(|file| file.medium.set_left_unsynced(true));
}

/// The files of the device `name` are opened again, also for the devices above it. Nothing is in flight.
pub(super) fn open_files_again(inner: &Inner, name: &str) {
    for name in with_uppers(inner, name) {
        let active = inner.devices[&name].active.iter();
        active.for_each(|active| active.table.flush_set().open_again());
    }
}

/// The device and those above it, directly or through others.
pub(super) fn with_uppers(inner: &Inner, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let mut at = 0;
    while at < names.len() {
        for (upper, device) in &inner.devices {
            let lies = device.active.as_ref().is_some_and(|active| active.names(&names[at]));
            if lies && !names.contains(upper) {
                names.push(upper.clone());
            }
        }
        at += 1;
    }
    names
}

/// Whether guests write to the device now.
pub(super) fn guest_writes(inner: &Inner, name: &str) -> bool {
    let device = inner.devices.get(name).filter(|device| !device.suspended);
    device.is_some_and(|device| device.users.values().any(|user| user.writable))
}
