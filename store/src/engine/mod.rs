//! The engine of one worker: requests and completions in, actions and finished requests out.
//!
//! Owns the requests of one worker in flight. Shares with other workers only what a [`Table`]
//! shares: the exception tables, the stores' logs and the inboxes. Performs no I/O
//! and never blocks; its host carries out the actions, with io_uring or in a simulator. Never knows
//! where requests come from or where their bytes are. Keeps I10 (every request ends exactly once)
//! and I13 (a claim waits only for its own I/O or for room).
//!
//! ```text
//! submit ─→ dispatch ─→ Decision ─→ action ──────────────→ complete ─→ finished
//!              ↑            ├─→ move: read, claim, run ────────┤
//!              │            ├─→ origin write: copies, commit ──┤
//!              └── parked ←─┴─→ wait            ↑ woken by the chunk's mover
//! ```

mod abandon;
mod claim;
mod claims;
mod commit;
mod core;
mod dispatch;
mod invalidate;
mod lists;
mod merge;
mod origin;
mod pending;
mod room;
mod scratch;
mod slices;
mod syncs;
mod tag;

use std::sync::Arc;

use self::core::Core;
pub use self::core::EngineConfig;
use crate::io::{Action, Completion, FileId, Seg};
use crate::request::{Op, Request, Status, Token};
use crate::table::Table;
use crate::target::Decision;
use crate::target::Target;
use crate::workers::{TooManyWorkers, Wake, Worker, Workers};
pub use merge::{MergeFailure, MergeProgress, MergeState};

/// The place of a whole request that needs nothing of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// To this file.
    pub file: FileId,
    /// From this byte of it.
    pub offset: u64,
}

/// See the module's description.
pub struct Engine {
    table: Option<Arc<Table>>,
    core: Core,
}

impl Engine {
    /// The engine of another of `workers`, see [`Engine::of`]. `wake` ends the host's sleep.
    ///
    /// # Errors
    /// There is no room for another ([`crate::workers::MAX_WORKERS`]).
    pub fn new(
        workers: &Arc<Workers>,
        wake: Box<dyn Wake>,
        config: EngineConfig,
    ) -> Result<Engine, TooManyWorkers> {
        workers.register(wake).map(|worker| Engine::of(worker, config))
    }

    /// An engine without a table: it holds submitted requests until it has one.
    pub fn of(worker: Worker, config: EngineConfig) -> Engine {
        Engine { table: None, core: Core::new(worker, config) }
    }

    /// Its requests are no guest's: that one of them fails tells a guest nothing.
    pub fn set_no_guest(&mut self) {
        self.core.serves_guest = false;
    }

    /// Takes a table, or none. Held requests are replayed in the next step.
    ///
    /// # Panics
    /// Unless the engine is quiet: the old table decided the requests in flight (I9).
    pub fn bind(&mut self, table: Option<Arc<Table>>) {
        assert!(self.is_quiet(), "I9: a table is swapped while nothing is in flight");
        if let Some(table) = &table {
            self.core.adopt(table);
        }
        self.table = table;
        self.core.replay();
    }

    /// The table it serves.
    pub fn table(&self) -> Option<&Arc<Table>> {
        self.table.as_ref()
    }

    /// The place of `[offset, offset + len)`, if all of it is one extent of one file and nothing
    /// has to be waited for or recorded. Only for a read or a write-back write.
    #[inline]
    pub fn direct(&self, op: Op, offset: u64, len: u64) -> Option<Direct> {
        match self.table.as_ref()?.decide(op, offset, len) {
            Decision::Pass { file, offset, len: all, track: None } if all == len => {
                Some(Direct { file, offset })
            }
            _ => None,
        }
    }

    /// A request that begins at `offset` may be submitted soon.
    #[inline]
    pub fn prefetch(&self, offset: u64) {
        if let Some(table) = &self.table {
            table.prefetch(offset);
        }
    }

    /// Takes a request. It ends in [`Engine::pop_finished`], once.
    pub fn submit(&mut self, request: Request) {
        self.core.admit(request);
    }

    /// Every request that it has, except for reads, ends only when it is durable, as if it had been
    /// submitted so.
    pub fn make_durable(&mut self) {
        self.core.make_durable();
    }

    /// Its process is gone, with all its I/O in flight: for simulations of that.
    #[cfg(any(test, feature = "sim"))]
    pub fn killed(mut self) {
        self.core.killed();
    }

    /// One of the engine's actions ended.
    pub fn complete(&mut self, completion: Completion) {
        let table = self.table.as_deref().expect("actions come from a table");
        self.core.complete(table, completion);
    }

    /// Advances everything that can proceed: to be called once per batch, after submissions and
    /// completions.
    pub fn step(&mut self) {
        match self.table.as_deref() {
            Some(table) => self.core.step(table),
            // A wake that is not taken would keep the host from sleeping. The next table checks
            // its cause again.
            None => self.core.ignore_wake(),
        }
    }

    /// The next thing to do, if any. Its parts are in [`Engine::segs`] until the next step.
    pub fn pop_action(&mut self) -> Option<Action> {
        self.core.actions.pop_front()
    }

    /// The parts of an action that was just popped.
    pub fn segs(&self, action: &Action) -> &[Seg] {
        let (first, count) = action.segs;
        &self.core.segs[first as usize..][..count as usize]
    }

    /// The bytes of the [`Seg::Meta`] part of an action that was just popped, to be copied when the
    /// action is carried out; none if it has no such part.
    pub fn meta_of(&self, action: &Action) -> &[u8] {
        let slot = self.segs(action).iter().find_map(|seg| match seg {
            Seg::Meta { slot, .. } => Some(*slot),
            _ => None,
        });
        slot.map_or(&[], |slot| self.core.meta(slot))
    }

    /// The next request that ended, if any.
    pub fn pop_finished(&mut self) -> Option<(Token, Status)> {
        self.core.finished.pop_front()
    }

    /// Whether nothing is in flight: no action, no claim, no commit that it leads. There may be
    /// held requests; they hold no resource.
    pub fn is_quiet(&self) -> bool {
        self.core.is_quiet()
    }

    /// Requests that have not ended.
    pub fn requests(&self) -> usize {
        self.core.requests.len()
    }

    /// Ends all held requests with an error. Quiet engines only.
    pub fn fail_held(&mut self) {
        assert!(self.is_quiet(), "only what holds nothing can be given up");
        self.core.fail_held();
    }

    /// Ends with an error the requests that are held because a store has no room for them. Quiet
    /// engines only.
    pub fn fail_held_for_room(&mut self) {
        assert!(self.is_quiet(), "only what holds nothing can be given up");
        self.core.fail_held_for_room();
    }

    /// Commits the owed chunks of the table's stores in the next steps, although no request waits
    /// for it; not those of stores whose commit is under way.
    pub fn commit(&mut self) {
        if let Some(table) = self.table.as_deref() {
            self.core.commit_owed(table);
        }
    }

    /// Stops leading commits for others and starting background work; before a suspend.
    pub fn set_stopping(&mut self, stopping: bool) {
        self.core.stopping = stopping;
    }

    /// Whether its requests write nothing, whatever its tables allow. A flush then has no writes to
    /// make durable but those of an earlier table, and waits for no other worker's.
    pub fn set_only_reads(&mut self, only_reads: bool) {
        self.core.only_reads = only_reads;
    }

    /// Announces that the host goes to sleep. False if there is something to do first: call
    /// [`Engine::step`] and try again. After the sleep call [`Engine::woke`].
    pub fn may_sleep(&self) -> bool {
        self.core.actions.is_empty()
            && self.core.finished.is_empty()
            && self.core.worker.may_sleep()
    }

    /// Announces that the host no longer sleeps.
    pub fn woke(&self) {
        self.core.worker.woke();
    }

    /// Every file that the table's requests may access.
    pub fn files(&self) -> &[FileId] {
        self.table.as_deref().map_or(&[], |table| table.files())
    }

    /// Starts the merge of the table's `snapshot-merge` line, or restarts it after a failure. It
    /// runs in the next steps, until the engine is told to stop or is bound again. The caller has
    /// committed the store's owed chunks, and starts the merge in one engine only.
    ///
    /// # Errors
    /// Why it cannot start.
    pub fn start_merge(&mut self) -> Result<(), MergeFailure> {
        let table = self.table.clone().ok_or(MergeFailure::NoMerge)?;
        self.core.start_merge(&table)
    }

    /// A part of the store's list that the merge has read into scratch memory: pass its bytes to
    /// [`Engine::merge_supply`], and then ask again for another part.
    pub fn merge_wants(&self) -> Option<Seg> {
        let (buf, len) = self.core.merge.as_ref()?.wants()?;
        Some(self.core.scratch.seg(buf, 0, len))
    }

    /// The bytes that [`Engine::merge_wants`] named; the next steps use them.
    pub fn merge_supply(&mut self, bytes: &[u8]) {
        if let Some(table) = self.table.as_deref() {
            self.core.merge_supply(table, bytes);
        }
    }

    /// Pauses the merge after the current batch, or lets it continue.
    pub fn merge_pause(&mut self, pause: bool) {
        if let Some(job) = &mut self.core.merge {
            job.set_paused(pause);
        }
    }

    /// Lets the merge copy another `bytes`, or as much as it can. A batch begins while any
    /// allowance is left; an excess is deducted from the next allowance, and an unused rest is
    /// lost.
    pub fn merge_budget(&mut self, bytes: Option<u64>) {
        if let Some(job) = &mut self.core.merge {
            job.allow(bytes);
        }
    }

    /// How many batches the merge may still begin, all of them small; none: any number, of any
    /// size.
    pub fn merge_batches(&mut self, batches: Option<u32>) {
        if let Some(job) = &mut self.core.merge {
            job.batches = batches;
        }
    }

    /// Sets whether batches take so long that the next should be smaller; otherwise it may be larger.
    pub fn set_merge_slow(&mut self, slow: bool) {
        if let Some(job) = &mut self.core.merge {
            job.slow = slow;
        }
    }

    /// Whether the merge waits for permission for another batch, with none in progress.
    pub fn merge_has_ended_batches(&self) -> bool {
        self.core.merge.as_ref().is_some_and(|job| job.has_ended_batches())
    }

    /// Whether the guest read or wrote the device that is merged since this was asked last.
    pub fn take_merge_in_use(&self) -> bool {
        let lines = self.table.iter().flat_map(|table| table.lines());
        lines.fold(false, |used, line| match &line.target {
            Target::Merge(merge) => used | merge.in_use.take(),
            _ => used,
        })
    }

    /// The present step of the merge, as the merge's description names it.
    #[cfg(any(test, feature = "sim"))]
    pub fn merge_step(&self) -> Option<&'static str> {
        self.core.merge.as_ref().map(|job| job.step())
    }

    /// How many barriers wait for commits and syncs.
    #[cfg(any(test, feature = "sim"))]
    pub fn barriers(&self) -> usize {
        self.core.barriers.len()
    }

    /// The merge that runs in this engine, if any.
    pub fn merge(&self) -> Option<MergeProgress> {
        self.core.merge_progress()
    }
}

impl Drop for Engine {
    /// If its I/O could not be waited for, other workers may wait for a round that it leads.
    fn drop(&mut self) {
        if let Some(table) = self.table.take() {
            self.core.abandon(&table);
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("requests", &self.requests()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
