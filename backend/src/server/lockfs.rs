//! Guests that hold their file systems still while their disks do (device-mapper's lockfs).
//!
//! Owns which disk has which agent, and the freezes of devices that are suspended. A guest is frozen
//! before its disk stands still, because what it has not written yet goes through that disk, and
//! thawed when the disk serves again. Never knows what an agent is told.
//!
//! The life of a freeze: request, frozen, (command over), then the device serves again, or the bound ends:
//! thawed. Until the command that asked for it is over its device may serve still, and is not waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapblk_qmp::Events;
use snapblk_store::control::CommandError;
use snapblk_store::control::answer::{Answer, Resumption};
use snapblk_store::control::command::{DeviceResume, DeviceSuspend};
use snapblk_store::control::event::{Event, GuestThaw};
use snapblk_store::device::{DeviceError, Resumed, Suspend, TableKind};

use super::Server;
use super::commands::{done, told};
use crate::agent::{Agent, AgentError, AgentEvent, Bounds, FROZEN, Frozen};

/// The agents of a process's guests.
#[derive(Default)]
pub(super) struct Lockfs {
    /// By disk; disks of one guest share one.
    agents: BTreeMap<String, Arc<Agent>>,
    /// By device that is suspended, or about to be stopped.
    held: Mutex<BTreeMap<String, Held>>,
}

impl Lockfs {
    /// `sockets` by disk. Guests that a killed process left frozen are thawed.
    pub(super) fn new(sockets: &BTreeMap<String, PathBuf>, events: &Arc<Events>) -> Lockfs {
        let mut by_socket: BTreeMap<&PathBuf, Arc<Agent>> = BTreeMap::new();
        for path in sockets.values() {
            by_socket.entry(path).or_insert_with(|| {
                let (events, agent) = (events.clone(), path.display().to_string());
                let sink = move |event| events.emit(&said(&agent, event));
                Agent::new(path, Bounds::default(), Box::new(sink))
            });
        }
        by_socket.values().cloned().for_each(thaw_what_was_left);
        let agent = |(disk, path): (&String, &PathBuf)| (disk.clone(), by_socket[path].clone());
        Lockfs { agents: sockets.iter().map(agent).collect(), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all guests go.
    pub(super) fn thaw_all(&self) {
        let held = std::mem::take(&mut *self.held());
        drop(held);
    }

    /// The command that froze the guest has done its part: the guest is let go when the device serves.
    /// Only that command says so: another one ends before the device stands still.
    fn mark_command_over(&self, device: &str) {
        if let Some(held) = self.held().get_mut(device) {
            held.command_over = true;
        }
    }
}

/// What holds still for a device.
struct Held {
    /// Dropped to let it go.
    _guests: FrozenGuests,
    /// False until the command that it was frozen for has stopped the device, or is over.
    command_over: bool,
}

/// Guests that hold still, until it is dropped.
#[derive(Default)]
pub(super) struct FrozenGuests(Vec<Frozen>);

impl FrozenGuests {
    /// The last word before what they hold still for happens.
    ///
    /// # Errors
    /// One of them runs again.
    pub(super) fn confirm_still_frozen(&self) -> Result<(), DeviceError> {
        let checked = self.0.iter().try_for_each(Frozen::check);
        checked.map_err(|error: AgentError| DeviceError::Refused(error.to_string()))?;
        self.0.iter().for_each(Frozen::served);
        Ok(())
    }
}

impl Server {
    /// Freezes the guests whose disks stand still while `devices` do. Guests that are not connected,
    /// and disks that stand still already, have nothing to freeze.
    ///
    /// # Errors
    /// No guest is frozen then.
    pub(super) fn freeze<'d>(
        &self,
        devices: impl IntoIterator<Item = &'d str>,
    ) -> Result<FrozenGuests, CommandError> {
        let mut disks = BTreeSet::new();
        for device in devices {
            disks.extend(self.devices.serving_over(device).map_err(told)?);
        }
        disks.retain(|disk| self.has_front_end(disk));
        let mut agents: Vec<&Arc<Agent>> = Vec::new();
        for agent in disks.iter().filter_map(|disk| self.lockfs.agents.get(disk)) {
            if !agents.iter().any(|known| Arc::ptr_eq(known, agent)) {
                agents.push(agent);
            }
        }
        // All at once: the bound of the first does not run while the last is asked.
        let frozen: Vec<Result<Frozen, AgentError>> = std::thread::scope(|scope| {
            let asked: Vec<_> = agents.iter().map(|agent| scope.spawn(|| agent.freeze())).collect();
            let panicked =
                |agent: &Agent| AgentError::Expired { path: agent.path().into(), bound: FROZEN };
            let answers = asked.into_iter().zip(&agents);
            answers
                .map(|(asked, agent)| asked.join().unwrap_or_else(|_| Err(panicked(agent))))
                .collect()
        });
        let frozen: Result<Vec<Frozen>, AgentError> = frozen.into_iter().collect();
        frozen.map(FrozenGuests).map_err(|error| CommandError::generic(error.to_string()))
    }

    fn has_front_end(&self, device: &str) -> bool {
        self.exports().values().any(|one| one.device == device && one.is_connected())
    }

    /// `device-suspend`: the guest is frozen until the device is resumed, or its bound ends that.
    pub(super) fn suspend(&self, c: &DeviceSuspend) -> Result<Answer, CommandError> {
        let noflush = c.noflush.unwrap_or(false);
        if !noflush {
            self.devices.flush_ahead([c.name.as_str()]);
        }
        let freezes = !noflush && !c.skip_lockfs.unwrap_or(false);
        if freezes {
            self.freeze_until_it_serves(&c.name)?;
        }
        let suspended = self.devices.suspend(&c.name, Suspend { noflush });
        if freezes {
            self.lockfs.mark_command_over(&c.name);
        }
        self.thaw_guests_whose_devices_serve();
        done(suspended)
    }

    /// Freezes the guests over a device that is about to stand still.
    fn freeze_until_it_serves(&self, device: &str) -> Result<(), CommandError> {
        let guests = self.freeze([device])?;
        if !guests.0.is_empty() {
            let held = Held { _guests: guests, command_over: false };
            let before = self.lockfs.held().insert(device.into(), held);
            drop(before);
        }
        Ok(())
    }

    /// Lets the guests go whose devices serve again, or are gone: a command may resume or remove
    /// other devices than the one that it names.
    pub(super) fn thaw_guests_whose_devices_serve(&self) {
        let mut held = self.lockfs.held();
        if held.is_empty() {
            return;
        }
        let devices = self.devices.query(None, TableKind::Active).unwrap_or_default();
        let stands =
            |name: &str| devices.iter().any(|device| device.name == name && device.suspended);
        let all = std::mem::take(&mut *held).into_iter();
        let (served, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(name, held)| held.command_over && !stands(name));
        *held = others;
        drop(held);
        // It takes as long as the agents do.
        drop(served);
    }

    /// `device-resume`: the guest is let go where the device serves again. One whose device serves
    /// until its table is swapped is frozen before; if that fails, until the device is resumed.
    pub(super) fn resume(self: &Arc<Self>, c: &DeviceResume) -> Result<Answer, CommandError> {
        self.devices.flush_ahead([c.name.as_str()]);
        let device = self.devices.query(Some(&c.name), TableKind::Active).map_err(told)?;
        let swaps = device.iter().any(|device| device.has_inactive_table && !device.suspended);
        let freezes = swaps && !c.skip_lockfs.unwrap_or(false);
        if freezes {
            self.freeze_until_it_serves(&c.name)?;
        }
        let resumed = self.devices.resume(&c.name);
        if freezes {
            self.lockfs.mark_command_over(&c.name);
        }
        self.thaw_guests_whose_devices_serve();
        let resumed = resumed.map_err(told)?;
        self.merge_what_resumed(&c.name);
        self.commit_what_resumed(&c.name);
        let warning = match resumed {
            Resumed::Newest => None,
            Resumed::Old(warning) => Some(warning),
        };
        Ok(Answer::Resumed(Resumption { warning }))
    }
}

/// What happened to a freeze, as an event of the monitor.
fn said(agent: &str, event: AgentEvent) -> Event {
    let agent = agent.to_owned();
    match event {
        AgentEvent::ThawedEarly => {
            let bound = FROZEN.as_secs();
            let reason = format!("it was frozen for {bound} s, which is the most that is allowed");
            Event::GuestThawedEarly(GuestThaw { agent, reason })
        }
        AgentEvent::ThawFailed(reason) => Event::GuestThawFailed(GuestThaw { agent, reason }),
    }
}

/// A process that is killed leaves its guest frozen, and nobody else would thaw it.
fn thaw_what_was_left(agent: Arc<Agent>) {
    let look = move || match agent.thaw_what_was_left() {
        Ok(true) => tracing::warn!("{} was frozen, and is thawed", agent.path().display()),
        Ok(false) => {}
        Err(error) => tracing::debug!("whether a guest was left frozen is not known: {error}"),
    };
    if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn(look) {
        tracing::error!("whether a guest was left frozen is not known: {error}");
    }
}
