//! What a user may do with a commit while it runs.
//!
//! Owns the verbs of its job. Never knows how the work is done, and waits for none of it: it tells the
//! threads that do it, and the one that watches them.

use snapblk_qmp::JobDriver;
use snapblk_store::device::Pivot;

use super::{Commit, Said, Stage, Work};
use crate::server::job::{keep_pause, keep_speed};

impl JobDriver for Commit {
    fn pause(&self) {
        let mut now = self.now();
        now.paused = true;
        keep_pause(self.server.upgrade(), &self.id, true);
        match now.stage.work() {
            Some(Work::Copy(copy)) => copy.pause(),
            Some(Work::Merge(merge)) => merge.pause(),
            None => {}
        }
    }

    fn resume(&self) {
        let mut now = self.now();
        now.paused = false;
        keep_pause(self.server.upgrade(), &self.id, false);
        match now.stage.work() {
            Some(Work::Copy(copy)) => copy.resume(),
            Some(Work::Merge(merge)) => merge.resume(),
            None => {}
        }
    }

    fn set_speed(&self, speed: u64) {
        let mut now = self.now();
        now.speed = speed;
        match now.stage.work() {
            Some(Work::Copy(copy)) => copy.set_speed(now.limit()),
            Some(Work::Merge(merge)) => merge.set_speed(now.limit()),
            None => {}
        }
        keep_speed(self.server.upgrade(), &self.id, speed);
    }

    fn cancel(&self) -> Result<(), String> {
        let mut now = self.now();
        match &mut now.stage {
            Stage::Copying(copy) => {
                copy.cancel();
                now.cancelled = true;
            }
            Stage::Changing => now.cancelled = true,
            Stage::Ready => {
                now.stage = Stage::Resting;
                self.send(Said::Cancelled);
            }
            Stage::Merging(_) | Stage::Following(_) => {
                return Err(format!(
                    "the job '{}' was completed, and what is left of '{}' goes into its base",
                    self.id, self.job.device
                ));
            }
            // It waits to be finalized: nobody else gives back what it holds.
            Stage::Resting => {
                drop(now);
                if let Some(server) = self.server.upgrade() {
                    server.halt_commit(&self.id);
                }
            }
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        let mut now = self.now();
        match now.stage {
            Stage::Ready => {}
            // Another client asked for it.
            Stage::Merging(_) | Stage::Following(_) => return Ok(()),
            Stage::Copying(_) | Stage::Changing | Stage::Resting => {
                return Err(format!("the job '{}' is being cancelled", self.id));
            }
        }
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let pivot = server.devices.pivot(&self.id).map_err(|error| error.to_string())?;
        now.stage = match pivot {
            Pivot::Merges => Stage::Merging(None),
            Pivot::Steps => Stage::Following(None),
        };
        self.send(Said::Pivoted(pivot));
        Ok(())
    }

    fn finalize(&self) -> Result<(), String> {
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let follows = matches!(self.now().stage, Stage::Following(_));
        let ended = if follows {
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
