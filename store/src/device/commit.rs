//! `block-commit`: layers of a chain are committed into the layers below while the chain is
//! served.
//!
//! Owns a commit's reservations while it runs, and the three changes of tables at its end: copied
//! layers leave the chain; if its own store is committed too, the served device takes a
//! `snapshot-merge` table; and it becomes what the base was. Never copies: the copy runs beside
//! these changes, into a base that no request reads where it is written, because a layer above
//! holds every chunk that is copied. So an interrupted commit leaves the content of the chain as
//! it was, and a commit that is started again repeats the same work.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

mod halt;
mod layer;
mod pivot;

use super::build::{Active, Plan, Snap};
use super::chain::{CommitBase, Cut};
use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::origins::FileOf;
use super::state::{CommitJob, sync_times};
use super::verbs::with_uppers;
use crate::background::CommitSource;
use crate::cow::StoreState;
use crate::exception::{ExceptionTable, Layer};
use crate::lines::{Param, TableLine, TargetSpec};
use crate::table::Table;
use crate::target::{Content, Extent};
use crate::units::Sector;
pub(super) use halt::failed;
pub use layer::PivotStep;
pub use pivot::Pivot;

/// The work before the tables change.
#[derive(Debug)]
pub struct CommitWork {
    /// The content to copy, and the table that it is written to; none if only the served device's
    /// own store is committed.
    pub copy: Option<(CommitSource, Arc<Table>)>,
    /// The served device's own store is committed, too: call [`Devices::pivot`] when the user
    /// requests it.
    pub activates: bool,
}

/// A running commit, and its reservations.
#[derive(Debug)]
pub(super) struct Commit {
    device: String,
    /// Devices whose tables do not change until it has ended.
    chain: Vec<String>,
    /// Those of them that no other table may use.
    held: Vec<String>,
    /// The files that it writes below all stores: no other table may use them.
    files: Vec<FileOf>,
    /// The served device's own store is committed, too.
    activates: bool,
    /// The base as a writable table; keeps its files open and locked.
    writer: Option<Active>,
    /// How often the served device's own store was put below an overlay to be copied.
    steps: u32,
    /// Whether flushes did not cover the base before it began.
    rested: bool,
}

impl Commit {
    /// An empty commit of the chain of `device`.
    fn of(device: &str) -> Commit {
        Commit {
            device: device.into(),
            chain: vec![device.into()],
            held: Vec::new(),
            files: Vec::new(),
            activates: false,
            writer: None,
            rested: false,
            steps: 0,
        }
    }

    /// The layer that is committed, and lies below a store of `active`. This table may name only
    /// what stays of the chain. But a store keeps the layers that it was made over, so they could
    /// not leave at the end.
    fn layer_of(&self, inner: &Inner, active: &Active) -> Option<&String> {
        let own = self.activates.then_some(&self.device);
        own.into_iter().chain(&self.held).find(|name| {
            let layer = inner.active(name).ok().and_then(Active::whole_snapshot);
            layer.is_some_and(|of| active.snaps.values().any(|snap| snap.lies_on(&of.live)))
        })
    }
}

pub(super) fn by_job(id: &str) -> String {
    format!("the job '{id}'")
}

impl Inner {
    /// Refuses to serve a device that a commit removes or writes.
    pub(super) fn refuse_held(&self, name: &str) -> Result<(), DeviceError> {
        self.refuse_held_below(name, None)
    }

    /// The same for what lies below `upper`, which itself may merge into it.
    pub(super) fn refuse_held_below(
        &self,
        name: &str,
        upper: Option<&str>,
    ) -> Result<(), DeviceError> {
        let holds = |(_, commit): &(&String, &Commit)| {
            let is_its_own = commit.leaves_its_device() && upper == Some(&commit.device);
            !is_its_own && commit.held.iter().any(|held| held == name)
        };
        match self.reserving().find(holds) {
            Some((id, _)) => Err(DeviceError::InUse { name: name.into(), by: by_job(id) }),
            None => Ok(()),
        }
    }
}

impl Devices {
    /// Refuses changes of devices that a commit works on, and tables that would use its
    /// reservations.
    pub(super) fn refuse_committing(
        &self,
        inner: &Inner,
        next: &BTreeMap<String, Option<Active>>,
    ) -> Result<(), DeviceError> {
        for (id, commit) in inner.reserving() {
            if let Some(name) = next.keys().find(|name| commit.chain.contains(name)) {
                return Err(DeviceError::InUse { name: name.clone(), by: by_job(id) });
            }
            for (name, active) in next {
                if let Some(active) = active
                    && let Some(used) = self.used_of(inner, commit, name, active)
                {
                    return Err(DeviceError::InUse { name: used, by: by_job(id) });
                }
            }
        }
        Ok(())
    }

    /// The reservations of `commit` that `active`, the table of `name`, uses.
    fn used_of(
        &self,
        inner: &Inner,
        commit: &Commit,
        name: &str,
        active: &Active,
    ) -> Option<String> {
        if commit.leaves_its_device() && name == commit.device {
            return None;
        }
        if let Some(held) = commit.held.iter().find(|held| active.names(held)) {
            return Some(held.clone());
        }
        if let Some(layer) = commit.layer_of(inner, active) {
            return Some(layer.clone());
        }
        // Devices above the served device reach the base through it.
        let above = with_uppers(inner, &commit.device);
        if above.iter().any(|upper| upper == name || active.names(upper)) {
            return None;
        }
        let files = active.table.files().iter();
        let used = files.copied().find(|file| commit.files.contains(&self.identity(*file)))?;
        let path = self.files.get(used).map(|info| info.path.display().to_string());
        Some(path.unwrap_or_else(|| commit.device.clone()))
    }

    /// Begins the commit `job` under `id`, and records this in the state: from now on no other
    /// table uses its part of the chain, and its base is open for writing and locked. Returns the
    /// content to copy; after the copy, call [`Devices::drop_layers`] or
    /// [`Devices::forget_commit`].
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn begin_commit(&self, id: &str, job: &CommitJob) -> Result<CommitWork, DeviceError> {
        let inner = &mut *self.lock();
        inner.forget_replaced();
        if inner.commits.contains_key(id) {
            return Err(DeviceError::refused(format!("the job '{id}' commits already")));
        }
        let cut = inner.cut(job)?;
        let (mut commit, snap) = self.hold(inner, id, job, &cut)?;
        let writer = self.writer(inner, &job.device, &cut)?;
        let source = self.source(inner, &cut)?;
        let copy = source.map(|source| (source, writer.table.clone()));
        let paths = |file| Some(self.files.get(file)?.path.clone());
        let origin = snap.origin.media().filter_map(|medium| paths(medium.file));
        let writes = if commit.files.is_empty() { Vec::new() } else { origin.collect() };
        if let CommitBase::Layer(name) = &cut.base {
            commit.rested = whole(inner, name)?.live.store.is_sealed();
            self.disturb(inner, name);
        }
        commit.writer = Some(writer);
        let before = inner.state.commits.insert(id.into(), CommitJob { writes, ..job.clone() });
        inner.commits.insert(id.into(), commit);
        if let Err(error) = self.keep(inner) {
            inner.commits.remove(id);
            inner.state.commits.remove(id);
            inner.state.commits.extend(before.map(|before| (id.to_owned(), before)));
            return Err(error);
        }
        Ok(CommitWork { copy, activates: cut.activates })
    }

    /// The reservations of the commit `job`, if nothing prevents it, and the served device's
    /// store.
    fn hold(
        &self,
        inner: &Inner,
        id: &str,
        job: &CommitJob,
        cut: &Cut,
    ) -> Result<(Commit, Snap), DeviceError> {
        // It ran before a restart.
        let accepted = inner.state.commits.get(id).is_some_and(|known| known.device == job.device);
        let (chain, held) = (cut.chain(), cut.held());
        let activates = cut.activates;
        let mut commit = Commit { chain, held, activates, ..Commit::of(&job.device) };
        self.refuse_cut(inner, cut)?;
        let snap = whole(inner, &job.device)?;
        if !matches!(cut.base, CommitBase::Layer(_)) {
            // It is written through what it lies on.
            let under = inner.under(cut.base.device());
            commit.chain.extend(under.iter().cloned());
            commit.held.extend(under);
            let media = snap.origin.media();
            commit.files = media.map(|medium| self.identity(medium.file)).collect();
            refuse_holes(&snap, &job.device)?;
            if !accepted {
                self.refuse_unasked(inner, &snap)?;
            }
        }
        self.refuse_users(inner, &commit)?;
        Ok((commit, snap))
    }

    /// The content to copy from the removed layers, if there are any.
    fn source(&self, inner: &mut Inner, cut: &Cut) -> Result<Option<CommitSource>, DeviceError> {
        let Some(top) = cut.go.first() else { return Ok(None) };
        let snap = whole(inner, top)?;
        let source = Plan::new(self, inner).own_table(top, &snap)?;
        Ok(Some(CommitSource { exceptions: source.exceptions(), above: cut.layers.0 }))
    }

    /// The base as a writable table.
    fn writer(&self, inner: &mut Inner, device: &str, cut: &Cut) -> Result<Active, DeviceError> {
        let len = inner.active(device)?.table.size();
        let (name, loaded) = match &cut.base {
            CommitBase::File(file) => {
                let paths = &inner.active(cut.lowest())?.paths;
                (device, Loaded::of(linear(len, file.clone()), false).meaning(paths))
            }
            CommitBase::Device(name) | CommitBase::Layer(name) => {
                (name.as_str(), Loaded { read_only: false, ..inner.active(name)?.loaded() })
            }
        };
        let below = inner.active(name)?.whole_snapshot().cloned();
        let mut plan = Plan::new(self, inner);
        let reuse = match (&cut.base, below) {
            (CommitBase::Layer(name), Some(snap)) => vec![plan.own_table(name, &snap)?],
            _ => Vec::new(),
        };
        plan.build(name, &loaded, &reuse)
    }

    /// The layer `name` gets entries that its own table, if it has one, does not know: it is read
    /// again before it serves.
    fn disturb(&self, inner: &mut Inner, name: &str) {
        let active = inner.devices.get_mut(name).and_then(|device| device.active.as_mut());
        for snap in active.into_iter().flat_map(|active| active.snaps.values_mut()) {
            snap.shared = true;
            snap.live.store.unseal();
        }
    }

    fn refuse_cut(&self, inner: &Inner, cut: &Cut) -> Result<(), DeviceError> {
        let activates = cut.activates.then(|| &cut.stay[0]);
        for name in cut.go.iter().chain(activates) {
            if whole(inner, name)?.live.store.state().is_condemned() {
                return Err(DeviceError::refused(format!(
                    "the store of '{name}' is invalid, so it must not be committed"
                )));
            }
        }
        let CommitBase::Layer(name) = &cut.base else { return Ok(()) };
        if whole(inner, name)?.live.store.state() != StoreState::Valid {
            return Err(DeviceError::refused(format!(
                "the store of '{name}' cannot be written: it is full, or a commit to it failed; \
                 open it again with a table that is loaded and resumed"
            )));
        }
        let (served, base) = (&cut.stay[0], inner.active(name)?.table.size());
        let len = inner.active(served)?.table.size();
        if cut.activates && len != base {
            return Err(DeviceError::refused(format!(
                "'{served}' has {len} sectors and '{name}' has {base}, so the one cannot become \
                 the other; commit it into what lies below all layers"
            )));
        }
        Ok(())
    }

    /// Refuses to write a base that was opened only for reading.
    fn refuse_unasked(&self, inner: &Inner, snap: &Snap) -> Result<(), DeviceError> {
        let asked = |path: &Path, writable: bool| {
            self.config.force || writable || inner.state.gave_to_write(path)
        };
        let files = snap.origin.media().filter_map(|medium| self.files.get(medium.file));
        for info in files {
            if !asked(&info.path, info.writable) {
                return Err(DeviceError::refused(format!(
                    "the base {} was opened for reading only: overlays on it that are not known \
                     here would be destroyed; if there are none, stop the server and start it again \
                     as 'snapblk serve --force' with its other options",
                    info.path.display()
                )));
            }
        }
        Ok(())
    }

    fn refuse_users(&self, inner: &Inner, commit: &Commit) -> Result<(), DeviceError> {
        let at_work = |name: &String| {
            let job = inner.reserving().find(|(_, other)| other.chain.contains(name));
            job.map(|(id, _)| DeviceError::InUse { name: name.clone(), by: by_job(id) })
        };
        if let Some(error) = commit.chain.iter().find_map(at_work) {
            return Err(error);
        }
        for name in &commit.held {
            let device = inner.device(name)?;
            if let Some(user) = device.users.keys().next() {
                let by = format!("the export '{user}'");
                return Err(DeviceError::InUse { name: name.clone(), by });
            }
            if device.inactive.is_some() {
                let by = String::from("the table that was loaded for it");
                return Err(DeviceError::InUse { name: name.clone(), by });
            }
        }
        for (other, device) in &inner.devices {
            let by = || format!("the device '{other}'");
            let loaded = device.inactive.iter().map(|loaded| &loaded.lines);
            let names =
                |held: &&String| loaded.clone().any(|lines| super::build::lines_name(lines, held));
            if let Some(held) = commit.held.iter().find(names) {
                return Err(DeviceError::InUse { name: held.clone(), by: by() });
            }
            if let Some(active) = &device.active
                && !commit.chain.contains(other)
                && let Some(name) = self.used_of(inner, commit, other, active)
            {
                return Err(DeviceError::InUse { name, by: by() });
            }
        }
        Ok(())
    }

    /// The copy of the job `id` is durable: its layers leave the chain, with one pause for the
    /// guest, in which nothing is copied. True if this completes the job; otherwise it waits for
    /// [`Devices::pivot`].
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn drop_layers(&self, id: &str) -> Result<bool, DeviceError> {
        let inner = &mut *self.lock();
        let (job, mut commit) = taken(inner, id)?;
        let cut = inner.cut(&job)?;
        let base = commit.writer.as_ref().and_then(|writer| writer.snaps.get(&0)).cloned();
        if !cut.activates {
            // Other readers of the base continue to read it as before.
            self.end_writing(&mut commit);
            inner.state.commits.remove(id);
        }
        let dropped = if cut.go.is_empty() {
            Ok(())
        } else {
            self.shorten(inner, (id, &job), &cut, base.map(|snap| snap.table))
        };
        if dropped.is_ok() {
            commit.chain.retain(|name| !cut.go.contains(name));
            commit.held.retain(|name| !cut.go.contains(name));
            if let CommitBase::Layer(name) = &cut.base {
                whole(inner, name)?.live.store.set_sealed();
            }
        }
        if dropped.is_err() || cut.activates {
            inner.state.commits.insert(id.into(), job);
            inner.commits.insert(id.into(), commit);
        } else if let Err(error) = self.keep(inner) {
            // The base has its final content; only its record in the state is missing.
            tracing::error!("{error}; a change of the base would not be noticed");
        }
        dropped.map(|()| !cut.activates)
    }

    /// Removes the layers of `cut` from the chain. `copied` gives the places of their chunks in
    /// the store of the base, if it has one.
    fn shorten(
        &self,
        inner: &mut Inner,
        (id, job): (&str, &CommitJob),
        cut: &Cut,
        copied: Option<Arc<ExceptionTable>>,
    ) -> Result<(), DeviceError> {
        let (below, top) = cut.layers;
        let mut tables: Vec<Arc<ExceptionTable>> = Vec::new();
        let mut snaps = Vec::new();
        for name in &cut.stay {
            let mut snap = whole(inner, name)?;
            snap.layers.drain(usize::from(below.0)..usize::from(top.0));
            if !tables.iter().any(|known| Arc::ptr_eq(known, &snap.table)) {
                tables.push(snap.table.clone());
            }
            snaps.push((name.clone(), inner.active(name)?.loaded(), snap));
        }
        // It is named by the lowest layer that goes.
        let paths = inner.active(cut.lowest())?.paths.clone();
        let mut plan = Plan::new(self, inner);
        for (at, (name, mut loaded, snap)) in snaps.into_iter().enumerate().rev() {
            if at + 1 == cut.stay.len()
                && let TargetSpec::Snapshot(spec) = &mut loaded.lines[0].target
            {
                spec.origin = cut.base.param();
                loaded.paths = loaded.paths.and(&paths);
            }
            plan.set(&name, &loaded, &[snap])?;
        }
        for name in &cut.go {
            plan.next.insert(name.clone(), None);
        }
        plan.follow()?;
        plan.undo = Box::new(|inner| _ = inner.state.commits.insert(id.into(), job.clone()));
        let gone = top.0 - below.0;
        self.apply(plan, |inner| {
            for table in &tables {
                table.remap(|chunk, mut place| {
                    if place.layer > top {
                        place.layer = Layer(place.layer.0 - gone);
                        return Some(place);
                    }
                    if place.layer <= below {
                        return Some(place);
                    }
                    let mut copied = copied.as_ref()?.next_mapped(chunk);
                    copied = copied.filter(|(found, _)| *found == chunk);
                    copied.map(|(_, place)| place)
                });
            }
            for name in &cut.go {
                inner.devices.remove(name);
            }
        })
    }

    /// The job `id` is over without being finished: it is not started again, and its reservations
    /// end. The content of the chain is unchanged.
    ///
    /// # Errors
    /// The state cannot be written.
    pub fn forget_commit(&self, id: &str) -> Result<(), DeviceError> {
        self.forget(&mut self.lock(), id)
    }

    /// The job of `commit` writes its base no more. The base's time is recorded next.
    fn end_writing(&self, commit: &mut Commit) {
        if let Some(writer) = commit.writer.take() {
            sync_times(self, &writer);
        }
    }

    fn forget(&self, inner: &mut Inner, id: &str) -> Result<(), DeviceError> {
        // All chunks that it left in the store of its base are in the layers above, too: the
        // guest's flushes need not cover them any more.
        if inner.commits.get(id).is_some_and(|commit| commit.rested)
            && let Some(cut) = inner.state.commits.get(id).and_then(|job| inner.cut(job).ok())
            && let CommitBase::Layer(name) = &cut.base
            && let Ok(snap) = whole(inner, name)
        {
            snap.live.store.set_sealed();
        }
        inner.remove_overlays(id);
        if let Some(mut commit) = inner.commits.remove(id) {
            self.end_writing(&mut commit);
        }
        inner.state.commits.remove(id);
        self.keep(inner)
    }
}

/// Takes the job `id` and its reservations, which are free until it is put back.
fn taken(inner: &mut Inner, id: &str) -> Result<(CommitJob, Commit), DeviceError> {
    let job = inner.state.commits.get(id).cloned();
    let (Some(job), Some(commit)) = (job, inner.commits.remove(id)) else {
        return Err(DeviceError::refused(format!("there is no commit '{id}'")));
    };
    Ok((job, commit))
}

/// The only snapshot of the device `name`.
fn whole(inner: &Inner, name: &str) -> Result<Snap, DeviceError> {
    let snap = inner.active(name)?.whole_snapshot().cloned();
    snap.ok_or_else(|| DeviceError::refused(format!("'{name}' is not an overlay")))
}

/// Refuses to commit into `zero` or `error`, whose writes would be lost.
fn refuse_holes(snap: &Snap, device: &str) -> Result<(), DeviceError> {
    let file = |extent: &Extent| matches!(extent.content, Content::File { .. });
    if snap.origin.slice(0, snap.len).extents().iter().all(file) {
        return Ok(());
    }
    Err(DeviceError::refused(format!(
        "what lies below the layers of '{device}' is not all in files, so it cannot take them"
    )))
}

fn linear(len: Sector, dev: Param) -> Vec<TableLine> {
    let target = TargetSpec::Linear { dev, offset: Sector(0) };
    vec![TableLine { start: Sector(0), len, target }]
}
