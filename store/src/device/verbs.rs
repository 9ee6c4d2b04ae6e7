//! The verbs of device-mapper: create, remove, load, clear, suspend, resume.
//!
//! Owns the order in which workers are stopped, tables swapped, the state kept and workers let go.
//! A verb that fails leaves everything as it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::build::{Active, Plan, lines_name};
use super::core::{Device, DeviceEvent, Devices, Inner, Loaded};
use super::error::DeviceError;
use crate::attached::AttachedWorker;
use crate::lines::TableLine;
use crate::table::Table;

/// How to suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspend {
    /// Hold requests in flight for the next table rather than make durable what was written.
    pub noflush: bool,
}

/// Which of a device's tables is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// The one that serves.
    Active,
    /// The one that was loaded.
    Inactive,
}

impl Devices {
    /// Makes an empty device.
    ///
    /// # Errors
    /// A name that is taken, or cannot be one.
    pub fn create(&self, name: &str, uuid: Option<&str>) -> Result<(), DeviceError> {
        let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > 127 || name.contains(bad) {
            return Err(DeviceError::BadName(name.into()));
        }
        let inner = &mut *self.lock();
        if inner.devices.contains_key(name) {
            return Err(DeviceError::Exists(name.into()));
        }
        let device = Device { uuid: uuid.map(str::to_owned), ..Device::default() };
        inner.devices.insert(name.into(), device);
        self.keep(inner).inspect_err(|_| {
            inner.devices.remove(name);
        })
    }

    /// Removes a device that nothing uses. With `force` its table is replaced by an error target
    /// where something does.
    ///
    /// # Errors
    /// Where it is used, or what it owes cannot be made durable.
    pub fn remove(&self, name: &str, force: bool) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let device = inner.device(name)?;
        let user = device.users.keys().next().map(|user| format!("the export '{user}'"));
        let names = |(_, other): &(&String, &Device)| {
            other.active.as_ref().is_some_and(|active| active.names(name))
                || other.inactive.as_ref().is_some_and(|table| lines_name(&table.lines, name))
        };
        let upper = inner.devices.iter().find(names).map(|(n, _)| format!("the device '{n}'"));
        if let Some(by) = user.or(upper) {
            if !force {
                return Err(DeviceError::InUse { name: name.into(), by });
            }
            return self.replace_by_errors(inner, name);
        }
        if let Some(active) = &device.active
            && !self.config.flusher.flush(&active.table)
        {
            return Err(DeviceError::FlushFailed(name.into()));
        }
        let mut plan = Plan::new(self, inner);
        plan.next.insert(name.into(), None);
        plan.follow()?;
        self.apply(plan, |inner| {
            inner.devices.remove(name);
        })
    }

    fn replace_by_errors(&self, inner: &mut Inner, name: &str) -> Result<(), DeviceError> {
        let size = inner.active(name)?.table.size();
        let line = format!("0 {size} error").parse().map_err(DeviceError::Line)?;
        let mut plan = Plan::new(self, inner);
        plan.set(name, &Loaded { lines: vec![line], read_only: false }, &[])?;
        plan.follow()?;
        self.apply(plan, |_| ())
    }

    /// Loads a table into the inactive slot; the active one serves on.
    ///
    /// # Errors
    /// What can be seen to be wrong without opening a store.
    pub fn load(
        &self,
        name: &str,
        lines: Vec<TableLine>,
        read_only: bool,
    ) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.device(name)?;
        for param in lines.iter().flat_map(|line| line.target.params()) {
            match (param.device(), param.path()) {
                (Some(device), _) if !inner.devices.contains_key(device) => {
                    return Err(DeviceError::NotFound(device.into()));
                }
                (_, Some(path)) => {
                    let what = format!("cannot use {}", path.display());
                    std::fs::metadata(path).map_err(DeviceError::io(what))?;
                }
                _ => {}
            }
        }
        let before = inner.device_mut(name)?.inactive.replace(Loaded { lines, read_only });
        self.keep(inner).inspect_err(|_| {
            if let Ok(device) = inner.device_mut(name) {
                device.inactive = before;
            }
        })
    }

    /// Drops the inactive table.
    ///
    /// # Errors
    /// No such device.
    pub fn clear(&self, name: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.device_mut(name)?.inactive = None;
        self.keep(inner)
    }

    /// Stops serving: new requests wait with the front-end, those in flight end or are held.
    ///
    /// # Errors
    /// Where requests do not end in time, or what was written cannot be made durable; the device
    /// serves on then.
    pub fn suspend(&self, name: &str, how: Suspend) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let device = inner.device(name)?;
        if device.suspended {
            return Ok(());
        }
        let names = with_uppers(inner, name);
        self.stop(inner, &names)?;
        let flushed = match &inner.device(name)?.active {
            Some(active) if !how.noflush => self.config.flusher.flush(&active.table),
            _ => true,
        };
        inner.device_mut(name)?.suspended = true;
        let kept =
            if flushed { self.keep(inner) } else { Err(DeviceError::FlushFailed(name.into())) };
        if kept.is_err() {
            inner.device_mut(name)?.suspended = false;
            go(inner, &names);
            return kept;
        }
        self.event(DeviceEvent::Suspended(name.into()));
        Ok(())
    }

    /// Serves again: with the inactive table, if there is one.
    ///
    /// # Errors
    /// Where that table cannot serve: the old one is bound again, the new one is back in the
    /// inactive slot, and the device is suspended.
    pub fn resume(&self, name: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let device = inner.device_mut(name)?;
        let was_suspended = device.suspended;
        let serves = !was_suspended && device.active.is_some();
        let Some(loaded) = device.inactive.take() else {
            if device.active.is_none() {
                return Err(DeviceError::NoTable(name.into()));
            }
            device.suspended = false;
            if let Err(error) = self.keep(inner) {
                inner.device_mut(name)?.suspended = was_suspended;
                return Err(error);
            }
            go(inner, &with_uppers(inner, name));
            self.event(DeviceEvent::Resumed(name.into()));
            return Ok(());
        };
        if serves {
            self.pause(inner, name)?;
        } else if let Ok(active) = inner.active(name) {
            // It may have been suspended without a flush.
            owe(active);
        }
        let device = inner.device_mut(name)?;
        device.suspended = false;
        let before = device.active.as_ref().map(|active| active.table.size());
        let swapped = self.swap_in(inner, name, &loaded);
        if let Err(error) = swapped {
            let device = inner.device_mut(name)?;
            device.inactive = Some(loaded);
            device.suspended = was_suspended || device.active.is_some();
            let names = with_uppers(inner, name);
            let _ = self.stop(inner, &names);
            return Err(error);
        }
        let size = inner.active(name)?.table.size();
        if before.is_some_and(|before| before != size) {
            self.event(DeviceEvent::Resized { device: name.into(), bytes: size.bytes() });
        }
        self.event(DeviceEvent::Resumed(name.into()));
        Ok(())
    }

    /// Stops a device that serves and commits what it owes, so that its stores can be opened again.
    fn pause(&self, inner: &Inner, name: &str) -> Result<(), DeviceError> {
        self.stop(inner, &with_uppers(inner, name))?;
        if let Ok(active) = inner.active(name)
            && !self.config.flusher.flush(&active.table)
        {
            // A store that is full or failed says so to whoever opens it again; what a file owes
            // is known to whoever lies on it.
            owe(active);
        }
        Ok(())
    }

    fn swap_in(&self, inner: &mut Inner, name: &str, loaded: &Loaded) -> Result<(), DeviceError> {
        let old = inner.device(name)?.active.as_ref();
        let reuse: Vec<_> = old.map(|a| a.snaps.values().cloned().collect()).unwrap_or_default();
        let mut plan = Plan::new(self, inner);
        plan.set(name, loaded, &reuse)?;
        plan.follow()?;
        self.apply(plan, |_| ())
    }

    /// Carries a plan out: keeps the state, stops workers, swaps tables, lets workers go.
    /// `also` changes what has no workers. On an error everything is as it was.
    pub(super) fn apply(
        &self,
        plan: Plan<'_>,
        also: impl FnOnce(&mut Inner),
    ) -> Result<(), DeviceError> {
        let Plan { inner, next, .. } = plan;
        let mut names: Vec<String> = Vec::new();
        for name in next.keys() {
            let more = with_uppers(inner, name);
            names.extend(more.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
        }
        // Durable before the first write under the new tables can be acknowledged; a restart in
        // between finds the new tables and nothing written under them.
        inner.state.keep(inner_state(inner, &next))?;
        if let Err(error) = self.stop(inner, &names) {
            let _ = self.keep(inner);
            return Err(error);
        }
        let mut old = Vec::new();
        for (name, active) in next {
            let device = inner.devices.entry(name).or_default();
            old.push(std::mem::replace(&mut device.active, active));
        }
        also(inner);
        go(inner, &names);
        drop(old);
        Ok(())
    }

    /// Stops the workers of `names`; on an error they all go on.
    fn stop(&self, inner: &Inner, names: &[String]) -> Result<(), DeviceError> {
        let running: Vec<&String> = names.iter().filter(|name| !blocked(inner, name)).collect();
        let workers =
            |name: &&String| inner.devices.get(*name).into_iter().flat_map(Device::workers);
        for worker in running.iter().flat_map(workers) {
            worker.stop();
        }
        let deadline = Instant::now() + self.config.deadline;
        for name in &running {
            for worker in workers(name) {
                if worker.stopped(deadline).is_err() {
                    let name = (*name).clone();
                    go(inner, names);
                    return Err(DeviceError::Busy(name));
                }
            }
        }
        Ok(())
    }

    /// Workers begin to serve a device, on behalf of `user`; the device cannot be removed while
    /// they do. They are stopped, and are let go when the device serves.
    ///
    /// # Errors
    /// No such device.
    pub fn attach(
        &self,
        name: &str,
        user: &str,
        workers: Vec<Arc<dyn AttachedWorker>>,
    ) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        if inner.device(name)?.active.as_ref().is_some_and(Active::shares_table) {
            let mut plan = Plan::new(self, inner);
            plan.thaw(name)?;
            self.apply(plan, |_| ())?;
        }
        let stopped = blocked(inner, name);
        let device = inner.device_mut(name)?;
        if let (Some(active), false) = (&device.active, stopped) {
            workers.iter().for_each(|worker| worker.go(active.table.clone()));
        }
        device.users.insert(user.into(), workers);
        Ok(())
    }

    /// The workers of `user` no longer serve the device.
    pub fn detach(&self, name: &str, user: &str) {
        if let Ok(device) = self.lock().device_mut(name) {
            device.users.remove(user);
        }
    }

    /// The table that serves.
    ///
    /// # Errors
    /// No such device, or no table.
    pub fn table(&self, name: &str) -> Result<Arc<Table>, DeviceError> {
        Ok(self.lock().active(name)?.table.clone())
    }

    /// Makes durable what every device owes; before an orderly end. False where some could not be.
    pub fn flush_all(&self) -> bool {
        let inner = self.lock();
        let tables: Vec<_> = inner
            .devices
            .values()
            .filter_map(|d| d.active.as_ref().map(|a| a.table.clone()))
            .collect();
        drop(inner);
        tables.iter().all(|table| self.config.flusher.flush(table))
    }

    /// Keeps the state as it is now.
    pub(super) fn keep(&self, inner: &mut Inner) -> Result<(), DeviceError> {
        let state = inner_state(inner, &BTreeMap::new());
        inner.state.keep(state)?;
        Ok(())
    }
}

/// What `active` wrote to files was perhaps not synced, and whoever only reads them must know.
fn owe(active: &Active) {
    active.table.flush_set().media.iter().for_each(|medium| medium.set_owing(true));
}

fn inner_state(inner: &Inner, next: &BTreeMap<String, Option<Active>>) -> super::state::State {
    super::state::State::of(inner, next)
}

/// The device and those that lie on it, directly or through others.
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

/// Whether the device, or one below it, is suspended or has no table.
fn blocked(inner: &Inner, name: &str) -> bool {
    let Some(device) = inner.devices.get(name) else { return true };
    let Some(active) = &device.active else { return true };
    let below = active.lines.iter().flat_map(|line| line.target.params());
    device.suspended || below.filter_map(|p| p.device()).any(|below| blocked(inner, below))
}

/// Lets the workers of `names` serve the tables they have now.
fn go(inner: &Inner, names: &[String]) {
    for name in names.iter().filter(|name| !blocked(inner, name)) {
        let device = &inner.devices[name];
        if let Some(active) = &device.active {
            device.workers().for_each(|worker| worker.go(active.table.clone()));
        }
    }
}
