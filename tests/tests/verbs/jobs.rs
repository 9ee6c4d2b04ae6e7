//! Jobs that run while other commands are carried out.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::case::Case;
use crate::look::job_of;
use crate::model::Job;

/// How long to wait for a job that may last longer.
const SOME_TIME: Duration = Duration::from_millis(500);

impl Case {
    /// A speed at which a job of a small disk lasts for some commands.
    pub(crate) fn slow(&mut self) -> u64 {
        (64 << 10) << self.rng.below(5)
    }

    /// Begins a job, sometimes while its disk is suspended: it rests until the disk is resumed, by
    /// this process or the next.
    pub(crate) fn maybe_suspended(&mut self, of: usize, begin: impl Fn(&mut Case) -> bool) -> bool {
        if self.families[of].job.is_some() || !self.rng.chance(25) {
            return begin(self);
        }
        let name = json!({"name": self.families[of].name});
        self.call("device-suspend", name.clone());
        let began = begin(self);
        if began && self.rng.chance(30) {
            self.kill_alone();
        }
        self.call("device-resume", name);
        began
    }

    pub(crate) fn pause(&mut self, of: usize) -> bool {
        if !self.families[of].job_runs() {
            return false;
        }
        let id = json!({"id": job_of(&self.families[of])});
        // It may have ended meanwhile.
        if self.ask("job-pause", &id).is_ok() {
            self.look();
            if self.rng.chance(50) {
                self.kill_alone();
                self.look();
            }
            self.call("job-resume", id);
        }
        true
    }

    pub(crate) fn cancel(&mut self, of: usize) -> bool {
        if !self.families[of].job_runs() {
            return false;
        }
        let id = json!({"id": job_of(&self.families[of])});
        let cancelled = self.ask("job-cancel", &id).is_ok();
        self.until_job(of, false);
        if !cancelled {
            return true;
        }
        let found = self.names();
        let family = &mut self.families[of];
        // The command may have come when the job was ready, or when it was over.
        let gone = |at: usize| !found.contains(&family.chain[at].0);
        match family.job {
            Some(Job::Commit { top: Some(top), .. }) if gone(top) => return true,
            Some(Job::Commit { top: None, base, ready: false })
                if base + 1 < family.chain.len() && gone(family.chain.len() - 1) =>
            {
                family.is_ready();
            }
            _ => {}
        }
        self.families[of].was_cancelled();
        true
    }

    pub(crate) fn wait_for_end(&mut self, of: usize) -> bool {
        let runs = self.families[of].job_runs();
        if runs {
            let begin = Instant::now();
            while self.families[of].job_runs() && begin.elapsed() < SOME_TIME {
                self.settle();
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        runs
    }
}
