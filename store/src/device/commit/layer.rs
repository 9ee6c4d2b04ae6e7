//! The end of a commit from the served device into a layer: step by step the device's own store is
//! committed into the base's store, until the device has the base's table.
//!
//! Owns the overlays that it puts on top meanwhile, and the last change of tables. While the guest
//! works, an overlay takes its writes, and the previous top is copied like any layer, beside these
//! changes. The guest's writes in the meantime are the top of the next step, until they are few
//! enough to be copied while the guest is stopped. Keeps: at each moment, and after a kill at any
//! moment, the chain shows all acknowledged writes. A store's content is durable in the base
//! before the store leaves the chain, and an overlay's file is named in the state before it is
//! made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Commit, taken, whole};
use crate::background::{CommitEnd, CommitSource};
use crate::cow::owed;
use crate::device::build::{Plan, Snap};
use crate::device::chain::{CommitBase, Cut};
use crate::device::core::{Devices, Inner, Loaded};
use crate::device::error::DeviceError;
use crate::device::moment::{MomentAction, OverlaySnapshot};
use crate::device::serving::go;
use crate::device::state::CommitJob;
use crate::device::verbs::with_uppers;
use crate::table::Table;

/// Bytes of a store that are copied while the guest is stopped, which takes some tens of
/// milliseconds. Each step doubles them: otherwise a guest that writes as fast as the copy would
/// never be caught up with.
const LAST: u64 = 4 << 20;

/// The next step.
#[derive(Debug)]
pub enum PivotStep {
    /// Copy `source` to `table`; then call [`Devices::drop_layers`], and ask for the next step.
    Copy {
        /// The chunks of the layers above the base.
        source: CommitSource,
        /// The base, as a table that is written.
        table: Arc<Table>,
        /// The source holds only the guest's writes during the previous step.
        again: bool,
    },
    /// The device has the table that its base had.
    Done,
}

impl Devices {
    /// The next step of the job `id`, which the user has completed, and whose base is a layer.
    ///
    /// # Errors
    /// The chain is unchanged, except for an overlay on top.
    pub fn pivot_step(&self, id: &str) -> Result<PivotStep, DeviceError> {
        let inner = &mut *self.lock();
        self.remove_overlays(inner, id)?;
        let (job, mut commit) = taken(inner, id)?;
        let step = self.step(inner, id, &job, &mut commit);
        inner.commits.insert(id.into(), commit);
        if matches!(step, Ok(PivotStep::Done)) {
            self.remove_overlays(inner, id)?;
        }
        step
    }

    fn step(
        &self,
        inner: &mut Inner,
        id: &str,
        job: &CommitJob,
        commit: &mut Commit,
    ) -> Result<PivotStep, DeviceError> {
        let Some(base) = job.base.as_ref().filter(|base| inner.is_below(job, base)) else {
            return Ok(PivotStep::Done);
        };
        let mut cut = inner.cut(job)?;
        self.refuse_cut(inner, &cut)?;
        if cut.go.is_empty() {
            if own_bytes(&whole(inner, &job.device)?) <= LAST << commit.steps.min(32) {
                self.end_in_layer(inner, &cut, commit)?;
                return Ok(PivotStep::Done);
            }
            self.put_overlay(inner, id, &cut)?;
            commit.steps += 1;
            cut = inner.cut(job)?;
        }
        commit.chain = cut.chain();
        commit.held = cut.held();
        self.disturb(inner, base);
        let (source, writer) = (self.source(inner, &cut)?, commit.writer.as_ref());
        match (source, writer) {
            (Some(source), Some(writer)) => {
                let (table, again) = (writer.table.clone(), commit.steps > 1);
                Ok(PivotStep::Copy { source, table, again })
            }
            _ => Err(DeviceError::refused(format!("there is no commit '{id}'"))),
        }
    }

    /// Puts an overlay on top for the guest's writes; its file belongs to this job.
    fn put_overlay(&self, inner: &mut Inner, id: &str, cut: &Cut) -> Result<(), DeviceError> {
        let cow = free_path(inner, cut)?;
        let overlays = |inner: &mut Inner, of: &dyn Fn(&mut Vec<PathBuf>)| {
            inner.state.commits.get_mut(id).into_iter().for_each(|job| of(&mut job.overlays));
        };
        overlays(inner, &|all| all.push(cow.clone()));
        let device = cut.stay[0].clone();
        let overlay = OverlaySnapshot { device, cow: cow.clone(), below: None, existing: false };
        // Recorded first: if the process is killed, the overlay's file is found and removed.
        let put = self.keep(inner).and_then(|()| {
            self.take_moment_of(inner, &[MomentAction::Overlay(overlay)], &|| Ok(()))
        });
        put.inspect_err(|_| overlays(inner, &|all| all.retain(|path| *path != cow)))
    }

    /// Copies the chunks of the device's own store into the base, whose table the device takes,
    /// while the guest is stopped.
    fn end_in_layer(
        &self,
        inner: &mut Inner,
        cut: &Cut,
        commit: &mut Commit,
    ) -> Result<(), DeviceError> {
        let device = &cut.stay[0];
        // Flushed first, so that the guest is stopped for less time.
        self.flush(device, inner.active(device)?)?;
        let names = with_uppers(inner, device);
        self.stop(inner, &names)?;
        let ended = self.copy_rest(inner, cut, commit);
        if ended.is_err() {
            go(inner, &names);
        }
        ended
    }

    fn copy_rest(
        &self,
        inner: &mut Inner,
        cut: &Cut,
        commit: &mut Commit,
    ) -> Result<(), DeviceError> {
        let device = &cut.stay[0];
        let CommitBase::Layer(base) = &cut.base else {
            return Err(DeviceError::refused(format!("'{device}' has no layer below it")));
        };
        let writer = commit
            .writer
            .as_ref()
            .and_then(|writer| Some((writer.table.clone(), writer.snaps.get(&0)?.clone())));
        let Some((table, snap)) = writer else {
            return Err(DeviceError::refused(format!("the base '{base}' is not open for writing")));
        };
        let active = inner.active(device)?;
        self.flush(device, active)?;
        let exceptions = whole(inner, device)?.exceptions();
        let source = CommitSource { exceptions, above: cut.layers.0 };
        snap.live.store.unseal();
        match self.config.flusher.copy(source, &table) {
            CommitEnd::Finished => {}
            failed => return Err(DeviceError::refused(failed.to_string())),
        }
        let loaded = Loaded { read_only: active.read_only, ..inner.active(base)?.loaded() };
        let mut plan = Plan::new(self, inner);
        plan.next.insert(base.clone(), None);
        plan.set(device, &loaded, &[snap])?;
        plan.follow()?;
        self.apply(plan, |inner| {
            inner.devices.remove(base);
        })?;
        commit.writer = None;
        commit.activates = false;
        commit.chain = vec![device.clone()];
        commit.held.clear();
        Ok(())
    }

    fn remove_overlays(&self, inner: &mut Inner, id: &str) -> Result<(), DeviceError> {
        if inner.remove_overlays(id) { self.keep(inner) } else { Ok(()) }
    }
}

impl Inner {
    /// Removes the files of overlays of the job `id` that have left the chain; true if there were
    /// any, and the state must be written.
    pub(super) fn remove_overlays(&mut self, id: &str) -> bool {
        let Some(job) = self.state.commits.get(id) else { return false };
        let is_used = |path: &PathBuf| {
            let actives = self.devices.values().filter_map(|device| device.active.as_ref());
            let mut snaps = actives.flat_map(|active| active.snaps.values());
            snaps.any(|snap| snap.live.disk.info.path == *path)
        };
        let (used, left): (Vec<_>, Vec<_>) = job.overlays.iter().cloned().partition(is_used);
        for path in &left {
            if let Err(error) = owed::remove_store(path) {
                tracing::warn!("cannot remove {}, which nobody needs: {error}", path.display());
            }
        }
        self.state.commits.entry(id.into()).and_modify(|job| job.overlays = used);
        !left.is_empty()
    }
}

/// Bytes that the topmost store of `snap` has allocated, committed or not.
fn own_bytes(snap: &Snap) -> u64 {
    snap.live.store.log().next().0 * snap.live.store.chunk().bytes()
}

/// A free path for an overlay's store: beside the device's own store, or beside the base's if the
/// first is not a file.
fn free_path(inner: &Inner, cut: &Cut) -> Result<PathBuf, DeviceError> {
    let names = cut.stay.first().map(String::as_str).into_iter().chain(cut.base.device());
    let stores: Result<Vec<Snap>, DeviceError> = names.map(|name| whole(inner, name)).collect();
    let is_file = |snap: &&Snap| !snap.live.disk.info.block_device;
    let stores = stores?;
    let Some(store) = stores.iter().find(is_file) else {
        return Err(DeviceError::refused(
            "all stores are block devices, so there is no place for the overlay that takes what \
             the guest writes meanwhile; put one on top with 'blockdev-snapshot-sync' and commit \
             what is below it",
        ));
    };
    let store = &store.live.disk.info.path;
    let stem = store.file_name().unwrap_or_default().to_string_lossy();
    // Without an earlier suffix: an overlay's name does not grow with each step.
    let stem = stem.split_once(".commit-").map_or(&*stem, |(stem, _)| stem);
    let path = |number: u32| store.with_file_name(format!("{stem}.commit-{number}"));
    let is_free = |path: &PathBuf| !path.exists();
    (1..).map(path).find(is_free).ok_or_else(|| no_name(store))
}

fn no_name(store: &Path) -> DeviceError {
    DeviceError::refused(format!("no name is free beside {}", store.display()))
}
