//! Changes of tables during requests: a store is handed to a new table of the same kind, a snapshot
//! is merged, half a merge becomes a snapshot again, new snapshots are taken.
//!
//! A change stops only the workers of its devices; it happens when nothing of theirs is in flight.
//! Some changes also wait until no request is held, and flush.

use super::*;

/// The role of device 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// That of its shape: an origin, or an overlay.
    Serve,
    /// The content of that device's snapshot during its merge.
    Merge(usize),
    /// The content of that device's snapshot, half merged, and a snapshot again.
    Snapshot(usize),
}

#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// A new table for a device and the origin, over the same stores.
    Renew(usize),
    /// Device 0 becomes the content of that device's snapshot, which is removed, and merges.
    Merge(usize),
    /// From merging to a snapshot, or to merging again.
    Back,
    /// The merge ended: device 0 serves again.
    Finish,
    /// A new snapshot of the origin, or on top of the overlay.
    New(Snap),
}

/// A change that waits until its devices have stopped.
#[derive(Clone, Copy, Debug)]
pub struct Changing {
    change: Change,
    /// The device to be flushed once no request is held; none if that is not needed, or done.
    flush: Option<usize>,
    flushing: bool,
}

impl Change {
    /// The device besides 0 that it stops.
    fn other(self) -> usize {
        match self {
            Change::Renew(device) | Change::Merge(device) => device,
            Change::Back | Change::Finish | Change::New(_) => 0,
        }
    }
}

impl World {
    pub(super) fn is_stopped(&self, device: usize) -> bool {
        self.changing.is_some_and(|of| device == 0 || device == of.change.other())
    }

    fn stopped_hosts(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|&host| self.is_stopped(self.hosts[host].device))
    }

    /// Requests a change; one that is impossible now is ignored.
    pub fn change(&mut self, change: Change) {
        let Some(flush) = self.makes_sense(change) else { return };
        self.changing = Some(Changing { change, flush, flushing: false });
        self.set_stopping(true);
        if self.trace {
            eprintln!("{}: {change:?} begins", self.now);
        }
    }

    /// The device to be flushed first, if any; none at all if the change is impossible now.
    fn makes_sense(&self, change: Change) -> Option<Option<usize>> {
        if self.changing.is_some() {
            return None;
        }
        let is_overlay = matches!(self.config.shape, Shape::Overlay { .. });
        let is_valid = |of: usize| {
            let number = self.devices[of].stores.last();
            number.is_some_and(|&store| self.stores[store].state() == StoreState::Valid)
        };
        match (change, self.role) {
            (Change::Renew(device), _) => {
                (device < self.devices.len() && !self.devices[device].gone).then_some(None)
            }
            (Change::Merge(of), Role::Serve) => {
                let of = if is_overlay { 0 } else { of };
                let device = self.devices.get(of)?;
                let store = &self.specs[*device.stores.last()?];
                let may = device.stores.len() == 1
                    && (of != 0 || is_overlay)
                    && !device.gone
                    && !device.lost
                    && device.sectors == self.config.sectors
                    && store.persistence != Persistence::Transient
                    && is_valid(of);
                may.then_some(Some(of))
            }
            // Also after its end: nothing may be left to merge.
            (Change::Back, Role::Merge(of)) => {
                let store = &self.stores[self.devices[of].stores[0]];
                (is_valid(of) && store.merge_mark() < MergeMark::Unerased).then_some(None)
            }
            (Change::Back, Role::Snapshot(of)) => is_valid(of).then_some(Some(0)),
            (Change::Finish, Role::Merge(_)) => Some(Some(0)),
            (Change::New(_), role) => {
                let may = if is_overlay {
                    role == Role::Serve && is_valid(0) && self.devices[0].stores.len() < 40
                } else {
                    let is_plain = matches!(self.config.shape, Shape::Plain);
                    // After a failed copy to the origin, the base's content is unknown.
                    let unsure = matches!(role, Role::Merge(_)) && self.config.origin_failures;
                    !(is_plain || unsure || matches!(role, Role::Snapshot(_)))
                        && self.devices.len() < 8
                };
                may.then_some(Some(0))
            }
            _ => None,
        }
    }

    fn set_stopping(&mut self, stopping: bool) {
        let hosts: Vec<usize> = self.stopped_hosts().collect();
        for host in hosts {
            self.hosts[host].engine.set_stopping(stopping);
            self.rouse(host);
        }
    }

    /// Advances the change, or requests one, if possible.
    pub(super) fn go_on_changing(&mut self) -> Result<bool, String> {
        if self.changing.is_none() && !self.refused_finish && self.has_merged() {
            self.change(Change::Finish);
        }
        let Some(changing) = self.changing else { return Ok(false) };
        let is_quiet = |host: usize| self.hosts[host].engine.is_quiet();
        let held: usize = self.stopped_hosts().map(|host| self.hosts[host].requests.len()).sum();
        let ready = self.stopped_hosts().all(is_quiet);
        match changing.flush {
            Some(_) if !ready || held > 0 => Ok(false),
            Some(device) if !changing.flushing => {
                self.kept = None;
                self.changing = Some(Changing { flushing: true, ..changing });
                let req = Req { device, op: Op::Flush, sector: 0, count: 0, durable: false };
                self.submit(req, true);
                Ok(true)
            }
            Some(_) => {
                if self.kept.take().is_some() {
                    self.changing = Some(Changing { flush: None, ..changing });
                } else {
                    // A failed sync keeps failing until the file is opened again.
                    self.refused_finish |= matches!(changing.change, Change::Finish);
                    self.set_stopping(false);
                    self.changing = None;
                }
                Ok(true)
            }
            None if !ready => Ok(false),
            None => {
                self.changing = None;
                if self.makes_sense(changing.change).is_none() {
                    // Something failed after its request.
                    self.changing = Some(changing);
                    self.set_stopping(false);
                    self.changing = None;
                    return Ok(true);
                }
                self.changing = Some(changing);
                self.note_handover(held);
                self.carry_out(changing.change)?;
                Ok(true)
            }
        }
    }

    fn note_handover(&mut self, held: usize) {
        if self.sim.in_flight() > 0 {
            self.coverage.met("handover in flight");
        }
        if held > 0 {
            self.coverage.met("handover with requests held");
        }
    }

    fn has_merged(&self) -> bool {
        let ended = |host: &Host| {
            let merge = host.engine.merge();
            merge.is_some_and(|merge| merge.state == MergeState::Finished)
        };
        matches!(self.role, Role::Merge(_)) && self.hosts.iter().any(ended)
    }

    /// Swaps the tables of the stopped devices, and lets them continue.
    fn carry_out(&mut self, change: Change) -> Outcome {
        if self.trace {
            eprintln!("{}: {change:?}", self.now);
        }
        let stopped: Vec<usize> = self.stopped_hosts().collect();
        for &host in &stopped {
            self.hosts[host].engine.bind(None);
        }
        match change {
            Change::Renew(_) => self.coverage.met("handover to a new table"),
            Change::Merge(of) => {
                self.coverage.met("merge begun");
                let of = if matches!(self.config.shape, Shape::Overlay { .. }) { 0 } else { of };
                self.role = Role::Merge(of);
                if of != 0 {
                    self.devices[0].model = self.devices[of].model.clone();
                    self.devices[0].lost = false;
                    self.devices[of].gone = true;
                    self.devices[of].waiting.clear();
                }
            }
            Change::Back => self.turn_back(),
            Change::Finish => self.finish_merge()?,
            Change::New(snap) => self.add_snapshot(snap)?,
        }
        self.build_tables();
        self.changing = None;
        for host in stopped {
            let table = self.devices[self.hosts[host].device].table.clone();
            let host = &mut self.hosts[host];
            host.engine.set_stopping(false);
            host.engine.bind(table);
            host.touched = true;
        }
        self.start_merge();
        Ok(())
    }

    fn turn_back(&mut self) {
        self.role = match self.role {
            Role::Merge(of) => {
                self.coverage.met("half a merge became a snapshot");
                let number = self.devices[of].stores[0];
                self.stores[number].set_merge_mark(MergeMark::None);
                // Only this device's guest writes the snapshot's origin.
                self.specs[number].guest_disk = true;
                self.stores[number].set_guest_disk(true);
                // Nothing was flushed, and from now on the base is only read.
                self.medium.set_left_unsynced(true);
                Role::Snapshot(of)
            }
            Role::Snapshot(of) => Role::Merge(of),
            Role::Serve => unreachable!("it was asked whether this makes sense"),
        };
    }

    /// The origin becomes the snapshot's content; an overlay continues with a new store.
    fn finish_merge(&mut self) -> Outcome {
        let Role::Merge(of) = self.role else { panic!("it was asked whether this makes sense") };
        let store = &self.stores[self.devices[of].stores[0]];
        let usage = store.usage();
        if store.entries() != 0 || usage.allocated != usage.metadata {
            return Err(format!("a merge has ended, and its store has {usage:?}"));
        }
        self.coverage.met("merge ended");
        self.role = Role::Serve;
        if let Shape::Overlay { chunk, store } = self.config.shape {
            let number = self.add_store(chunk, store, Persistence::PersistentOverflow, true)?;
            let device = &mut self.devices[0];
            device.stores = vec![number];
            let chunk = ChunkSize::from_sectors(chunk).unwrap();
            let chunks = chunk.count_for(device.sectors * 512);
            device.exceptions = Some(Arc::new(ExceptionTable::new(chunks)));
        }
        Ok(())
    }

    /// A snapshot of the present origin, or a layer on top of the overlay.
    fn add_snapshot(&mut self, snap: Snap) -> Outcome {
        self.coverage.met("live snapshot");
        if let Shape::Overlay { chunk, store } = self.config.shape {
            let number = self.add_store(chunk, store, Persistence::PersistentOverflow, true)?;
            self.devices[0].stores.push(number);
            return Ok(());
        }
        if self.role != Role::Serve {
            self.coverage.met("new snapshot in mid-merge");
        }
        // While device 0 is not the origin, the snapshot shows the base.
        let serves = self.role == Role::Serve;
        let mut model = if serves { self.devices[0].model.clone() } else { self.base_model() };
        model.truncate(snap.sectors);
        let number = self.add_store(snap.chunk, snap.store, snap.persistence, false)?;
        let chunk = ChunkSize::from_sectors(snap.chunk).unwrap();
        self.devices.push(Device {
            model,
            stores: vec![number],
            sectors: snap.sectors,
            exceptions: Some(Arc::new(ExceptionTable::new(chunk.count_for(snap.sectors * 512)))),
            table: None,
            waiting: VecDeque::new(),
            lost: self.devices[0].lost,
            gone: false,
        });
        self.build_tables();
        self.start_hosts_of(self.devices.len() - 1);
        Ok(())
    }

    fn add_store(
        &mut self,
        chunk: u32,
        sectors: u64,
        persistence: Persistence,
        guest_disk: bool,
    ) -> Result<usize, String> {
        let number = self.specs.len();
        let file = self.sim.add_disk(&format!("store{number}"), vec![0; sectors as usize * SECTOR]);
        self.specs.push(StoreSpec {
            file,
            chunk,
            persistence,
            guest_disk,
            recorded_invalid: false,
        });
        let (store, _) = self.open_store(number, None)?;
        self.stores.push(store);
        Ok(number)
    }

    /// The present content of the base.
    pub(super) fn base_model(&self) -> Model {
        Model::of_bytes(self.sim.disk(self.base).read(0, self.config.sectors * SECTOR as u64))
    }

    /// Starts the merge of a merging table, or restarts it.
    pub(super) fn start_merge(&mut self) {
        if !matches!(self.role, Role::Merge(_)) {
            return;
        }
        let Some(host) = (0..self.hosts.len()).find(|&host| self.hosts[host].merges) else {
            return;
        };
        self.rouse(host);
        // If it cannot be started, it never can until the store is opened again.
        let started = self.hosts[host].engine.start_merge();
        if self.trace {
            eprintln!("{}: the merge: {started:?}", self.now);
        }
    }

    /// Whether a merge has failed, or cannot be started.
    pub fn merge_failed(&self) -> bool {
        let state = |host: &Host| host.engine.merge().map(|merge| merge.state);
        let merging = self.hosts.iter().find(|host| host.merges);
        matches!(self.role, Role::Merge(_))
            && merging.is_some_and(|host| matches!(state(host), None | Some(MergeState::Failed(_))))
    }

    /// Whether a merge is in its `nth` step.
    pub fn merge_is_at(&self, nth: u64) -> bool {
        const STEPS: [&str; 6] =
            ["protect", "drain", "copy", "sync origin", "erase entries", "between batches"];
        let step = self.hosts.iter().find_map(|host| host.engine.merge_step());
        step == STEPS.get(nth as usize).copied() && step.is_some()
    }

    pub(super) fn note_merge_cut(&mut self) {
        if self.merge_failed() {
            self.coverage.met("cut after a merge failed");
        }
        if self.changing.is_some() {
            self.coverage.met("cut in a handover");
        }
        let Some(host) = self.hosts.iter().position(|host| host.merges) else { return };
        let Some(step) = self.hosts[host].engine.merge_step() else { return };
        let syncs = self.sim.actions(host).any(|action| action.op == IoOp::Sync);
        self.coverage.met(match step {
            "between batches" => "cut in a merge: between batches",
            "protect" => "cut in a merge: protect",
            "drain" => "cut in a merge: drain",
            "copy" => "cut in a merge: copy",
            "sync origin" => "cut in a merge: sync origin",
            "erase entries" if syncs => "cut in a merge: sync store",
            "erase entries" => "cut in a merge: erase entries",
            _ => "cut after a merge",
        });
    }
}
