//! What a user may do with a commit while it runs.
//!
//! Owns the verbs of its job. Never knows how the work is done, and waits for none of it: it tells the
//! threads that do it, and the one that watches them.

use snapblk_qmp::JobDriver;
use snapblk_store::device::Pivot;

use super::{Commit, JobEvent, Stage, Work};
use crate::server::job::{keep_pause, keep_speed};

impl JobDriver for Commit {
    fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        keep_pause(self.server.upgrade(), &self.id, true);
        match state.stage.work() {
            Some(Work::Copy(copy)) => copy.pause(),
            Some(Work::Merge(merge)) => merge.pause(),
            None => {}
        }
    }

    fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        keep_pause(self.server.upgrade(), &self.id, false);
        match state.stage.work() {
            Some(Work::Copy(copy)) => copy.resume(),
            Some(Work::Merge(merge)) => merge.resume(),
            None => {}
        }
    }

    fn set_speed(&self, speed: u64) {
        let mut state = self.state();
        state.speed = speed;
        match state.stage.work() {
            Some(Work::Copy(copy)) => copy.set_speed(state.limit()),
            Some(Work::Merge(merge)) => merge.set_speed(state.limit()),
            None => {}
        }
        keep_speed(self.server.upgrade(), &self.id, speed);
    }

    fn cancel(&self) -> Result<(), String> {
        let mut state = self.state();
        match &mut state.stage {
            Stage::Copying(copy) => {
                copy.cancel();
                state.cancelled = true;
            }
            Stage::ChangingTables => state.cancelled = true,
            Stage::Ready => {
                state.stage = Stage::Done;
                self.notify(JobEvent::Cancelled);
            }
            Stage::Merging(_) | Stage::CopyingIntoLayer(_) => {
                return Err(format!(
                    "the job '{}' was completed, and what is left of '{}' goes into its base",
                    self.id, self.job.device
                ));
            }
            // It waits to be finalized: nobody else gives back what it holds.
            Stage::Done => {
                drop(state);
                if let Some(server) = self.server.upgrade() {
                    server.halt_commit(&self.id);
                }
            }
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        let mut state = self.state();
        match state.stage {
            Stage::Ready => {}
            // Another client asked for it.
            Stage::Merging(_) | Stage::CopyingIntoLayer(_) => return Ok(()),
            Stage::Copying(_) | Stage::ChangingTables | Stage::Done => {
                return Err(format!("the job '{}' is being cancelled", self.id));
            }
        }
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let pivot = server.devices.pivot(&self.id).map_err(|error| error.to_string())?;
        state.stage = match pivot {
            Pivot::Merges => Stage::Merging(None),
            Pivot::Steps => Stage::CopyingIntoLayer(None),
        };
        self.notify(JobEvent::Pivoted(pivot));
        Ok(())
    }

    fn finalize(&self) -> Result<(), String> {
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let into_layer = matches!(self.state().stage, Stage::CopyingIntoLayer(_));
        let ended = if into_layer {
            server.devices.forget_commit(&self.id)
        } else if self.activates {
            server.devices.end_pivot(&self.id)
        } else {
            server.devices.drop_layers(&self.id).map(|_| ())
        };
        ended.map_err(|error| {
            server.halt_commit(&self.id);
            error.to_string()
        })?;
        // A layer that is gone may have been suspended.
        server.thaw_guests_whose_devices_serve();
        Ok(())
    }
}
