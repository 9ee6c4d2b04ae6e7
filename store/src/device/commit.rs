//! `block-commit`: layers of a chain go down into what lies below, while the chain is served.
//!
//! Owns what a commit holds while it runs, and the three changes of tables it ends with: layers
//! that are copied leave the chain; the served device takes a `snapshot-merge` table, where its
//! own store goes too; and it becomes what the base was. Never copies: that is done beside these
//! changes, into a base that nobody reads where it is written, because the chain has every chunk
//! that is copied in a layer above. So a commit that is cut off leaves the chain's content as it
//! was, and one that is started again does the same once more.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::build::{Active, Plan, Snap};
use super::chain::{CommitBase, Cut};
use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::origins::FileOf;
use super::state::CommitJob;
use super::verbs::with_uppers;
use crate::background::CommitSource;
use crate::cow::StoreState;
use crate::exception::{ExceptionTable, Layer};
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::table::Table;
use crate::target::{Extent, ExtentPlace};
use crate::units::Sector;

/// What is to be done before the tables change.
#[derive(Debug)]
pub struct CommitWork {
    /// What is copied, and the table that it is written to; none where no layer goes but the
    /// served device's own.
    pub copy: Option<(CommitSource, Arc<Table>)>,
    /// The served device's own store goes, too: [`Devices::pivot`] is due when the user says so.
    pub activates: bool,
}

/// A commit that runs, and what it holds.
#[derive(Debug)]
pub(super) struct Commit {
    device: String,
    /// Devices whose tables stay as they are until it has ended.
    chain: Vec<String>,
    /// Those of them that nobody else may use.
    held: Vec<String>,
    /// The files that it writes below all stores: nobody else may use them.
    files: Vec<FileOf>,
    /// The base as it is written; keeps its files open, and locked.
    writer: Option<Active>,
}

fn by_job(id: &str) -> String {
    format!("the job '{id}'")
}

impl Inner {
    /// Refuses to serve what a commit takes away or writes.
    pub(super) fn refuse_held(&self, name: &str) -> Result<(), DeviceError> {
        let holds = |(_, commit): &(&String, &Commit)| commit.held.iter().any(|held| held == name);
        match self.commits.iter().find(holds) {
            Some((id, _)) => Err(DeviceError::InUse { name: name.into(), by: by_job(id) }),
            None => Ok(()),
        }
    }
}

impl Devices {
    /// Refuses changes of devices that a commit is at work on, and others that would use what it
    /// holds.
    pub(super) fn refuse_committing(
        &self,
        inner: &Inner,
        next: &BTreeMap<String, Option<Active>>,
    ) -> Result<(), DeviceError> {
        for (id, commit) in &inner.commits {
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

    /// What `active`, the table of `name`, uses of what `commit` holds.
    fn used_of(
        &self,
        inner: &Inner,
        commit: &Commit,
        name: &str,
        active: &Active,
    ) -> Option<String> {
        if let Some(held) = commit.held.iter().find(|held| active.names(held)) {
            return Some(held.clone());
        }
        // What lies on the served device comes to the base by way of it.
        let above = with_uppers(inner, &commit.device);
        if above.iter().any(|upper| upper == name || active.names(upper)) {
            return None;
        }
        let files = active.table.files().iter();
        let used = files.copied().find(|file| commit.files.contains(&self.identity(*file)))?;
        let path = self.files.get(used).map(|info| info.path.display().to_string());
        Some(path.unwrap_or_else(|| commit.device.clone()))
    }

    /// Begins the commit `job` under `id`, and keeps that: from now on its part of the chain is
    /// used by nobody else, and its base is open for writing and locked. What is to be copied is
    /// returned; [`Devices::drop_layers`] is due when that was done, or [`Devices::forget_commit`].
    ///
    /// # Errors
    /// Everything is as it was then.
    pub fn begin_commit(&self, id: &str, job: &CommitJob) -> Result<CommitWork, DeviceError> {
        let inner = &mut *self.lock();
        let cut = inner.cut(job)?;
        let accepted = inner.state.commits.contains_key(id);
        let mut commit = Commit {
            device: job.device.clone(),
            chain: cut.chain(),
            held: cut.held(),
            files: Vec::new(),
            writer: None,
        };
        self.refuse_cut(inner, &cut)?;
        let snap = whole(inner, &job.device)?;
        if !matches!(cut.base, CommitBase::Layer(_)) {
            let media = snap.origin.media();
            commit.files = media.map(|medium| self.identity(medium.file)).collect();
            refuse_holes(&snap, &job.device)?;
            if !accepted {
                self.refuse_unasked(inner, &snap)?;
            }
        }
        self.refuse_users(inner, &commit)?;
        let writer = self.writer(inner, &job.device, &cut)?;
        let copy = match cut.go.first() {
            Some(top) => {
                let top_snap = whole(inner, top)?;
                let source = Plan::new(self, inner).own_table(top, &top_snap)?;
                let source = CommitSource { exceptions: source.exceptions(), above: cut.layers.0 };
                Some((source, writer.table.clone()))
            }
            None => None,
        };
        let paths = |file| Some(self.files.get(file)?.path.clone());
        let origin = snap.origin.media().filter_map(|medium| paths(medium.file));
        let writes = if commit.files.is_empty() { Vec::new() } else { origin.collect() };
        if let CommitBase::Layer(name) = &cut.base {
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

    /// The base as it is written.
    fn writer(&self, inner: &mut Inner, device: &str, cut: &Cut) -> Result<Active, DeviceError> {
        let len = inner.active(device)?.table.size();
        let (name, lines) = match &cut.base {
            CommitBase::File(file) => (device, linear(len, file.clone())),
            CommitBase::Device(name) | CommitBase::Layer(name) => {
                (name.as_str(), inner.active(name)?.lines.clone())
            }
        };
        let below = inner.active(name)?.whole_snapshot().cloned();
        let mut plan = Plan::new(self, inner);
        let reuse = match (&cut.base, below) {
            (CommitBase::Layer(name), Some(snap)) => vec![plan.own_table(name, &snap)?],
            _ => Vec::new(),
        };
        plan.build(name, &Loaded::of(lines, false), &reuse)
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
            if whole(inner, name)?.live.store.state() >= StoreState::Invalidating {
                return Err(DeviceError::refused(format!(
                    "the store of '{name}' is invalid, so it must not be committed"
                )));
            }
        }
        if let CommitBase::Layer(name) = &cut.base
            && whole(inner, name)?.live.store.state() != StoreState::Valid
        {
            return Err(DeviceError::refused(format!(
                "the store of '{name}' cannot be written: it is full, or a commit to it failed; \
                 open it again with a table that is loaded and resumed"
            )));
        }
        Ok(())
    }

    /// Who opened a base for reading alone did not ask for it to be written.
    fn refuse_unasked(&self, inner: &Inner, snap: &Snap) -> Result<(), DeviceError> {
        let asked = |path: &Path, writable: bool| {
            self.config.force || writable || inner.state.gave_to_write(path)
        };
        let files = snap.origin.media().filter_map(|medium| self.files.get(medium.file));
        for info in files {
            if !asked(&info.path, info.writable) {
                return Err(DeviceError::refused(format!(
                    "the base {} was opened for reading only: overlays on it that are not known \
                     here would be destroyed; start with --force to commit into it all the same",
                    info.path.display()
                )));
            }
        }
        Ok(())
    }

    fn refuse_users(&self, inner: &Inner, commit: &Commit) -> Result<(), DeviceError> {
        let at_work = |name: &String| {
            let job = inner.commits.iter().find(|(_, other)| other.chain.contains(name));
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

    /// What the job `id` copied is durable: its layers leave the chain, with one pause for the
    /// guest, in which nothing is copied. True where the job is done with that; otherwise it
    /// waits for [`Devices::pivot`].
    ///
    /// # Errors
    /// Everything is as it was then.
    pub fn drop_layers(&self, id: &str) -> Result<bool, DeviceError> {
        let inner = &mut *self.lock();
        let (job, mut commit) = taken(inner, id)?;
        let cut = inner.cut(&job)?;
        let base = commit.writer.as_ref().and_then(|writer| writer.snaps.get(&0)).cloned();
        if !cut.activates {
            // Whoever read the base goes on to read it as before.
            commit.writer = None;
            inner.state.commits.remove(id);
        }
        let dropped = if cut.go.is_empty() {
            Ok(())
        } else {
            self.shorten(inner, &cut, base.map(|snap| snap.table))
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
            // The base is what it is from now on; that it is known is all that is missing.
            tracing::error!("{error}; a change of the base would not be noticed");
        }
        dropped.map(|()| !cut.activates)
    }

    /// Takes the layers of `cut` out of the chain. `copied` says where their chunks lie now in the
    /// store of the base, if it has one.
    fn shorten(
        &self,
        inner: &mut Inner,
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
        let mut plan = Plan::new(self, inner);
        for (at, (name, mut loaded, snap)) in snaps.into_iter().enumerate().rev() {
            if at + 1 == cut.stay.len()
                && let TargetSpec::Snapshot(spec) = &mut loaded.lines[0].target
            {
                spec.origin = cut.base.param();
            }
            plan.set(&name, &loaded, &[snap])?;
        }
        for name in &cut.go {
            plan.next.insert(name.clone(), None);
        }
        plan.follow()?;
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

    /// The user ends the job `id`, whose device's own store is all that is left: the device takes
    /// a `snapshot-merge` table over the base. The merge is run by whoever has an executor;
    /// [`Devices::end_pivot`] is due when it has finished.
    ///
    /// # Errors
    /// Everything is as it was then.
    pub fn pivot(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let (job, mut commit) = taken(inner, id)?;
        let pivoted = CommitJob { pivoted: true, ..job.clone() };
        inner.state.commits.insert(id.into(), pivoted);
        let changed = self.merge_into_base(inner, &job);
        if changed.is_ok() {
            commit.writer = None;
        } else {
            inner.state.commits.insert(id.into(), job);
        }
        inner.commits.insert(id.into(), commit);
        changed
    }

    fn merge_into_base(&self, inner: &mut Inner, job: &CommitJob) -> Result<(), DeviceError> {
        let cut = inner.cut(job)?;
        if !cut.go.is_empty() {
            return Err(DeviceError::refused(format!(
                "'{}' has layers that are not committed yet",
                job.device
            )));
        }
        self.refuse_cut(inner, &cut)?;
        let active = inner.active(&job.device)?;
        let (loaded, snap) = (active.loaded(), whole(inner, &job.device)?);
        if !self.config.flusher.flush(&active.table) {
            return Err(DeviceError::FlushFailed(job.device.clone()));
        }
        let TargetSpec::Snapshot(spec) = &loaded.lines[0].target else {
            return Err(DeviceError::refused(format!("'{}' is not an overlay", job.device)));
        };
        let len = loaded.lines[0].len;
        let merge = TargetSpec::Merge(SnapshotSpec { origin: cut.base.param(), ..spec.clone() });
        let lines = vec![TableLine { start: Sector(0), len, target: merge }];
        let below = match cut.base.device() {
            Some(name) => Some((name, inner.active(name)?.lines.clone())),
            None => None,
        };
        let mut plan = Plan::new(self, inner);
        if let Some((name, lines)) = below {
            plan.set(name, &Loaded::of(lines, false), &[])?;
        }
        plan.set(&job.device, &Loaded::of(lines, loaded.read_only), &[snap])?;
        plan.follow()?;
        self.apply(plan, |_| ())
    }

    /// Holds again what the job `id` holds whose device merges into its base, after a restart.
    ///
    /// # Errors
    /// Where the device does not merge.
    pub fn resume_pivot(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let Some(job) = inner.state.commits.get(id).cloned() else { return Ok(()) };
        let base = merge_base(inner, &job.device)?;
        let active = inner.active(&job.device)?;
        let media = active.snaps.values().flat_map(|snap| snap.origin.media());
        let files = media.map(|medium| self.identity(medium.file)).collect();
        let held: Vec<String> = base.device().map(str::to_owned).into_iter().collect();
        let chain = [job.device.clone()].into_iter().chain(held.clone()).collect();
        let commit = Commit { device: job.device, chain, held, files, writer: None };
        inner.commits.insert(id.into(), commit);
        Ok(())
    }

    /// The merge of the job `id` has finished: its device is what the base was.
    ///
    /// # Errors
    /// The merged table stays then; it serves the same content.
    pub fn end_pivot(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let (job, commit) = taken(inner, id)?;
        inner.state.commits.remove(id);
        let ended = self.become_base(inner, &job.device);
        if ended.is_err() {
            inner.state.commits.insert(id.into(), job);
            inner.commits.insert(id.into(), commit);
        }
        ended
    }

    fn become_base(&self, inner: &mut Inner, device: &str) -> Result<(), DeviceError> {
        let base = merge_base(inner, device)?;
        let active = inner.active(device)?;
        let (len, read_only) = (active.table.size(), active.read_only);
        let below = base.device().map(|name| inner.active(name)).transpose()?;
        // One that is longer stays below: the guest's disk keeps its size.
        let same = below.filter(|below| below.table.size() == len);
        let lines = match same {
            Some(below) => below.lines.clone(),
            None => linear(len, base),
        };
        let gone = same.is_some().then(|| merge_base(inner, device)).transpose()?;
        let gone = gone.and_then(|base| base.device().map(str::to_owned));
        let mut plan = Plan::new(self, inner);
        if let Some(name) = &gone {
            plan.next.insert(name.clone(), None);
        }
        plan.set(device, &Loaded::of(lines, read_only), &[])?;
        plan.follow()?;
        self.apply(plan, |inner| {
            if let Some(name) = &gone {
                inner.devices.remove(name);
            }
        })
    }

    /// The job `id` is over without being finished: it is not started again, and what it held is
    /// free. The chain serves what it served.
    ///
    /// # Errors
    /// Where that cannot be kept.
    pub fn forget_commit(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.commits.remove(id);
        inner.state.commits.remove(id);
        self.keep(inner)
    }
}

/// The job `id` and what it holds, which is free until it is put back.
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

/// What is written to `zero` or `error` would be lost.
fn refuse_holes(snap: &Snap, device: &str) -> Result<(), DeviceError> {
    let file = |extent: &Extent| matches!(extent.place, ExtentPlace::File { .. });
    if snap.origin.slice(0, snap.len).extents().iter().all(file) {
        return Ok(());
    }
    Err(DeviceError::refused(format!(
        "what lies below the layers of '{device}' is not all in files, so it cannot take them"
    )))
}

/// What the device merges into.
fn merge_base(inner: &Inner, device: &str) -> Result<Param, DeviceError> {
    match &inner.active(device)?.lines[..] {
        [TableLine { target: TargetSpec::Merge(spec), .. }] => Ok(spec.origin.clone()),
        _ => Err(DeviceError::refused(format!("'{device}' does not merge"))),
    }
}

fn linear(len: Sector, dev: Param) -> Vec<TableLine> {
    let target = TargetSpec::Linear { dev, offset: Sector(0) };
    vec![TableLine { start: Sector(0), len, target }]
}
