//! What verbs write to the state: before tables change, after that, and when they did not.
//!
//! Owns the order of these writes and what is checked before the first. Never knows what a state holds,
//! nor how workers are stopped. Keeps: a verb that is undone leaves the state as it was before it, or
//! says that it could not.

use std::collections::BTreeMap;

use super::build::Plan;
use super::core::{Devices, Inner};
use super::error::DeviceError;
use super::serving::give_way;
use super::state::State;
use super::verbs::{guest_writes, with_uppers};

/// What [`Inner::lose_sources`] recorded.
type Noted = Vec<(String, usize)>;

impl Devices {
    /// Keeps the state with the tables of `plan`. Returns the devices whose workers have to stop, and
    /// what [`Inner::lose_sources`] recorded. An error changes nothing.
    pub(super) fn keep_plan(
        &self,
        plan: &mut Plan<'_>,
    ) -> Result<(Vec<String>, Noted), DeviceError> {
        self.refuse_committing(plan.inner, &plan.next)?;
        self.refuse_second_writers(plan.inner, &plan.next, |writer| {
            guest_writes(plan.inner, writer)
        })?;
        let mut names: Vec<String> = Vec::new();
        for name in plan.next.keys() {
            let more = with_uppers(plan.inner, name);
            names.extend(more.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
        }
        plan.give_way();
        // Durable before the first write under the new tables can be acknowledged; a restart in
        // between finds the new tables and nothing written under them.
        let lost = plan.inner.lose_sources(&plan.next);
        let state = State::of(self, plan.inner, &plan.next).serving(&plan.released);
        plan.give_way();
        let kept = plan.inner.state.file().keep_devices(state);
        if let Err(error) = kept {
            plan.inner.find_sources(lost);
            return Err(error.into());
        }
        plan.give_way();
        Ok((names, lost))
    }

    /// A file that was written until now becomes a base: its size and time are recorded, so that later
    /// changes are noticed. The tables have changed, recorded or not.
    pub(super) fn keep_new_bases(&self, inner: &mut Inner) {
        if !State::lacks_a_base(self, inner) {
            return;
        }
        // Requests that came in while guests were stopped go first.
        give_way(inner);
        if let Err(error) = self.keep(inner) {
            tracing::error!("{error}; a change of the base would not be noticed");
        }
    }

    /// The state that was kept for a verb is replaced by the present one: `cause` has undone the verb.
    pub(super) fn take_back(&self, inner: &mut Inner, cause: DeviceError) -> DeviceError {
        let present = State::of(self, inner, &BTreeMap::new());
        let mut file = inner.state.file();
        let Err(state) = file.keep_devices(present.clone()) else { return cause };
        // What guests set is written with it, and that may be possible sooner.
        file.note_devices(present);
        file.set_stale();
        drop(file);
        let error =
            DeviceError::NotTakenBack { cause: Box::new(cause), state: Box::new(state.into()) };
        tracing::error!("{error}");
        error
    }

    /// Tries again what [`Devices::take_back`] could not do.
    pub(super) fn settle_state(&self, inner: &mut Inner) {
        let stale = inner.state.file().is_stale();
        if stale && let Err(error) = self.keep(inner) {
            return tracing::error!("{error}; the state file still names what was undone");
        }
        inner.left_over.undo();
    }
}
